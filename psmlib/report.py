"""Tables and sentences of the book, written from the results and from the papers' own numbers alone."""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
import re
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from psmlib import paths
from psmlib.results import Results, device_name, write_atomic

VERDICTS = ("holds", "does not hold", "not testable here", "undecided")
NOTHING = "–"  # what an empty cell shows

_FIGURE = re.compile(r"[−+(]*\d[\d,.]*(e[-+]?\d+)?( ± \d[\d,.e-]*\)?(e-?\d+)?)?( \([^)]*\))?")
_CELL = ("paper", "table", "row", "column", "metric")
_FIRST = ("updates", "blocks", "parameters", "batch_size", "nfe", "steps", "samples")


def paper_values() -> pd.DataFrame:
    """Every number that the papers print: paper, table, dataset, row, column, metric, value, unit, note.

    Example:
        >>> paper_values().query("paper == 'psm' and table == '1' and metric == 'NLL'").shape[0]
        8
    """
    return _read_values(Path(paths.PAPER_VALUES)).copy()


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


def fmt(value, stderr=None, digits: int = 3) -> str:
    """A figure for the reader, to the digits that its standard error supports.

    Args:
        value: The figure; None and NaN give a dash.
        stderr: Its standard error, shown to one digit, or to two if the first is a 1.
        digits: Decimals of a figure below 10 that comes without an error; larger ones show fewer.

    Example:
        >>> fmt(0.61234, 0.0041), fmt(0.61234, 0.00141), fmt(51234.5, 320), fmt(0.58), fmt(8000)
        ('0.612 ± 0.004', '0.6123 ± 0.0014', '51,200 ± 300', '0.580', '8,000')
        >>> fmt(None), fmt(-2.5e-7, 3e-8), fmt(0.25, 0)
        ('–', '(−2.5 ± 0.3)e-07', '0.250 ± 0')
    """
    if value is None or math.isnan(value):
        return NOTHING
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if stderr is None or not math.isfinite(stderr):
        return _bare(value, digits)
    stderr = float(stderr)
    if stderr == 0:
        return f"{_bare(value, digits)} ± 0"
    exponent = math.floor(math.log10(stderr))
    decimals = (1 if stderr / 10.0**exponent < 1.95 else 0) - exponent
    shared = math.floor(math.log10(max(abs(value), stderr)))
    if shared <= -4:
        scale, decimals = 10.0**-shared, decimals + shared
        return f"({_fixed(value * scale, decimals)} ± {_fixed(stderr * scale, decimals)})e{shared:03d}"
    if decimals > 9:
        return f"{_fixed(value, 9)} ± {stderr:.0e}"
    return f"{_fixed(value, decimals)} ± {_fixed(stderr, decimals)}"


def _bare(value: float, digits: int) -> str:
    if value == round(value):
        return _fixed(value, 0)
    if abs(value) < 10.0**-digits:
        return f"{value:.{digits}g}".replace("-", "−", 1) if value < 0 else f"{value:.{digits}g}"
    return _fixed(value, max(0, digits - max(0, math.floor(math.log10(abs(value))))))


def _fixed(value: float, decimals: int) -> str:
    rounded = round(value, decimals) + 0.0  # no minus before a zero
    return f"{rounded:,.{max(0, decimals)}f}".replace("-", "−", 1)


def budget_words(budget: Mapping) -> str:
    """A budget as a reader would say it.

    Example:
        >>> budget_words({"blocks": 1, "updates": 8000, "nfe": 400, "solver": "rk4", "t0": 0.001})
        '8,000 updates, 1 block, 400 NFE, solver rk4, t0 = 0.001'
    """
    parts = []
    for key in sorted(budget, key=lambda k: (_FIRST.index(k) if k in _FIRST else len(_FIRST), k)):
        value, words = budget[key], "NFE" if key == "nfe" else key.replace("_", " ")
        unit, _, rest = words.partition(" ")
        if isinstance(value, bool) or value is None:
            parts.append(words if value else f"no {words}")
        elif isinstance(value, int | float) and (unit.endswith("s") or unit == "NFE"):
            unit = unit[:-1] if value == 1 and unit.endswith("s") else unit
            parts.append(f"{fmt(value)} {unit} {rest}".rstrip())
        elif isinstance(value, float):
            parts.append(f"{words} = {value:g}")
        elif isinstance(value, Mapping):
            parts.append(f"{words} ({budget_words(value)})")
        else:
            parts.append(f"{words} {f'{value:,}' if isinstance(value, int) else value}")
    return ", ".join(parts)


