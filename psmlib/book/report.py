"""Tables and sentences of the book, made only from results and from the numbers that the papers print."""

from __future__ import annotations

import contextlib
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from psmlib.book.cells import as_printed, cells_of, joined_frame, what_ran, why_missing
from psmlib.book.formatting import NOTHING, fmt, interval, markdown_table, plus_minus, value_and_error
from psmlib.book.paper_values import paper_value, paper_values
from psmlib.book.results import Results
from psmlib.machine import paths
from psmlib.machine.files import write_atomic

# fmt, interval, plus_minus and paper_value too, so that a chapter that imports report has all that its sentences need
__all__ = [
    "compare", "fmt", "glue", "interval", "paper_value", "plus_minus", "sentence", "side_by_side", "table",
    "verdict_less", "verdicts",
]  # fmt: skip


def table(
    frame: pd.DataFrame | Iterable[Mapping],
    name: str,
    caption: str,
    align: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    css: str = "psm-table",
) -> None:
    """Displays a numbered, captioned table that other pages can cite as {numref}`name`.

    The same table goes to book/_generated/<name>.md for other pages to include. That copy has no label of its
    own, because a label may stand only once in a book.

    Args:
        frame: The rows; numbers are formatted by `fmt`, text is taken as Markdown.
        name: Label of the table: lower-case letters, digits and hyphens, unique in the book.
        caption: One sentence or more, as Markdown.
        align: One of l, c, r for each column. If None, numbers to the right, words to the left.
        columns: Which columns to show, in order. If None, all.
        css: Class of the table in the page.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"table name {name!r} cannot be cited: use lower-case letters, digits and single hyphens")
    frame = frame if isinstance(frame, pd.DataFrame) else pd.DataFrame(list(frame))
    if frame.empty:
        raise ValueError(f"table {name!r} has no rows: add results before it is shown")
    body = markdown_table(frame if columns is None else frame[list(columns)], align)
    head = f":::{{table}} {' '.join(caption.split())}\n"
    _show(f"{head}:name: {name}\n:class: {css}\n\n{body}\n\n:::")
    with contextlib.suppress(OSError):  # a reader may run a notebook where the book's folder cannot be written
        write_atomic(Path(paths.GENERATED) / f"{name}.md", f"{head}:class: {css}\n\n{body}\n\n:::\n")


def compare(
    results,
    paper: str,
    table: str,
    *,
    metric: str | None = None,
    name: str | None = None,
    caption: str,
    headings: tuple[str, str] = ("row", "column"),
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    extra: pd.DataFrame | None = None,
    reason: str | None = None,
) -> None:
    """Displays a paper's table beside ours: one line for each of its cells, then those that the paper lacks.

    Args:
        results: A `Results`, a frame of one, or a list of either.
        paper, table: The paper's table.
        metric: Which of its metrics; may be left out if it has only one.
        name: Label of the table. If None, tab-<paper>-<table>.
        caption: As for `table`; what was run is added to it.
        headings: What the table's rows and its columns stand for.
        rows, columns: Show only these.
        extra: More lines of ours to show under it, such as rows of paper "ours".
        reason: Why a cell has no result, where no row of the results says it.
    """
    printed = paper_values()
    printed = printed[(printed["paper"] == paper) & (printed["table"] == table)]
    metrics = sorted(set(printed["metric"]))
    if metric not in metrics and (metric or len(metrics) != 1):
        known = ", ".join(metrics) or "no such table"
        raise ValueError(f"metric of {paper} {table} is {metric!r}: use one of its own ({known})")
    metric = metric or metrics[0]
    ours = joined_frame(results)
    ours = ours[(ours["paper"] == paper) & (ours["table"] == table) & (ours["metric"] == metric)]
    printed = printed[printed["metric"] == metric]
    lines, used = [], set()
    for cell in printed.itertuples():
        found = ours[(ours["row"] == cell.row) & (ours["column"] == cell.column)]
        used.update(found.index)
        same = {"row": cell.row, "column": cell.column, "printed": as_printed(cell.value)}
        unfilled = same | {"status": f"not run: {reason or why_missing(results, cell.dataset)}"}
        lines += [same | cells_of(r) for r in found.to_dict("records")] or [unfilled]
    more = ours.drop(index=list(used))
    for record in [*more.to_dict("records"), *([] if extra is None else extra.to_dict("records"))]:
        lines.append({"row": record["row"], "column": record["column"], "printed": NOTHING} | cells_of(record))
    frame = pd.DataFrame(lines)
    for field, kept in (("row", rows), ("column", columns)):
        frame = frame if kept is None else frame[frame[field].isin(kept)]
    titles = {
        "row": headings[0],
        "column": headings[1],
        "printed": "paper",
        "ours": "ours ± s.e. (seeds)",
        "exact": "exact floor",
        "excess": "excess over floor",
        "dataset": "data used",
        "budget": "budget",
        "status": "status",
    }
    frame = frame.reindex(columns=list(titles)).astype(object).fillna(NOTHING)
    if set(frame["dataset"]) <= {NOTHING, *frame["row"], *frame["column"]}:
        frame["dataset"] = NOTHING  # the row or the column says it already
    empty = [f for f in ("exact", "excess", "dataset", "budget") if set(frame[f]) == {NOTHING}]
    frame = frame.drop(columns=empty)
    unit = printed["unit"].iloc[0]
    measured = f"{metric}{'' if unit == '1' else f' in {unit}'}, ± one standard error"
    caption = f"{caption} {measured}{what_ran(results)}."
    name = name or f"tab-{paper}-{table}".replace("_", "-")
    _table(frame.rename(columns=titles), name, caption, css="psm-table psm-compare")


def side_by_side(
    results,
    table: str,
    headings: str,
    caption: str,
    *,
    rows: str = "row",
    columns: str | Sequence[str] = "column",
    name: str | None = None,
    floor: bool = True,
    **where,
) -> None:
    """Displays a pivot of results, such as methods down and data sets across, with the exact floor under it.

    Args:
        results: A `Results`, a frame of one, or a list of either.
        table: Which of their tables.
        headings: Heading of the first column.
        caption: As for `table`; what was run is added to it.
        rows: The field that goes down.
        columns: The field, or fields, that go across.
        name: Label of the table. If None, tab-<table>.
        floor: Whether to show the exact values, where there are any: as a last line, or in each cell if one column
            holds several.
        **where: Fields that must equal a value or be one of a list, such as metric="NLL".

    Raises:
        ValueError: when two results fall in one cell.
    """
    frame = joined_frame(results)
    across = [columns] if isinstance(columns, str) else list(columns)
    for field in (rows, *across, *where):
        if field not in frame.columns:
            raise ValueError(f"results have no field {field!r}: use one of {', '.join(frame.columns)}")
    for field, wanted in (where | {"table": table}).items():
        frame = frame[frame[field].isin([wanted] if isinstance(wanted, str | float | int) else list(wanted))]
    frame = frame.assign(_across=frame[across].agg(", ".join, axis=1) if len(frame) else "")
    twice = frame[frame.duplicated([rows, "_across"])]
    if len(twice):
        cell = f"{twice[rows].iloc[0]} / {twice['_across'].iloc[0]}"
        raise ValueError(f"{cell} has more than one result: narrow the choice, for instance by metric=...")
    floors = {c: sorted(set(g["exact"].dropna())) for c, g in frame.groupby("_across", sort=False)}
    several = any(len(f) > 1 for f in floors.values())
    lines: dict[str, dict] = {}
    for record in frame.to_dict("records"):
        cell = cells_of(record)
        text = cell["ours"].rpartition(" (")[0] if "ours" in cell else record["status"].replace("_", " ")
        if floor and several and "exact" in cell:
            text += f" (floor {cell['exact']})"
        lines.setdefault(record[rows], {})[record["_across"]] = text
    shown = [{headings: row} | {c: cells.get(c, NOTHING) for c in floors} for row, cells in lines.items()]
    if floor and not several and any(floors.values()):
        shown.append({headings: "*exact floor*"} | {c: fmt(f[0]) if f else NOTHING for c, f in floors.items()})
    _table(pd.DataFrame(shown), name or f"tab-{table}", f"{caption} Shown ± one standard error{what_ran(results)}.")


def verdicts(results: Results, *, name: str, caption: str = "Claims and verdicts.") -> None:
    """Displays the claims of a notebook, each with its test, verdict and evidence.

    Args:
        results: Their results.
        name, caption: As for `table`.
    """
    fields = ["claim", "test", "verdict", "evidence"]
    frame = pd.DataFrame([line | {"verdict": f"**{line['verdict']}**"} for line in results.verdicts], columns=fields)
    table(frame, name, caption, "llll", css="psm-table psm-verdicts")


def verdict_less(a, b, z: float = 2.0) -> str:
    """Whether the claim a < b holds, judged by the difference in units of its standard error.

    Args:
        a, b: The two figures, which are taken to be independent: each a number that is exact, or a figure with its
            standard error as :func:`psmlib.book.formatting.value_and_error` takes it.
        z: How many standard errors the difference must reach to decide either way.

    Raises:
        ValueError: when a figure is not finite, or is a pair or summary without an error.

    Example:
        >>> verdict_less((.61, .02), (.64, .02)), verdict_less((.61, .005), (.64, .005)), verdict_less((2, .1), 1)
        ('undecided', 'holds', 'does not hold')
    """
    (a, sa), (b, sb) = ((x, 0.0) if _bare(x) else value_and_error(x) for x in (a, b))
    for what, number in (("a", a), ("the error of a", sa), ("b", b), ("the error of b", sb)):
        if number is None or not math.isfinite(number):
            raise ValueError(f"verdict_less cannot judge with {what} = {number}: measure it, with several seeds")
    difference, error = float(b - a), math.hypot(sa, sb)
    if difference > 0 and difference >= z * error:
        return "holds"
    return "does not hold" if difference <= -z * error else "undecided"


def _bare(figure) -> bool:
    return not isinstance(figure, tuple) and not hasattr(figure, "value")


def sentence(template: str, **numbers) -> None:
    """Displays a Markdown paragraph whose numbers come from variables.

    Args:
        template: Markdown with {names} as in str.format; braces of formulas are doubled.
        **numbers: Text as it is; all that `fmt` takes through it, unless the template has a format.

    Raises:
        ValueError: when the template types a decimal number itself, or lacks or misses a name.

    Example:
        >>> sentence("TPSM-B reaches {nll} nats in {updates} updates.", nll=(0.61234, 0.004), updates=8000)
        TPSM-B reaches 0.612 ± 0.004 nats in 8,000 updates.
    """
    pieces = list(string.Formatter().parse(template))
    if typed := re.search(r"(?<![\w.])\d*\.\d+", " ".join(text for text, *_ in pieces)):
        raise ValueError(f"sentence types the number {typed.group()} itself: pass it in by name")
    asked = {re.split(r"[.\[]", field)[0] for _, field, *_ in pieces if field is not None}
    if odd := asked ^ set(numbers):
        raise ValueError(f"sentence and its numbers disagree about {', '.join(sorted(odd))}: name each in both")
    _show(_Numbers().format(template, **numbers))


class _Numbers(string.Formatter):
    def format_field(self, value, format_spec: str) -> str:
        if isinstance(value, str):
            return format(value, format_spec)
        value = value.item() if hasattr(value, "item") else value
        return format(value, format_spec).replace("-", "−", 1) if format_spec else fmt(value)


def glue(name: str, value) -> None:
    """Keeps a value for other pages to show by {glue:text}; without myst_nb or a notebook it does nothing."""
    try:
        from myst_nb import glue as keep
    except ImportError:
        return
    if _in_notebook():
        keep(name, value.item() if hasattr(value, "item") else value, display=False)


def _in_notebook() -> bool:
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def _show(markdown: str) -> None:
    """Displays Markdown in a notebook and prints it elsewhere."""
    if _in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(markdown))
    else:
        print(markdown)


_table = table  # `compare` has a parameter of the same name
