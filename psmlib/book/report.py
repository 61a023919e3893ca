"""Tables and sentences of the book, written from the results and from the papers' own numbers alone."""

from __future__ import annotations

import contextlib
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from psmlib.book.cells import as_printed, cells_of, joined_frame, what_ran, why_missing
from psmlib.book.formatting import NOTHING, fmt, markdown_table, plus_minus
from psmlib.book.paper_values import paper_value, paper_values
from psmlib.machine import paths
from psmlib.machine.files import write_atomic

# fmt, plus_minus and paper_value too, so that a chapter that imports report has all that its sentences need
__all__ = [
    "VERDICTS", "compare", "fmt", "glue", "paper_value", "plus_minus", "sentence", "side_by_side", "table",
    "verdict_less", "verdicts",
]  # fmt: skip

VERDICTS = ("holds", "does not hold", "not testable here", "undecided")


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
    name: str,
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
        name, caption: As for `table`; what was run is added to the caption.
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
    _table(frame.rename(columns=titles), name, f"{caption} {measured}{what_ran(results)}.", css="psm-table psm-compare")


def side_by_side(
    results,
    *,
    rows: str,
    columns: str | Sequence[str],
    name: str,
    caption: str,
    headings: str = "",
    floor: bool = True,
    **where,
) -> None:
    """Displays a pivot of results, such as methods down and data sets across, with the exact floor under it.

    Args:
        results: A `Results`, a frame of one, or a list of either.
        rows: The field that goes down, such as "column" where the paper's columns are methods.
        columns: The field, or fields, that go across.
        name, caption: As for `table`; what was run is added to the caption.
        headings: Heading of the first column.
        floor: Whether to show the exact values: as a last line, or in each cell if one column holds several.
        **where: Fields that must equal a value or be one of a list, such as metric="NLL".

    Raises:
        ValueError: when two results fall in one cell.
    """
    frame = joined_frame(results)
    across = [columns] if isinstance(columns, str) else list(columns)
    for field in (rows, *across, *where):
        if field not in frame.columns:
            raise ValueError(f"results have no field {field!r}: use one of {', '.join(frame.columns)}")
    for field, wanted in where.items():
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
    _table(pd.DataFrame(shown), name, f"{caption} Shown ± one standard error{what_ran(results)}.")


def verdicts(claims: Iterable[Mapping], *, name: str, caption: str = "Claims and verdicts.") -> None:
    """Displays the claims table.

    Args:
        claims: One dict per claim: claim, test, verdict (holds, does not hold, not testable here, undecided),
            evidence.
        name, caption: As for `table`.
    """
    fields = ("claim", "test", "verdict", "evidence")
    claims = list(claims)
    for claim in claims:
        if set(claim) != set(fields) or not all(isinstance(claim[f], str) and claim[f].strip() for f in fields):
            raise ValueError(f"claim {claim.get('claim')!r} must have text as {', '.join(fields)}, and no more")
        if claim["verdict"] not in VERDICTS:
            raise ValueError(f"verdict {claim['verdict']!r} of {claim['claim']!r}: use one of {', '.join(VERDICTS)}")
    frame = pd.DataFrame([c | {"verdict": f"**{c['verdict']}**"} for c in claims], columns=fields)
    table(frame, name, caption, "llll", css="psm-table psm-verdicts")


def verdict_less(a: float, sa: float, b: float, sb: float, z: float = 2.0) -> str:
    """Whether the claim a < b holds, judged by the difference in units of its standard error.

    Args:
        a, b: The two figures.
        sa, sb: Their standard errors; the figures are taken to be independent.
        z: How many standard errors the difference must reach to decide either way.

    Example:
        >>> verdict_less(.61, .02, .64, .02), verdict_less(.61, .005, .64, .005), verdict_less(2, .1, 1, .1)
        ('undecided', 'holds', 'does not hold')
    """
    for what, number in (("a", a), ("sa", sa), ("b", b), ("sb", sb)):
        if number is None or not math.isfinite(number):
            raise ValueError(f"verdict_less cannot judge with {what} = {number}: measure it, with several seeds")
    difference, error = float(b - a), math.hypot(sa, sb)
    if difference > 0 and difference >= z * error:
        return "holds"
    return "does not hold" if difference <= -z * error else "undecided"


def sentence(template: str, **numbers) -> None:
    """Displays a Markdown paragraph whose numbers come from variables.

    Args:
        template: Markdown with {names} as in str.format; braces of formulas are doubled.
        **numbers: Text as it is; numbers through `fmt` unless the template has a format; (value, stderr) too.

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
        if isinstance(value, tuple):
            return fmt(*value)
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
