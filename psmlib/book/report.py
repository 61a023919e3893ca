"""Tables and sentences of the book, made from results and from the numbers that the papers print."""

import contextlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from psmlib.book.cells import below_bound, cells_of, joined_frame, what_ran, why_missing
from psmlib.book.formatting import NOTHING, fmt, interval, markdown_table, plus_minus
from psmlib.book.paper_values import paper_value, paper_values, status
from psmlib.book.record import STRENGTH, Record, beside
from psmlib.book.results import Results
from psmlib.machine import paths
from psmlib.machine.checks import check_choice
from psmlib.machine.files import write_atomic
from psmlib.machine.progress import in_notebook

EXACT = "exact score, same protocol"  # its figure; a model below it is no contradiction, one below the entropy is
FAMILY = (
    "Verdicts by Student's t at 5 %, two-sided, with Holm's correction over the lines with a gain and no other test."
)

# fmt, interval, plus_minus, paper_value and status are handed on, because a chapter's sentences need them
__all__ = [
    "compare", "fmt", "interval", "paper_value", "plus_minus", "ran", "sentence", "side_by_side", "status", "table",
    "this_run", "verdicts", "with_printed",
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
        results: A `Results`, the `Record` of several, a frame of one, or a list of these.
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
    found = joined_frame(results).query("paper == @paper and table == @table and metric == @metric")
    ours = found.to_dict("records")
    lines = []
    for cell in printed.itertuples():
        same_cell = [r for r in ours if (r["row"], r["column"]) == (cell.row, cell.column)]
        same = {"row": cell.row, "column": cell.column, "printed": str(cell.printed)}
        unfilled = same | {"status": f"not run: {reason or why_missing(results, cell.dataset)}"}
        lines += [same | cells_of(r) for r in same_cell] or [unfilled]
    cells = set(zip(printed["row"], printed["column"], strict=True))
    more = [r for r in ours if (r["row"], r["column"]) not in cells]
    for record in more + ([] if extra is None else extra.to_dict("records")):
        lines.append({"row": record["row"], "column": record["column"], "printed": NOTHING} | cells_of(record))
    frame = pd.DataFrame(sorted(lines, key=lambda line: "ours" not in line))  # what has a figure comes first
    bounded, errors = any(r["bound"] == r["bound"] for r in ours), any(r["stderr"] == r["stderr"] for r in ours)
    for field, kept in (("row", rows), ("column", columns)):
        frame = frame if kept is None else frame[frame[field].isin(kept)]
    titles = {
        "row": headings[0], "column": headings[1], "printed": "paper", "ours": "ours ± s.e. (seeds)",
        "exact": EXACT if bounded else "exact", "bound": "entropy", "excess": "ours less exact",
        "dataset": "data used", "budget": "budget", "run": "run", "status": "status",
    }  # fmt: skip
    frame = frame.reindex(columns=list(titles)).astype(object).fillna(NOTHING)
    if set(frame["dataset"]) <= {NOTHING, *frame["row"], *frame["column"]}:
        frame["dataset"] = NOTHING  # the row or the column says it already
    if len(set(frame["run"]) - {NOTHING}) == 1:
        frame["run"] = NOTHING  # the caption says it
    frame = frame.drop(
        columns=[f for f in ("exact", "bound", "excess", "dataset", "budget", "run") if set(frame[f]) == {NOTHING}]
    )
    unit = printed["unit"].iloc[0]
    measured = f"{metric}{'' if unit == '1' else f' in {unit}'}{', ± one standard error' if errors else ''}"
    name = name or f"tab-{paper}-{table}".replace("_", "-")
    caption = _caption(caption, [measured], results, found)
    _table(frame.rename(columns=titles), name, caption, css="psm-table psm-compare")


def with_printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame with the paper's own figures as a further column, "printed"; NaN where it has none.

    Example:
        >>> row = dict(paper="psm", table="1", row="TY", column="TPSM-C", metric="NLL")
        >>> with_printed(pd.DataFrame([row]))["printed"].tolist()
        [0.58]
    """
    fields = ["paper", "table", "row", "column", "metric"]
    printed = paper_values().rename(columns={"value": "printed_value"})[[*fields, "printed_value"]]
    return frame.merge(printed, on=fields, how="left").rename(columns={"printed_value": "printed"})


def side_by_side(
    results, table: str, headings: str, caption: str, *, rows: str = "row", columns: str | Sequence[str] = "column",
    name: str | None = None, exact: bool = True, **where,
) -> None:  # fmt: skip
    """Displays a pivot of results, such as methods down and data sets across, with the exact values under it.

    Figures below the entropy by three standard errors, which no density can be, are marked with a dagger.

    Args:
        results: A `Results`, the `Record` of several, a frame of one, or a list of these.
        table: Which of their tables.
        headings: Heading of the first column.
        caption: As for `table`; what was run is added to it.
        rows: The field that goes down.
        columns: The field, or fields, that go across.
        name: Label of the table. If None, tab-<table>.
        exact: Whether to show the exact values and entropies, where there are any: as last lines, or in each cell if
            one column holds several.
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
    if frame.empty and isinstance(results, Record):
        sentence("Nothing is on record yet: run this chapter.")
        return
    frame = frame.assign(_across=frame[across].agg(", ".join, axis=1) if len(frame) else "")
    twice = frame[frame.duplicated([rows, "_across"])]
    if len(twice):
        cell = f"{twice[rows].iloc[0]} / {twice['_across'].iloc[0]}"
        raise ValueError(f"{cell} has more than one result: narrow the choice, for instance by metric=...")
    known = frame.groupby("_across", sort=False)[["exact", "bound"]].agg(["nunique", "first"])
    several = (known["exact"]["nunique"] > 1).any()

    def text(value, stderr, of_exact, bound, status: str) -> str:
        shown = status.replace("_", " ") if pd.isna(value) else fmt(value, stderr)
        shown += "†" if below_bound(value, stderr, bound) else ""
        return f"{shown} (exact {fmt(of_exact)})" if exact and several and not pd.isna(of_exact) else shown

    strongest = min(frame["profile"], key=STRENGTH.index) if "profile" in frame and len(frame) else None
    fields = frame[["value", "stderr", "exact", "bound", "status"]]
    frame["_text"] = [text(*cell) for cell in fields.itertuples(index=False)]
    if strongest and frame["profile"].nunique() > 1:
        frame["_text"] += ["" if p == strongest else f" *{p}*" for p in frame["profile"]]
    shown = frame.pivot(index=rows, columns="_across", values="_text")
    shown = shown.reindex(index=frame[rows].unique(), columns=known.index).fillna(NOTHING)
    titles = {"exact": EXACT if known["bound"]["nunique"].any() else "exact", "bound": "entropy"}
    for field, title in titles.items() if exact else ():
        if (known[field]["nunique"] <= 1).all() and known[field]["nunique"].any():
            shown.loc[f"*{title}*"] = known[field]["first"].map(fmt)
    marked = shown.map(lambda cell: "†" in str(cell)).any().any()
    said = ["shown ± one standard error"] if frame["stderr"].notna().any() else []
    said += ["† below the entropy: an artefact of the solver"] if marked else []
    _table(shown.reset_index(names=headings), name or f"tab-{table}", _caption(caption, said, results, frame))


def _caption(caption: str, said: list[str], results, frame: pd.DataFrame) -> str:
    """A caption with what its figures are and which runs they are of."""
    text = "; ".join([*said, *filter(None, [what_ran(results, frame)])])
    return f"{caption} {text[:1].upper()}{text[1:]}{'.' if text else ''}"


def ran(results, frame: pd.DataFrame) -> str:
    """What was run to get the rows of a frame, as a sentence for the caption of a picture."""
    return _caption("", [], results, frame).strip()


def verdicts(results: Results | Record, *, name: str, caption: str = "Claims and verdicts.") -> None:
    """Displays the claims of a notebook, each with its test, effect, verdict and evidence.

    What the papers claim and what we ask ourselves stand in tables of their own, the second named <name>-ours if there
    are both.

    Args:
        results: Their `Results`, or the `Record` of several.
        name, caption: As for `table`.
    """
    ours = [line for line in results.verdicts if line["paper"] == "ours"]
    papers = [line for line in results.verdicts if line["paper"] != "ours"]
    both = bool(ours and papers)
    for lines, own in ((papers, False), (ours, True)):
        if lines:
            frame = pd.DataFrame([_verdict(line) for line in lines]).dropna(axis="columns", how="all")
            said = f"{caption} {'Our own questions' if own else 'What the paper claims'}." if both else caption
            if "run" in frame and frame["run"].nunique() == 1:
                said += f" Profile {frame.pop('run').iloc[0]}."
            said += f" {FAMILY}" if any(line.get("p") is not None for line in lines) else ""
            label = f"{name}-ours" if both and own else name
            table(frame, label, said, "l" * frame.shape[1], css="psm-table psm-verdicts")


def this_run(results: Results, record: Record, *, name: str) -> None:
    """Displays the figures of a run beside those on record, at the same budget or a larger one, cell by cell.

    Args:
        results: The run.
        record: What was on record.
        name: Label of the table.
    """
    frame = beside(results, record)
    if frame.empty:
        sentence("No stronger run is on record: this one is what the tables will show.")
        return
    lines = []
    for row in frame.to_dict("records"):
        cell = " / ".join(dict.fromkeys(row[field] for field in ("row", "column", "metric")))
        line = {"table": row["table"], "cell": cell, "this run": fmt(row["value"], row["stderr"])}
        line["on record"] = fmt(row["recorded"], row["recorded_stderr"])
        lines.append(line | {"of": row["recorded_profile"], "agreement": row["agreement"]})
    odd = sum("**no**" in line["agreement"] for line in lines)
    caption = f"This run, of profile {results.profile}, beside the record. "
    caption += f"{odd} of {len(lines)} cells disagree at the same budget." if odd else ""
    table(lines, name, caption, css="psm-table psm-record")


def _verdict(line: Mapping) -> dict[str, str | None]:
    """The cells of a claim."""
    where = f" ({line['section']})" if line.get("section") else ""
    quote = f" *“{line['quote']}”*" if line.get("quote") else ""
    effect = None
    if line.get("gain") is not None:
        unit = f" {line['unit']}" if line.get("unit") else ""
        ends = [line.get(end) for end in ("low", "high")]
        error = None if None in ends else (ends[1] - ends[0]) / 4
        parts = [_signed(value, error) for value in (line["gain"], *ends)]
        effect = f"{parts[0]}{unit}" if None in ends else f"{parts[0]} [{parts[1]}, {parts[2]}]{unit}"
    return {
        "claim": f"{line['claim']}{where}{quote}", "test": line["test"], "gain [95 %]": effect,
        "verdict": f"**{line['verdict']}**", "run": line.get("profile"), "evidence": line["evidence"] or None,
    }  # fmt: skip


def _signed(value: float, error: float | None) -> str:
    """A number with its sign, to the digits that an error of that size supports."""
    shown = re.sub(r"^\(?(\S+) ± [\d.,e-]+\)?", r"\1", fmt(value, error))  # "(9.8 ± 0.7)e-04" becomes "9.8e-04"
    return shown if shown.startswith("−") or not value else f"+{shown}"


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
