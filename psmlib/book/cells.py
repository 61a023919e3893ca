"""Table cells made from results, and the reason shown where a cell has no result."""

from collections.abc import Mapping

import pandas as pd

from psmlib.book.formatting import NOTHING, budget_words, fmt
from psmlib.book.results import Results
from psmlib.machine.provenance import device_name


def joined_frame(results) -> pd.DataFrame:
    """The rows of a `Results`, of its frame, or of a list of these, in one frame."""
    many = list(results) if isinstance(results, list | tuple) else [results]
    frames = [r.frame() if isinstance(r, Results) else r for r in many]
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def cells_of(record: Mapping) -> dict:
    """The cells, by column, that one result fills in its line of the table."""
    value, stderr, exact = (None if pd.isna(record[f]) else record[f] for f in ("value", "stderr", "exact"))
    words = record["status"].replace("_", " ")
    # The note of a figure is its protocol, which the caption gives; a missing or differing figure needs its reason.
    reason = record["note"] if record["status"] in ("not_run", "needs_data", "differs") else ""
    line = {"status": f"{words}: {reason}" if reason else words}
    if value is not None:
        line["ours"] = f"{fmt(value, stderr)} ({record['n_seeds']})"
    if exact is not None:
        line["exact"] = fmt(exact)
        line["excess"] = NOTHING if value is None else fmt(value - exact, stderr)
    return line | {"budget": budget_words(record["budget"]) or NOTHING, "dataset": record["dataset"] or NOTHING}


def as_printed(value: float) -> str:
    """A printed number with the paper's own digits."""
    return (f"{value:,.0f}" if float(value).is_integer() else f"{value:,}").replace("-", "−", 1)


def _runs(results) -> list[Results]:
    return [r for r in (results if isinstance(results, list | tuple) else [results]) if isinstance(r, Results)]


def why_missing(results, dataset: str) -> str:
    """Why a run has no result for a cell of that data set, as far as its parameters tell."""
    chosen = {r.parameters.get("dataset", "all") for r in _runs(results)}
    alone = chosen and not chosen & {"all", dataset}
    return f"this run is of {', '.join(sorted(chosen))} alone" if alone else "no result in this run"


def what_ran(results) -> str:
    """Profile and device of the runs, for a caption."""
    said = {}
    for run in _runs(results):
        device = (run.provenance or {}).get("device") or device_name(str(run.parameters.get("device", "cpu")))
        said[f"profile {run.profile} on {device}"] = None
    return f"; {' and '.join(said)}" if said else ""
