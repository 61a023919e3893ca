"""Style of all figures: fonts, colours, what was run, and the file that other pages show."""

import io
import itertools
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from psmlib.book.captions import KEY
from psmlib.machine import paths
from psmlib.machine.files import write_atomic

WIDTH = 6.4  # inches; a phone shows it at about half of its size, hence the large type
DPI_LINES, DPI_DENSE = 160, 110
EXACT_COLOUR = "#222222"

# Okabe and Ito's colours, then Tol's muted ones: colour-blind readers can distinguish both.
METHOD_COLOURS = {
    "SA-DPM": "#D55E00", "TPSM-A": "#E69F00", "TPSM-B": "#009E73", "TPSM-C": "#0072B2", "TPSM-10blocks": "#56B4E9",
    "DPSM": "#CC79A7", "OT flow matching": "#882255", "DDPM": "#999933", "exact": EXACT_COLOUR, "paper": "#555555",
}  # fmt: skip
# The darkest come last: on them the dashes of an exact line do not show.
OTHER_COLOURS = ("#AA4499", "#117733", "#6699CC", "#44AA99", "#888888", "#661100", "#332288")


class _CaptionedFigure(Figure):
    """A figure that carries what was run in the metadata of its output, from where it gets into the book's caption.

    Attributes:
        said: What was run, as Markdown.
    """

    said = ""

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        """No picture, which IPython adds, and the metadata of the output."""
        return {}, {KEY: self.said} if self.said else {}


def style() -> None:
    """Sets matplotlib to the style of the book: opaque white, large type, a colour-blind-safe cycle.

    Example:
        >>> style()
        >>> plt.rcParams["figure.facecolor"], plt.rcParams["savefig.transparent"]
        ('white', False)
    """
    cycle = plt.cycler(color=[*list(METHOD_COLOURS.values())[:8], *OTHER_COLOURS])
    settings = {
        "figure.facecolor": "white", "figure.figsize": (WIDTH, 4.0), "figure.dpi": DPI_LINES,
        "figure.constrained_layout.use": True,  # for the reader's own figures
        "savefig.facecolor": "white", "savefig.transparent": False, "savefig.dpi": "figure",
        "axes.facecolor": "white", "axes.edgecolor": "#444444", "axes.grid": False, "axes.prop_cycle": cycle,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 13, "axes.labelsize": 13,
        "font.size": 12, "xtick.labelsize": 12, "ytick.labelsize": 12,
        "legend.fontsize": 11.5, "legend.frameon": False, "lines.linewidth": 2.0, "lines.markersize": 7.0,
        "grid.color": "#dddddd", "image.origin": "lower", "svg.fonttype": "none", "svg.hashsalt": "psmlib",
    }  # fmt: skip
    plt.rcParams.update(settings)


def colour(name: str) -> str:
    """The colour of a method, the same in every figure; "TPSM-B, conditioned" has the colour of TPSM-B.

    Example:
        >>> colour("TPSM-B") == colour("TPSM-B, conditioned") != colour("TPSM-A")
        True
    """
    return colours([name])[name]


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name of one figure: the fixed one of a method, and a different one for each other name.

    Example:
        >>> len(set(colours(["data", "noise", "SA-DPM"]).values()))
        3
    """
    spare, found = itertools.cycle(OTHER_COLOURS), {}
    for name in names:
        known = [m for m in METHOD_COLOURS if name == m or name.startswith((f"{m} ", f"{m},"))]
        found[name] = METHOD_COLOURS[max(known, key=len)] if known else next(spare)
    return found


def save(figure: Figure, name: str, ending: str = "png") -> Path:
    """Writes a figure to book/_generated/<name>.<ending> for {figure} on other pages; returns where it is."""
    buffer = io.BytesIO()
    # without dates and versions, which would make equal pictures differ
    stamps = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.get(ending)
    figure.savefig(buffer, format=ending, metadata=stamps, bbox_inches="tight")
    return write_atomic(paths.GENERATED / f"{name}.{ending}", buffer.getvalue())


def as_array(values) -> np.ndarray:
    """Numbers from a tensor, array or list, on the CPU in double precision."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)


def new_axes(rows: int, columns: int, size: tuple[float, float], **options) -> tuple[Figure, np.ndarray]:
    """Axes in a grid whose layout makes room for every label, whether or not `style` was called."""
    options |= dict(figsize=size, squeeze=False, layout="constrained", FigureClass=_CaptionedFigure)
    figure, axes = plt.subplots(rows, columns, **options)
    plt.close(figure)  # at once, because after an error a notebook would show the unfinished figure below another cell
    return figure, axes


def nothing() -> Figure:
    """A strip that says that nothing is on record yet, for a picture of the record without any of its arrays."""
    figure, [[ax]] = new_axes(1, 1, (WIDTH, 0.8))
    ax.axis("off")
    ax.text(0.5, 0.5, "Nothing is on record yet: run this chapter.", ha="center", va="center", color="0.4")
    return finish(figure, "")


def finish(figure: _CaptionedFigure, caption: str, dpi: int = DPI_LINES) -> _CaptionedFigure:
    """Sets the resolution and says what was run: in the caption of the book, else under the picture.

    Only the book has captions, and its runs have PSMLIB_BATCH in their environment.
    """
    figure.set_dpi(dpi)
    figure.said = " ".join(caption.split())
    if figure.said and not os.environ.get("PSMLIB_BATCH"):
        text = textwrap.fill(figure.said, int(figure.get_figwidth() * 13.5))
        figure.supxlabel(text, fontsize=11, color="0.25")
    return figure