def markdown_table(frame: pd.DataFrame, align: str | None = None) -> str:
    r"""A frame as a Markdown table: numbers to the right, words to the left, pipes escaped.

    Args:
        frame: The table; its index is not shown.
        align: One of l, c, r for each column. If None, by what the column holds.

    Example:
        >>> print(markdown_table(pd.DataFrame({"method": ["a|b", "c"], "NLL": [0.5, None]})))
        | method |   NLL |
        |:-------|------:|
        | a\|b   | 0.500 |
        | c      |     – |
    """
    headings = [_escape(str(c)) for c in frame.columns]
    columns = [[_cell(v) for v in frame.iloc[:, i]] for i in range(len(headings))]
    if align is None:
        align = "".join("r" if _numeric(cells) else "l" for cells in columns)
    if len(align) != len(headings) or set(align) - set("lcr"):
        raise ValueError(f"align is {align!r}: give one of l, c, r for each of the {len(headings)} columns")
    lines = []
    widths = [max(3, len(h), *map(len, c), 3) for h, c in zip(headings, columns, strict=True)]
    for cells in [headings, None, *zip(*columns, strict=True)]:
        if cells is None:
            rules = {"l": ":{}-", "c": ":{}:", "r": "-{}:"}
            lines.append("|".join(rules[a].format("-" * w) for a, w in zip(align, widths, strict=True)))
            continue
        padded = [c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(cells, widths, align, strict=True)]
        lines.append("|".join(f" {c} " for c in padded))
    return "\n".join(f"|{line}|" for line in lines)


def _cell(value) -> str:
    if isinstance(value, str):
        return _escape(value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value is None or pd.isna(value) else fmt(value)


def _escape(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _numeric(cells: Sequence[str]) -> bool:
    figures = [c for c in cells if c not in (NOTHING, "not run", "needs data")]
    return all(_FIGURE.fullmatch(c) for c in figures)


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
    ours = _frame(results)
    ours = ours[(ours["paper"] == paper) & (ours["table"] == table) & (ours["metric"] == metric)]
    printed = printed[printed["metric"] == metric]
    lines, used = [], set()
    for cell in printed.itertuples():
        found = ours[(ours["row"] == cell.row) & (ours["column"] == cell.column)]
        used.update(found.index)
        same = {"row": cell.row, "column": cell.column, "printed": _printed(cell.value)}
        unfilled = same | {"status": f"not run: {reason or _reason(results, cell.dataset)}"}
        lines += [same | _line(r) for r in found.to_dict("records")] or [unfilled]
    more = ours.drop(index=list(used))
    for record in [*more.to_dict("records"), *([] if extra is None else extra.to_dict("records"))]:
        lines.append({"row": record["row"], "column": record["column"], "printed": NOTHING} | _line(record))
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
    _table(frame.rename(columns=titles), name, f"{caption} {measured}{_ran(results)}.")


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
    frame = _frame(results)
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
        cell = _line(record)
        text = cell["ours"].rpartition(" (")[0] if "ours" in cell else record["status"].replace("_", " ")
        if floor and several and "exact" in cell:
            text += f" (floor {cell['exact']})"
        lines.setdefault(record[rows], {})[record["_across"]] = text
    shown = [{headings: row} | {c: cells.get(c, NOTHING) for c in floors} for row, cells in lines.items()]
    if floor and not several and any(floors.values()):
        shown.append({headings: "*exact floor*"} | {c: fmt(f[0]) if f else NOTHING for c, f in floors.items()})
    _table(pd.DataFrame(shown), name, f"{caption} Shown ± one standard error{_ran(results)}.")


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


def _frame(results) -> pd.DataFrame:
    many = list(results) if isinstance(results, list | tuple) else [results]
    frames = [r.frame() if isinstance(r, Results) else r for r in many]
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def _line(record: Mapping) -> dict:
    """The cells that one result fills."""
    value, stderr, exact = (None if pd.isna(record[f]) else record[f] for f in ("value", "stderr", "exact"))
    words = record["status"].replace("_", " ")
    # A figure's note is its protocol, which the caption says for all; a missing or deviating one wants its reason.
    reason = record["note"] if record["status"] in ("not_run", "needs_data", "differs") else ""
    line = {"status": f"{words}: {reason}" if reason else words}
    if value is not None:
        line["ours"] = f"{fmt(value, stderr)} ({record['n_seeds']})"
    if exact is not None:
        line["exact"] = fmt(exact)
        line["excess"] = NOTHING if value is None else fmt(value - exact, stderr)
    return line | {
        "budget": budget_words(record["budget"]) or NOTHING,
        "dataset": record["dataset"] or NOTHING,
    }


def _printed(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(float(value)).replace("-", "−", 1)


def _runs(results) -> list[Results]:
    return [r for r in (results if isinstance(results, list | tuple) else [results]) if isinstance(r, Results)]


def _reason(results, dataset: str) -> str:
    """Why this run has no result for a cell of that data set, as far as its own parameters tell."""
    chosen = {r.parameters.get("dataset", "all") for r in _runs(results)}
    alone = chosen and not chosen & {"all", dataset}
    return f"this run is of {', '.join(sorted(chosen))} alone" if alone else "no result in this run"


def _ran(results) -> str:
    """What was run, for a caption."""
    said = {}
    for run in _runs(results):
        device = (run.provenance or {}).get("device") or device_name(str(run.parameters.get("device", "cpu")))
        said[f"profile {run.profile} on {device}"] = None
    return f"; {' and '.join(said)}" if said else ""


_table = table  # `compare` has a parameter of the same name
