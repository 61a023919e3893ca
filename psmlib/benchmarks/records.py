"""Rows of the benchmarks in data/bench: append-only CSV files with the date, commit, machine and versions."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from psmlib.benchmarks.timing import Row, number
from psmlib.machine import paths
from psmlib.machine.files import read_text, reading, write_atomic
from psmlib.machine.provenance import device_name, git_state

STAMP = ("date", "commit", "dirty", "device", "threads", "python", "torch", "numpy", "scale")
NUMBERS = ("runs", "warm_up_seconds", "q20", "q50", "q80", "ratio_q20", "ratio_q50", "ratio_q80")
COLUMNS = (*STAMP, "name", "case", "method", "measure", "unit", *NUMBERS, "note")


def load(name: str, folder: Path | None = None) -> pd.DataFrame:
    """All rows of a benchmark, oldest first; none if it has never been run.

    Args:
        name: Of the benchmark, as listed by `python -m psmlib.bench --list`.
        folder: Where its file is; by default data/bench of the output folder, or else the repository's.

    Raises:
        ValueError: when the file lacks a column or is damaged.
    """
    folders = [Path(paths.BENCH), Path(paths.DATA) / "bench"] if folder is None else [folder]
    path = next((place / f"{name}.csv" for place in folders if (place / f"{name}.csv").exists()), None)
    if path is None:
        return pd.DataFrame(columns=list(COLUMNS))
    return _read(path)[1]


def _read(path: Path) -> tuple[str, pd.DataFrame]:
    """The text of a file and its rows."""
    with reading(path.name, "restore it, or move it aside to begin a new one"):
        text = read_text(path)
        header, *rows = csv.reader(io.StringIO(text), strict=True)
        if missing := [column for column in COLUMNS if column not in header]:
            raise ValueError(f"it lacks the column {missing[0]!r}, another version wrote it")
        for line, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ValueError(f"row {line} has {len(row)} fields instead of {len(header)}")
        frame = pd.DataFrame(rows, columns=header, dtype=str)
        numbers = {column: pd.to_numeric(frame[column].mask(frame[column] == "")) for column in NUMBERS}
        return text, frame.assign(**numbers)


def latest(frame: pd.DataFrame, scales: tuple[str, ...] = ("full", "quick")) -> pd.DataFrame:
    """The rows of the last run on each device, at the first of the scales that was run there.

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
        chosen = next((scale for scale in scales if scale in set(rows["scale"])), None)
        mine = rows[rows["scale"] == chosen]
        kept.append(mine[mine["date"] == mine["date"].max()])
    return pd.concat(kept) if kept else frame


def figure(frame: pd.DataFrame, method: str, measure: str, case: str = "") -> tuple[float, float, float] | None:
    """The 20, 50 and 80 % quantiles of one measured figure, or None where it was not measured.

    Args:
        frame: From :func:`latest`, one device's.
        method: The implementation.
        measure: What was measured.
        case: The beginning of the case.
    """
    mine = frame[(frame["method"] == method) & (frame["measure"] == measure) & frame["q50"].notna()]
    mine = mine[mine["case"].str.startswith(case)]
    if not len(mine):
        return None
    row = mine.iloc[-1]
    return tuple(float(row[q] if pd.notna(row[q]) else row["q50"]) for q in ("q20", "q50", "q80"))


def lines(frame: pd.DataFrame, columns: Mapping[str, str], ratio: str = "", style: str = "x {:.2f}") -> list[dict]:
    """Medians as the lines of a table: one for each device, case and method of which every measure was made.

    Args:
        frame: From :func:`latest`.
        columns: The headings of measures.
        ratio: Heading of the ratio of the last of the measures; by default it is not shown.
        style: How it is written.

    Example:
        >>> row = dict(device="A", case="TY", method="vmap", measure="rate", q50=3.0, ratio_q50=1.5)
        >>> lines(pd.DataFrame([row]), {"rate": "steps a second"}, "to one by one")[0]["to one by one"]
        'x 1.50'
    """
    found = []
    for (device, case, method), part in frame.groupby(["device", "case", "method"], sort=False):
        rows = part.drop_duplicates("measure", keep="last").set_index("measure")
        if set(columns) <= set(rows.index):
            line = {"device": device, "case": case, "who": method}
            line |= {heading: rows["q50"][measure] for measure, heading in columns.items()}
            if ratio:
                times = rows["ratio_q50"][list(columns)[-1]]
                line[ratio] = None if pd.isna(times) else style.format(times)
            found.append(line)
    return found


def stamp(scale: str, device: str = "cpu") -> dict[str, str]:
    """Date, commit, machine and versions of a run, the first columns of each of its rows.

    Example:
        >>> tuple(stamp("smoke")) == STAMP
        True
    """
    state = git_state()
    dirty = {True: "yes", False: "no"}.get(state["dirty"], "unknown")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    machine = (device_name(device), str(torch.get_num_threads()), platform.python_version())
    versions = (version("torch"), version("numpy"))
    return dict(zip(STAMP, (now, state["commit"], dirty, *machine, *versions, scale), strict=True))


def record(name: str, row: Row, about: dict[str, str]) -> dict[str, str]:
    """A row as it is written to the file: text for every column."""
    text = {key: getattr(row, key) for key in ("case", "method", "measure", "unit", "note")}
    levels = ("q20", "q50", "q80")
    values = {key: number(value, 6) for key, value in zip(levels, row.values, strict=True)}
    ratios = {f"ratio_{key}": number(ratio, 4) for key, ratio in zip(levels, row.ratios, strict=True)}
    counts = {"runs": str(row.runs), "warm_up_seconds": number(row.warm_up)}
    return {**about, "name": name, **text, **counts, **values, **ratios}


def path_of(name: str) -> Path:
    """The file of a benchmark."""
    return Path(paths.BENCH) / f"{name}.csv"


def check(path: Path) -> str:
    """The text of the file, or the header of a new one.

    Raises:
        ValueError: when the file has other columns than we write, or is damaged.
    """
    header = ",".join(COLUMNS) + "\n"
    if not path.exists():
        return header
    text, _ = _read(path)
    if text.split("\n", 1)[0] != header.strip():
        raise ValueError(f"{path.name} has other columns than this version writes: move it aside to begin a new one")
    return text if text.endswith("\n") else text + "\n"


def append(path: Path, records: Iterable[dict[str, str]]) -> Path:
    """Adds rows to the end of a file atomically, after the header if it is new.

    Raises:
        ValueError: when the file has other columns than we write.
    """
    lines = io.StringIO()
    csv.DictWriter(lines, COLUMNS, lineterminator="\n").writerows(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        return write_atomic(path, check(path) + lines.getvalue())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder, so that no row is lost when two runs write at the same time."""
    try:
        import fcntl
    except ImportError:  # not on this system; two runs at once would disturb each other's timings anyway
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
