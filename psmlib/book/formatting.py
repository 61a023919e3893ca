"""Numbers, budgets and tables formatted as text and Markdown."""

import math
import re
from collections.abc import Mapping

import pandas as pd

from psmlib.book.paper_values import Printed

NOTHING = "–"  # what an empty cell shows
ROUNDING = 1e-12  # a standard error below this share of its figure is rounding, not noise

_FIGURE = re.compile(r"[−+(]*\d[\d,.]*(e[-+]?\d+)?( ± \d[\d,.e-]*\)?(e-?\d+)?)?†?( \([^)]*\))?")
_NO_FIGURE = (NOTHING, "not run", "needs data")  # cells that do not decide how a column is aligned
_FIRST = ("updates", "blocks", "parameters", "batch_size", "nfe", "steps", "samples")


def value_and_error(figure) -> tuple:
    """A figure and its standard error, which is None where there is none.

    Args:
        figure: A number, a pair (value, stderr), or an object with `value` and perhaps `stderr`, such as
            :class:`psmlib.evaluation.toys.Nll` or a row of a frame of results.

    Example:
        >>> value_and_error(0.5), value_and_error((0.5, 0.1))
        ((0.5, None), (0.5, 0.1))
    """
    if hasattr(figure, "value"):
        return figure.value, getattr(figure, "stderr", None)
    return figure if isinstance(figure, tuple) else (figure, None)


def fmt(value, stderr=None, digits: int = 3) -> str:
    """A figure as text, rounded to the digits that its standard error supports.

    Args:
        value: The figure, alone or with its standard error as :func:`value_and_error` takes it; None and NaN give
            a dash.
        stderr: Its standard error, shown to one digit, or to two if the first is a 1.
        digits: Decimals of a figure below 10 that comes without an error; larger ones show fewer.

    Example:
        >>> fmt(0.61234, 0.0041), fmt((0.61234, 0.00141)), fmt(51234.5, 320), fmt(0.58), fmt(8000)
        ('0.612 ± 0.004', '0.6123 ± 0.0014', '51,200 ± 300', '0.580', '8,000')
        >>> fmt(None), fmt(-2.5e-7, 3e-8), fmt(0.25, 0)
        ('–', '(−2.5 ± 0.3)e-07', '0.250')
    """
    if isinstance(value, Printed):
        return str(value)
    if stderr is None:
        value, stderr = value_and_error(value)
    if value is None or math.isnan(value):
        return NOTHING
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if stderr is None or not math.isfinite(stderr):
        return _bare(value, digits)
    stderr = float(stderr)
    if stderr == 0 or stderr < ROUNDING * abs(value):
        return _bare(value, digits)
    exponent = math.floor(math.log10(stderr))
    decimals = (1 if stderr / 10.0**exponent < 1.95 else 0) - exponent
    shared = math.floor(math.log10(max(abs(value), stderr)))
    if shared <= -4:
        scale, decimals = 10.0**-shared, decimals + shared
        return f"({_fixed(value * scale, decimals)} ± {_fixed(stderr * scale, decimals)})e{shared:03d}"
    if decimals > 9:
        return f"{_fixed(value, 9)} ± {stderr:.0e}"
    return f"{_fixed(value, decimals)} ± {_fixed(stderr, decimals)}"


def plus_minus(figure, *, sign: bool = False) -> str:
    """A figure and its standard error to three decimals each, for columns of figures to compare.

    Args:
        figure: The two, as :func:`value_and_error` takes them.
        sign: Whether a figure above 0 is given its sign.

    Example:
        >>> plus_minus((0.25, 0.0104)), plus_minus((0.25, 0.0104), sign=True), plus_minus((-1., 0.))
        ('0.250 ± 0.010', '+0.250 ± 0.010', '−1.000')
    """
    value, stderr = value_and_error(figure)
    shown = f"{value:{'+' if sign else ''}.3f}" + (f" ± {stderr:.3f}" if stderr else "")
    return shown.replace("-", "−")


def interval(ratio, digits: int = 3) -> str:
    """A figure and the ends of its interval, from an object with `value`, `low` and `high`.

    Example:
        >>> from types import SimpleNamespace
        >>> interval(SimpleNamespace(value=1.5, low=1.41, high=1.6))
        '1.500 [1.41, 1.6]'
    """
    return f"{fmt(ratio.value)} [{ratio.low:.{digits}g}, {ratio.high:.{digits}g}]"


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
    """A budget in words.

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
    r"""A frame as a Markdown table: numbers aligned right, words left, pipes escaped.

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
        numeric = [all(c in _NO_FIGURE or _FIGURE.fullmatch(c) for c in cells) for cells in columns]
        align = "".join("r" if numbers else "l" for numbers in numeric)
    if len(align) != len(headings) or set(align) - set("lcr"):
        raise ValueError(f"align is {align!r}: give one of l, c, r for each of the {len(headings)} columns")
    padded = []
    for heading, cells, a in zip(headings, columns, align, strict=True):
        width, pad = max(3, *map(len, [heading, *cells])), str.rjust if a == "r" else str.ljust
        rule = {"l": ":{}-", "c": ":{}:", "r": "-{}:"}[a].format("-" * width)
        padded.append([f" {pad(heading, width)} ", rule, *(f" {pad(c, width)} " for c in cells)])
    return "\n".join(f"|{'|'.join(line)}|" for line in zip(*padded, strict=True))


def _cell(value) -> str:
    if isinstance(value, str):
        return _escape(value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value is None or pd.isna(value) else fmt(value)


def _escape(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))
