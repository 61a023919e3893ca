"""Rows of results: the fields of a table cell on record, each checked and in a type that JSON holds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from psmlib.book.formatting import ROUNDING, value_and_error
from psmlib.machine.checks import check_choice

PAPERS = ("psm", "diffusion_time", "high_precision", "aligner", "multistage", "ours")
STATUSES = ("reproduced", "within_noise", "differs", "scaled_down", "computed", "needs_data", "not_run")
NO_VALUE = ("needs_data", "not_run")  # the statuses of a cell without a figure
KEY = ("paper", "table", "row", "column", "metric", "dataset")
FIELDS = (*KEY, "unit", "value", "stderr", "n_seeds", "budget", "exact", "bound", "status", "note")
DEFAULTS = {"paper": "ours", "dataset": "", "n_seeds": 1, "status": "scaled_down", "note": ""}


def cell_of(paper: str, table: str, row: str, column: str, metric: str, dataset: str) -> str:
    """A cell's name in messages."""
    return f"{paper} {table} / {row} / {column} / {metric}" + (f" / {dataset}" if dataset else "")


def checked(record: dict) -> dict:
    """The record of a cell in types that JSON holds, after a check of each field."""
    for name in (*KEY, "unit", "note"):
        text = record[name]
        if not isinstance(text, str) or not (text.strip() or name in ("dataset", "note")):
            raise ValueError(f"{name} of a result must be text, got {text!r}: write it as in paper_values.toml")
    cell = cell_of(*(record[field] for field in KEY))
    check_choice("paper", record["paper"], PAPERS, of=cell)
    check_choice("status", record["status"], STATUSES, of=cell)
    n_seeds, budget, empty = record["n_seeds"], record["budget"], record["status"] in NO_VALUE
    if isinstance(n_seeds, bool) or not isinstance(n_seeds, int | np.integer) or n_seeds < 1:
        raise ValueError(f"n_seeds of {cell} is {n_seeds!r}: give a whole number of at least 1")
    value, stderr, exact, bound = (
        _number(record[name], f"{name} of {cell}", none=name != "value" or empty, nan=empty)
        for name in ("value", "stderr", "exact", "bound")
    )
    if stderr is not None and stderr < 0:
        raise ValueError(f"stderr of {cell} is {stderr:g}: give a standard error, which is never negative")
    if empty and (value is not None or not record["note"].strip()):
        raise ValueError(f'{cell} has status "{record["status"]}": give value=None and the reason as its note')
    if budget is not None and not isinstance(budget, Mapping):
        raise ValueError(f"budget of {cell} is {budget!r}: give a dict such as {{'updates': 8000}}")
    return record | {
        "value": value, "stderr": None if stderr is not None and stderr <= ROUNDING * abs(value or 0.0) else stderr,
        "n_seeds": 0 if value is None else int(n_seeds), "budget": plain(budget or {}, f"budget of {cell}"),
        "exact": exact, "bound": bound, "note": " ".join(record["note"].split()),
    }  # fmt: skip


def measured(value) -> dict:
    """The fields that a figure fills: its value, its error, and what a summary knows of seeds and truth."""
    figure, stderr = value_and_error(value)
    fields = {"n_seeds": "seeds", "exact": "exact", "bound": "bound"} if hasattr(value, "value") else {}
    more = {field: getattr(value, name) for field, name in fields.items() if getattr(value, name, None) is not None}
    return {"value": figure, "stderr": stderr} | more


def stays(row: dict, new: dict | None) -> bool:
    """Whether a row on record stays, given that of a run of a part."""
    return new is None or (row["n_seeds"] > new["n_seeds"] and row["budget"] == new["budget"])


def known(fields: Mapping, names: Sequence[str], where: str) -> dict:
    """The fields, after a check of their names."""
    for name in fields:
        check_choice("field", name, names, of=where)
    return dict(fields)


def _number(value, what: str, *, none: bool, nan: bool) -> float | None:
    """A finite float from an object that holds one number; None, and NaN as None, only where allowed."""
    if value is None and none:
        return None
    if value is None:
        raise ValueError(f'{what} is missing: give a finite number, or use status "not_run"')
    try:
        number = value.item() if hasattr(value, "item") else value
        number = None if isinstance(number, str | bytes | bool) else float(number)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise ValueError(f"{what} is of type {type(value).__name__}{shape}: give one number")
    if math.isnan(number) and nan:
        return None
    if not math.isfinite(number):
        instead = "None" if none else 'status "not_run"'
        raise ValueError(f"{what} is {number}: give a finite number, or use {instead}")
    return number


def plain(value, what: str):
    """The same value in types that JSON holds; array and tensor scalars become numbers."""
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{what}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [plain(v, what) for v in value]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain(value.tolist(), what)
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{what} is {value!r}, which JSON cannot hold: use numbers, text, lists and dicts")
