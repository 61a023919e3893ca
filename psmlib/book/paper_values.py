"""The numbers that the papers print, from data/paper_values.toml."""

import difflib
import functools
import math
import tomllib
from decimal import Decimal
from pathlib import Path

import pandas as pd

from psmlib.machine import paths
from psmlib.machine.files import read_text, reading
from psmlib.standard_errors import Estimate, estimate

_CELL = ("paper", "table", "row", "column", "metric")


class Printed(float):
    """A number as a paper prints it, with all of its digits.

    Attributes:
        text: As it is printed, such as "0.330".
        rounding: Half a unit of its last digit.
        stderr: Standard deviation of an error that is uniform between minus and plus that.

    Example:
        >>> Printed("0.330").text, Printed("0.330").rounding, round(Printed("0.330").stderr, 6)
        ('0.330', 0.0005, 0.000289)
    """

    def __new__(cls, text: str):
        printed = super().__new__(cls, text)
        printed.text = text
        return printed

    def __getnewargs__(self):  # for pickling between processes
        return (self.text,)

    @property
    def rounding(self) -> float:
        return 0.5 * 10.0 ** Decimal(self.text).as_tuple().exponent

    @property
    def stderr(self) -> float:
        return self.rounding / math.sqrt(3)

    def measured(self, spread: float, points: int) -> Estimate:
        """The number as a mean over points of that standard deviation, with the errors of rounding and of the points.

        Example:
            >>> Printed("0.61").measured(spread=1.0, points=30_000)
            (0.61, 0.006454972243679028)
        """
        return Estimate(float(self), math.hypot(self.stderr, spread / points**0.5))

    def __str__(self) -> str:
        """The text, with a thin minus and commas between thousands as everywhere in the book."""
        whole, dot, decimals = self.text.lstrip("-").partition(".")
        return f"{'−' if self < 0 else ''}{int(whole):,}{dot}{decimals}"


def paper_values() -> pd.DataFrame:
    """Every number that the papers print: paper, table, dataset, row, column, metric, value, printed, unit, note.

    "printed" is a :class:`Printed`.

    Example:
        >>> paper_values().query("paper == 'psm' and table == '1' and metric == 'NLL'").shape[0]
        8
    """
    return _read_values(paths.PAPER_VALUES).copy()


def exhibits() -> dict[tuple[str, str], str]:
    """What each table without results and each figure of the papers shows, by paper and name, such as "fig2".

    Example:
        >>> exhibits()["psm", "fig1"]
        'a network for all times, and one per time'
    """
    return {(item["paper"], item["name"]): item["what"] for item in _read(paths.PAPER_VALUES)["exhibit"]}


@functools.cache
def _read(path: Path) -> dict:
    with reading(path.name, "restore it from the repository"):
        document = tomllib.loads(read_text(path), parse_float=Printed)
        for what, name in (("cell", "count"), ("exhibit", "exhibits")):
            if len(document[what]) != document[name]:
                raise ValueError(f"it has {len(document[what])} of [[{what}]] where it names {document[name]}")
        for cell in document["cell"]:
            texts = [cell[name] for name in (*_CELL, "dataset", "unit", "note")]
            if not all(isinstance(text, str) for text in texts) or not math.isfinite(cell["value"]):
                raise ValueError(f"it has the cell {cell}")
        for item in document["exhibit"]:
            if not all(isinstance(item[name], str) for name in ("paper", "name", "what")):
                raise ValueError(f"it has the exhibit {item}")
        return document


@functools.cache
def _read_values(path: Path) -> pd.DataFrame:
    cells = _read(path)["cell"]
    printed = [c["value"] if isinstance(c["value"], Printed) else Printed(str(c["value"])) for c in cells]
    values = pd.DataFrame(cells).astype({"value": float})
    return values.assign(printed=pd.Series(printed, dtype=object))


def paper_value(paper: str, table: str, row: str, column: str, metric: str) -> Printed:
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
    return frame["printed"].iloc[0]


def status(figure, profile: str, printed: Printed | None, *, full: bool | None = None) -> str:
    """The status of a result; only a run at the paper's own budget is compared with the paper's printed value.

    "reproduced" if the two differ by no more than the rounding of the printed one, "within_noise" if rounding and the
    95 % interval of ours explain the difference.

    Args:
        figure: Ours, as :func:`psmlib.standard_errors.estimate` takes it.
        profile: The budget of the run.
        printed: The paper's, if it has one.
        full: Whether the result has the paper's own budget; by default, at profile paper.

    Example:
        >>> status((.611, .01), "paper", Printed("0.62")), status(.611, "paper", Printed("0.61"))
        ('within_noise', 'reproduced')
    """
    if not (profile == "paper" if full is None else full):
        return "scaled_down"
    if printed is None:
        return "computed"
    gap = estimate(figure).minus(float(printed))
    if abs(gap.value) <= printed.rounding:
        return "reproduced"
    low, high = gap.interval()
    return "within_noise" if low - printed.rounding <= 0 <= high + printed.rounding else "differs"
