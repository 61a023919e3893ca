"""Table cells made from results, and the reason shown where a cell has no result."""

from collections.abc import Mapping

import pandas as pd

from psmlib.book.formatting import NOTHING, budget_words, fmt
from psmlib.book.results import Results
from psmlib.machine.provenance import device_name


def joined_frame(results) -> pd.DataFrame:
    """The rows of a `Results`, a `Record`, a frame of one, or of a list of these, in one frame."""
    many = list(results) if isinstance(results, list | tuple) else [results]
    frames = [r if isinstance(r, pd.DataFrame) else r.frame() for r in many]
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def below_bound(value: float | None, stderr: float | None, bound: float | None) -> bool:
    """Whether a figure is less than its lower bound by more than three standard errors."""
    value, stderr, bound = (None if x is None or pd.isna(x) else x for x in (value, stderr, bound))
    return value is not None and bound is not None and value + 3 * (stderr or 0.0) < bound


def cells_of(record: Mapping) -> dict:
    """The cells, by column, that one result fills in its line of the table."""
    fields = ("value", "stderr", "exact", "bound")
    value, stderr, exact, bound = (None if pd.isna(record[f]) else record[f] for f in fields)
    words = record["status"].replace("_", " ")
    # The note of a figure is its protocol, which the caption gives; a missing or differing figure needs its reason.
    reason = record["note"] if record["status"] in ("not_run", "needs_data", "differs") else ""
    if below_bound(value, stderr, bound):
        reason = "below the entropy, so an artefact of the solver"
    elif bound is not None and below_bound(value, stderr, exact):
        reason = "below the exact score but not the entropy, so no contradiction"
    line = {"status": f"{words}: {reason}" if reason else words}
    if value is not None:
        line["ours"] = f"{fmt(value, stderr)} ({record['n_seeds']})"
    if bound is not None:
        line["bound"] = fmt(bound)
    if exact is not None:
        line["exact"] = fmt(exact)
        line["excess"] = NOTHING if value is None else fmt(value - exact, stderr)
    if record.get("profile"):
        line["run"] = record["profile"]
    return line | {"budget": budget_words(record["budget"]) or NOTHING, "dataset": record["dataset"] or NOTHING}


def _runs(results) -> list[Results]:
    many = results if isinstance(results, list | tuple) else [results]
    return [run for r in many for run in getattr(r, "runs", [r]) if isinstance(run, Results)]


def why_missing(results, dataset: str) -> str:
    """Why a run has no result for a cell of that data set, as far as its parameters tell."""
    chosen = {r.parameters.get("dataset", "all") for r in _runs(results)}
    alone = chosen and not chosen & {"all", dataset}
    return f"this run is of {', '.join(sorted(chosen))} alone" if alone else "no result in this run"


def what_ran(results, frame: pd.DataFrame) -> str:
    """Profile, device, date and commit of the runs that a frame's lines are of, and the protocol, for a caption.

    The protocol is the note that all figures of a run share.
    """
    said = {}
    for run in _runs(results):
        lines = frame[frame["profile"] == run.profile] if "profile" in frame else frame
        notes = set(lines["note"][lines["value"].notna() & (lines["status"] != "differs")])
        if len(lines):
            said[", ".join([run_words(run), *(notes if len(notes) == 1 else ())]).removesuffix(", ")] = None
    return "; ".join(said)


def run_words(run: Results) -> str:
    """Profile, device, date and commit of a run."""
    about = run.provenance or {}
    device = about.get("device") or device_name(str(run.parameters.get("device", "cpu")))
    words = [f"profile {run.profile} on {device}", about.get("date")]
    words += [f"commit {about['commit'][:7]}"] if about.get("commit") else []
    return ", ".join(filter(None, words))
