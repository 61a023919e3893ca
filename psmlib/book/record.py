"""The record: of everything that runs of a notebook have found, the strongest for each cell, claim and picture.

Runs at a larger budget speak before those at a smaller one (:data:`STRENGTH`). Pages are made from the record, so that
they show the same whether or not the reader has an hour, and beside it what the run at hand has found.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd

from psmlib.book.cells import run_words
from psmlib.book.parameters import PROFILES
from psmlib.book.results import Results, load
from psmlib.book.rows import FIELDS, KEY
from psmlib.machine import paths
from psmlib.machine.checks import check_choice
from psmlib.standard_errors import Estimate, estimate

STRENGTH: tuple[str, ...] = PROFILES[:0:-1]
"""The profiles of runs, the largest budget first; of profile record there is none."""

DISAGREE = 4.0
"""By how many standard errors two runs at the same budget must differ to be said to disagree."""


class Record:
    """What runs of a notebook have found.

    Args:
        runs: Their results, the strongest first.

    Example:
        >>> weak = Results("psm_toys", "smoke", rows=dict(metric="NLL", unit="nats"))
        >>> strong = Results("psm_toys", "night", rows=dict(metric="NLL", unit="nats"))
        >>> for results, value in ((weak, 0.9), (strong, 0.7)):
        ...     results.add("1", "TY", "SA-DPM", value)
        >>> weak.add("1", "TY", "TPSM-A", 0.8)
        >>> record = Record([strong, weak])
        >>> record.value("1", "TY", "SA-DPM").value, record.value("1", "TY", "TPSM-A").value
        (0.7, 0.8)
        >>> list(record.frame()["profile"])
        ['night', 'smoke']
    """

    def __init__(self, runs: list[Results]):
        self.runs = list(runs)
        self._frame = self._strongest()

    def frame(self) -> pd.DataFrame:
        """One line per cell, as of :meth:`Results.frame`, from the strongest run that has a value for it.

        Further columns say which run it is: profile, device, date and commit. Cells keep the order in which the
        strongest run has them; those of weaker ones alone follow.
        """
        return self._frame.copy()

    def _strongest(self) -> pd.DataFrame:
        found: dict[tuple, dict] = {}
        for run in self.runs:
            about = {"profile": run.profile} | {k: (run.provenance or {}).get(k) for k in ("device", "date", "commit")}
            for row in run.frame().to_dict("records"):
                key = tuple(row[field] for field in KEY)
                if key not in found or (pd.isna(found[key]["value"]) and not pd.isna(row["value"])):
                    found[key] = row | about
        return pd.DataFrame(list(found.values()), columns=[*FIELDS, "profile", "device", "date", "commit"])

    def row(self, table: str, row: str, column: str, **where) -> dict:
        """The line of one cell.

        Args:
            table: Its table.
            row: Its row.
            column: Its column.
            **where: Other fields that must agree, such as metric="NLL".

        Raises:
            KeyError: when there is no such cell, or more than one.
        """
        frame = self._frame
        for field, wanted in ({"table": table, "row": row, "column": column} | where).items():
            check_choice("field", field, frame.columns, of="the record")
            frame = frame[frame[field] == wanted]
        if len(frame) != 1:
            raise KeyError(f"{len(frame)} cells on record are {table} / {row} / {column}: name one, as by metric=...")
        return frame.iloc[0].to_dict()

    def value(self, table: str, row: str, column: str, **where) -> Estimate:
        """The figure of one cell with its standard error; raises KeyError as :meth:`row`, or if it has none."""
        found = self.row(table, row, column, **where)
        if pd.isna(found["value"]):
            raise KeyError(f"{table} / {row} / {column} has no value on record: {found['note']}")
        stderr = None if pd.isna(found["stderr"]) else found["stderr"]
        return estimate(found["value"] if stderr is None else (found["value"], stderr))

    @property
    def verdicts(self) -> list[dict]:
        """The claims, each from the strongest run that has it, with that run's profile."""
        found: dict[str, dict] = {}
        for run in self.runs:
            for line in run.verdicts:
                found.setdefault(line["claim"], line | {"profile": run.profile})
        return list(found.values())

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with a prefix, by the rest of the name, all of one run: the strongest with any.

        Without any there is none, for which plots say that nothing is on record.
        """
        run, names = self._holding(prefix)
        return {name.removeprefix(prefix): run.array(name) for name in names}

    def curves(self, prefix: str) -> tuple[np.ndarray, dict[str, tuple]]:
        """Curves that were kept as arrays of three rows: where they were measured, the means, their standard errors.

        Returns:
            Where, by the first of them, and (means, standard errors or None) by the rest of the name, as
            :func:`psmlib.book.plots.curves` takes them.

        Example:
            >>> run = Results("x", "smoke")
            >>> run.keep("loss, TPSM-A", [[0.1, 1.0], [3.0, 2.0], [np.nan, np.nan]])
            >>> Record([run]).curves("loss, ")[1]["TPSM-A"][1] is None
            True
        """
        kept = self.arrays(prefix)
        lines = {n: (mean, None if np.isnan(error).all() else error) for n, (_, mean, error) in kept.items()}
        return next(iter(kept.values()), np.empty((3, 0)))[0], lines

    def about(self, prefix: str) -> str:
        """Which run the arrays with a prefix are of, for a caption."""
        run, _ = self._holding(prefix)
        return f"P{run_words(run)[1:]}." if run else ""  # it begins with "profile"

    def _holding(self, prefix: str) -> tuple[Results | None, list[str]]:
        for run in self.runs:
            if names := [name for name in run.arrays if name.startswith(prefix)]:
                return run, names
        return None, []


def read(notebook: str) -> Record:
    """The record of a notebook; a file that cannot be read is left out with a warning, and weaker runs speak for it."""
    return Record(list(_runs(notebook)))


def _runs(notebook: str) -> Iterator[Results]:
    for profile in STRENGTH:
        if (paths.RESULTS / profile / f"{notebook}.json").is_file():
            try:
                yield load(profile, notebook)
            except ValueError as error:
                warnings.warn(str(error), stacklevel=3)


def beside(results: Results, record: Record) -> pd.DataFrame:
    """The cells of a run for which another run at the same or a larger budget is on record, with both figures.

    Returns:
        A frame with the run's lines and, as "recorded", "recorded_stderr" and "recorded_profile", the record's;
        "agreement" says "another budget", "yes", or that two runs at the same budget differ by more than `DISAGREE`
        standard errors.
    """
    known = {tuple(row[field] for field in KEY): row for row in record.frame().to_dict("records")}
    lines = []
    for row in results.frame().to_dict("records"):
        other = known.get(tuple(row[field] for field in KEY))
        if other is None or pd.isna(other["value"]) or pd.isna(row["value"]):
            continue
        if STRENGTH.index(other["profile"]) > _rank(results.profile):
            continue
        more = {"recorded": other["value"], "recorded_stderr": other["stderr"], "recorded_profile": other["profile"]}
        lines.append(row | more | {"agreement": _agreement(row, other)})
    return pd.DataFrame(lines)


def _rank(profile: str) -> int:
    return STRENGTH.index(profile) if profile in STRENGTH else len(STRENGTH)


def _agreement(row: dict, other: dict) -> str:
    if row["budget"] != other["budget"]:
        return "another budget"
    errors = [0.0 if pd.isna(x) else x for x in (row["stderr"], other["stderr"])]
    gap, error = abs(row["value"] - other["value"]), float(np.hypot(*errors))
    tolerance = max(DISAGREE * error, 1e-6 * abs(other["value"]))
    return "yes" if gap <= tolerance else "**no**, at the same budget"
