"""The numbers that the papers print, from data/paper_values.toml."""

import difflib
import functools
import tomllib
from pathlib import Path

import pandas as pd

from psmlib.machine import paths

_CELL = ("paper", "table", "row", "column", "metric")


def paper_values() -> pd.DataFrame:
    """Every number that the papers print: paper, table, dataset, row, column, metric, value, unit, note.

    Example:
        >>> paper_values().query("paper == 'psm' and table == '1' and metric == 'NLL'").shape[0]
        8
    """
    return _read_values(paths.PAPER_VALUES).copy()


@functools.cache
def _read_values(path: Path) -> pd.DataFrame:
    return pd.DataFrame(tomllib.loads(path.read_text(encoding="utf-8"))["cell"])


def paper_value(paper: str, table: str, row: str, column: str, metric: str) -> float:
    """One number as a paper prints it.

    Raises:
        ValueError: when the paper has no such cell; the message names the nearest ones.

    Example:
        >>> paper_value("psm", "1", "TY", "TPSM-C", "NLL")
        0.58
        >>> paper_value("psm", "1", "TY", "TPSM-D", "NLL")
        Traceback (most recent call last):
        ...
        ValueError: psm 1 / TY has no column 'TPSM-D': did you mean 'TPSM-C', 'TPSM-B' or 'TPSM-A'?
    """
    frame, path = paper_values(), []
    for field, wanted in zip(_CELL, (paper, table, row, column, metric), strict=True):
        known = list(dict.fromkeys(frame[field]))
        if wanted not in known:
            near = difflib.get_close_matches(str(wanted), known, n=3, cutoff=0.4) or known[:8]
            *most, last = [repr(k) for k in near]
            where = " / ".join([" ".join(path[:2]), *path[2:]]) if path else "data/paper_values.toml"
            names = f"{', '.join(most)} or {last}" if most else last
            raise ValueError(f"{where} has no {field} {wanted!r}: did you mean {names}?")
        frame = frame[frame[field] == wanted]
        path.append(wanted)
    return float(frame["value"].iloc[0])
