"""Reading what the benchmarks have left in data/bench."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from psmlib import paths

NUMBERS = ("runs", "warm_up_seconds", "q20", "q50", "q80", "ratio_q20", "ratio_q50", "ratio_q80")


def load(name: str, folder: Path | None = None) -> pd.DataFrame:
    """All rows of a benchmark, oldest first; without rows where it has never been run.

    Args:
        name: Of the benchmark, as `python -m psmlib.bench --list` gives it.
        folder: Where its file is; by default data/bench of the output folder, or else the repository's.

    Raises:
        ValueError: when the file lacks a column.
    """
    from psmlib.bench import COLUMNS

    folders = [Path(paths.BENCH), Path(paths.DATA) / "bench"] if folder is None else [folder]
    path = next((place / f"{name}.csv" for place in folders if (place / f"{name}.csv").exists()), None)
    if path is None:
        return pd.DataFrame(columns=list(COLUMNS))
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [column for column in COLUMNS if column not in frame]:
        raise ValueError(f"{path.name} lacks the column {missing[0]!r}: another version wrote it, move it aside")
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    return frame


def latest(frame: pd.DataFrame, scales: tuple[str, ...] = ("full", "quick")) -> pd.DataFrame:
    """The rows of the last run of each device: of the first of the scales that it has.

    Args:
        frame: From :func:`load`.
        scales: In order of preference; smoke runs measure nothing.

    Example:
        >>> rows = [("A", "quick", "1", 3.), ("A", "quick", "2", 4.), ("A", "full", "0", 5.), ("B", "smoke", "3", 6.)]
        >>> latest(pd.DataFrame(rows, columns=["device", "scale", "date", "q50"]))["q50"].tolist()
        [5.0]
    """
    kept = []
    for _, rows in frame.groupby("device", sort=False):
        for scale in scales:
            mine = rows[rows["scale"] == scale]
            if len(mine):
                kept.append(mine[mine["date"] == mine["date"].max()])
                break
    return pd.concat(kept) if kept else frame.iloc[:0]


def figure(frame: pd.DataFrame, method: str, measure: str, case: str = "") -> tuple[float, float, float] | None:
    """The 20, 50 and 80 % quantiles of one measured figure, or None where it was not measured.

    Args:
        frame: From :func:`latest`, one device's.
        method: Who did it.
        measure: What was measured.
        case: How the case begins.
    """
    mine = frame[(frame["method"] == method) & (frame["measure"] == measure) & frame["case"].str.startswith(case)]
    mine = mine[mine["q50"].notna()]
    if not len(mine):
        return None
    row = mine.iloc[-1]
    return tuple(float(row[q] if pd.notna(row[q]) else row["q50"]) for q in ("q20", "q50", "q80"))
