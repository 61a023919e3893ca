"""Tables and sentences of the book, made from results and from the numbers that the papers print."""

import contextlib
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from psmlib.book.cells import as_printed, cells_of, joined_frame, what_ran, why_missing
from psmlib.book.formatting import NOTHING, fmt, interval, markdown_table, plus_minus, value_and_error
from psmlib.book.paper_values import paper_value, paper_values
from psmlib.book.results import Results
from psmlib.machine import paths
from psmlib.machine.checks import check_choice
from psmlib.machine.files import write_atomic
from psmlib.machine.progress import in_notebook

# fmt, interval, plus_minus and paper_value are handed on, because a chapter's sentences need them
__all__ = [
    "compare", "fmt", "interval", "paper_value", "plus_minus", "sentence", "side_by_side", "table", "verdict_less",
    "verdicts",
]  # fmt: skip


def table(
    frame: pd.DataFrame | Iterable[Mapping], name: str, caption: str, align: str | None = None, *,
    columns: Sequence[str] | None = None, css: str = "psm-table",
) -> None:  # fmt: skip
    """Displays a numbered, captioned table that other pages can cite as {numref}`name`.

    The same table goes to book/_generated/<name>.md for other pages to include. That copy has no label, because a
    label may occur only once in a book.

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
        write_atomic(paths.GENERATED / f"{name}.md", f"{head}:class: {css}\n\n{body}\n\n:::\n")


def compare(
    results, paper: str, table: str, *, caption: str, metric: str | None = None, name: str | None = None,
    headings: tuple[str, str] = ("row", "column"), rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None, extra: pd.DataFrame | None = None, reason: str | None = None,
) -> None:  # fmt: skip
    """Displays a paper's table beside ours: a line for each of its cells, then our further cells.

    Args:
        results: A `Results`, a frame of one, or a list of either.
        paper, table: The paper's table.
        metric: Which of its metrics; may be left out if it has only one.
        name: Label of the table. If None, tab-<paper>-<table>.
        caption: As for `table`; what was run is added to it.
        headings: Headings of the table's rows and of its columns.
        rows, columns: Show only these.
        extra: Further lines of ours, such as rows of paper "ours".
        reason: Why cells have no result, for those whose reason is not in the results.
    """
    printed = paper_values().query("paper == @paper and table == @table")
    metrics = sorted(set(printed["metric"]))
    if metric not in metrics and (metric or len(metrics) != 1):
        known = ", ".join(metrics) or "no such table"
        raise ValueError(f"metric of {paper} {table} is {metric!r}: use one of its own ({known})")
    metric = metric or metrics[0]
    printed = printed.query("metric == @metric")
    ours = joined_frame(results).query("paper == @paper and table == @table and metric == @metric").to_dict("records")
    lines = []
    for cell in printed.itertuples():
        found = [r for r in ours if (r["row"], r["column"]) == (cell.row, cell.column)]
        same = {"row": cell.row, "column": cell.column, "printed": as_printed(cell.value)}
        unfilled = same | {"status": f"not run: {reason or why_missing(results, cell.dataset)}"}
        lines += [same | cells_of(r) for r in found] or [unfilled]
    cells = set(zip(printed["row"], printed["column"], strict=True))
    more = [r for r in ours if (r["row"], r["column"]) not in cells]
    for record in more + ([] if extra is None else extra.to_dict("records")):
        lines.append({"row": record["row"], "column": record["column"], "printed": NOTHING} | cells_of(record))
    frame = pd.DataFrame(lines)
    for field, kept in (("row", rows), ("column", columns)):
        frame = frame if kept is None else frame[frame[field].isin(kept)]
    titles = {
        "row": headings[0], "column": headings[1], "printed": "paper", "ours": "ours ± s.e. (seeds)",
        "exact": "exact floor", "excess": "excess over floor", "dataset": "data used", "budget": "budget",
        "status": "status",
    }  # fmt: skip
    frame = frame.reindex(columns=list(titles)).astype(object).fillna(NOTHING)
    if set(frame["dataset"]) <= {NOTHING, *frame["row"], *frame["column"]}:
        frame["dataset"] = NOTHING  # the row or the column says it already
    frame = frame.drop(columns=[f for f in ("exact", "excess", "dataset", "budget") if set(frame[f]) == {NOTHING}])
    unit = printed["unit"].iloc[0]
    measured = f"{metric}{'' if unit == '1' else f' in {unit}'}, ± one standard error"
    caption = f"{caption} {measured}{what_ran(results)}."
    name = name or f"tab-{paper}-{table}".replace("_", "-")
    _table(frame.rename(columns=titles), name, caption, css="psm-table psm-compare")


def side_by_side(
    results, table: str, headings: str, caption: str, *, rows: str = "row", columns: str | Sequence[str] = "column",
    name: str | None = None, floor: bool = True, **where,
) -> None:  # fmt: skip
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
        check_choice("field", field, frame.columns, of="results")
    for field, wanted in (where | {"table": table}).items():
        frame = frame[frame[field].isin([wanted] if isinstance(wanted, str | float | int) else list(wanted))]
    frame = frame.assign(_across=frame[across].agg(", ".join, axis=1) if len(frame) else "")
    twice = frame[frame.duplicated([rows, "_across"])]
    if len(twice):
        cell = f"{twice[rows].iloc[0]} / {twice['_across'].iloc[0]}"
        raise ValueError(f"{cell} has more than one result: narrow the choice, for instance by metric=...")
    floors = frame.groupby("_across", sort=False)["exact"].agg(["nunique", "first"])
    several = (floors["nunique"] > 1).any()

    def text(value, stderr, exact, status: str) -> str:
        shown = status.replace("_", " ") if pd.isna(value) else fmt(value, stderr)
        return f"{shown} (floor {fmt(exact)})" if floor and several and not pd.isna(exact) else shown

    frame["_text"] = [text(*cell) for cell in frame[["value", "stderr", "exact", "status"]].itertuples(index=False)]
    shown = frame.pivot(index=rows, columns="_across", values="_text")
    shown = shown.reindex(index=frame[rows].unique(), columns=floors.index).fillna(NOTHING)
    if floor and not several and floors["nunique"].any():
        shown.loc["*exact floor*"] = floors["first"].map(fmt)
    caption = f"{caption} Shown ± one standard error{what_ran(results)}."
    _table(shown.reset_index(names=headings), name or f"tab-{table}", caption)


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
        a, b: The two figures, which are assumed to be independent: each an exact number, or a figure with its standard
            error as :func:`psmlib.book.formatting.value_and_error` takes it.
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
        **numbers: Text, or figures, which `fmt` formats unless the template gives a format.

    Raises:
        ValueError: when the template contains a decimal number, or its names and the numbers differ.

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


def _show(markdown: str) -> None:
    """Displays Markdown in a notebook and prints it elsewhere."""
    if in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(markdown))
    else:
        print(markdown)


_table = table  # `compare` has a parameter of the same name
