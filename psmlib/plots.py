"""Figures of the book: one look, one colour per method, legible on a phone.

Every function returns a `Figure` that pyplot no longer holds, so that a notebook shows it exactly once: end
the cell with the call, or `display(figure)`. `caption` goes under the picture and says what was run.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from psmlib import paths
from psmlib.results import write_atomic

WIDTH = 6.4  # inches; a phone shows it at about half of its size, hence the large type
DPI_LINES, DPI_DENSE = 160, 110
DENSITY_MAP = "magma"
FLOOR_COLOUR = "#222222"

# Okabe and Ito's colours, then Tol's muted ones: both told apart by colour-blind readers.
METHOD_COLOURS = {
    "SA-DPM": "#D55E00",
    "TPSM-A": "#E69F00",
    "TPSM-B": "#009E73",
    "TPSM-C": "#0072B2",
    "TPSM-10blocks": "#56B4E9",
    "DPSM": "#CC79A7",
    "OT flow matching": "#882255",
    "DDPM": "#999933",
    "exact": FLOOR_COLOUR,
    "paper": "#555555",
}
OTHER_COLOURS = ("#332288", "#117733", "#AA4499", "#44AA99", "#661100", "#6699CC", "#888888")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")


def style() -> None:
    """Sets matplotlib to the book's look: opaque white, large type, colour-blind-safe cycle.

    Example:
        >>> style()
        >>> plt.rcParams["figure.facecolor"], plt.rcParams["savefig.transparent"]
        ('white', False)
    """
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.figsize": (WIDTH, 4.0),
            "figure.dpi": DPI_LINES,
            "figure.constrained_layout.use": True,  # for the reader's own figures
            "savefig.facecolor": "white",
            "savefig.transparent": False,
            "savefig.dpi": "figure",
            "axes.facecolor": "white",
            "axes.edgecolor": "#444444",
            "axes.grid": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 13,
            "axes.labelsize": 13,
            "axes.prop_cycle": plt.cycler(color=[*list(METHOD_COLOURS.values())[:8], *OTHER_COLOURS]),
            "font.size": 12,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "legend.fontsize": 11.5,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "lines.markersize": 7.0,
            "grid.color": "#dddddd",
            "image.origin": "lower",
            "svg.fonttype": "none",
            "svg.hashsalt": "psmlib",
        }
    )


def colour(name: str) -> str:
    """The colour of a method, the same in every figure; "TPSM-B, conditioned" has the colour of TPSM-B.

    Example:
        >>> colour("TPSM-B") == colour("TPSM-B, conditioned") != colour("TPSM-A")
        True
    """
    known = [m for m in METHOD_COLOURS if name == m or name.startswith((f"{m} ", f"{m},"))]
    if known:
        return METHOD_COLOURS[max(known, key=len)]
    # Python's own hash changes from run to run.
    return OTHER_COLOURS[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(OTHER_COLOURS)]


def grid(
    lo: float | Sequence[float], hi: float | Sequence[float], n: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Centres of n x n equal cells over a window, so that a sum times the cell's area is an integral.

    Args:
        lo, hi: Lower left and upper right corner; a single number stands for both coordinates.
        n: Cells along each side.
        dtype: Type of the points. If None, torch's default.

    Returns:
        Points of shape (n * n, 2), the first coordinate running fastest, and the extent (x0, x1, y0, y1).

    Example:
        >>> points, extent = grid(-1, 1, 2)
        >>> points.tolist(), extent
        ([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]], (-1.0, 1.0, -1.0, 1.0))
    """
    (x0, y0), (x1, y1) = ((float(v), float(v)) if np.isscalar(v) else map(float, v) for v in (lo, hi))
    if not (x0 < x1 and y0 < y1 and n >= 1):
        raise ValueError(f"grid from {lo} to {hi} with n = {n} has no cells: give lo below hi and n of at least 1")
    centres = (torch.arange(n, dtype=dtype or torch.get_default_dtype()) + 0.5) / n
    y, x = torch.meshgrid(y0 + (y1 - y0) * centres, x0 + (x1 - x0) * centres, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], dim=1), (x0, x1, y0, y1)


def density_panel(
    axes: Axes, log_prob_grid, extent: Sequence[float], title: str = "", *, vmax: float | None = None
) -> AxesImage:
    """Draws a density into axes.

    Args:
        axes: Where to draw.
        log_prob_grid: Log-density at the points of `grid`. Shape: (n * n,) or (n, n). NaN is shown in grey.
        extent: The extent that `grid` returned.
        title: Title of the panel.
        vmax: Density at the top of the colour scale. If None, the highest shown but for 0.2 %.
    """
    density = _density(log_prob_grid)
    image = axes.imshow(
        np.ma.masked_invalid(density),
        extent=tuple(extent),
        origin="lower",
        vmin=0.0,
        vmax=_top([density]) if vmax is None else vmax,
        cmap=plt.get_cmap(DENSITY_MAP).with_extremes(bad="#aaaaaa"),
        interpolation="nearest",
    )
    _bare(axes, title)
    return image


def density_row(
    panels: Mapping[str, object],
    extent: Sequence[float],
    caption: str = "",
    *,
    per_row: int = 3,
    vmax: float | None = None,
) -> Figure:
    """Densities side by side on one colour scale.

    Args:
        panels: Log-density on the points of `grid` by title. Shape: (n * n,) or (n, n).
        extent: The extent that `grid` returned.
        caption: What was run.
        per_row: Panels in a row; more go below.
        vmax: Density at the top of the scale. If None, the highest of all panels but for 0.2 %.
    """
    top = _top([_density(p) for p in panels.values()]) if vmax is None else vmax
    figure, axes = _panels(list(panels), extent, per_row)
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        image = density_panel(panel, values, extent, title, vmax=top)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, extend="max", pad=0.02)
    bar.set_label("density")
    return _finish(figure, caption, DPI_DENSE)


def scatter_row(
    samples: Mapping[str, object],
    extent: Sequence[float],
    caption: str = "",
    *,
    per_row: int = 3,
    limit: int = 4000,
) -> Figure:
    """Samples side by side in one window; below each is said how many are shown and how many lie outside.

    Args:
        samples: Points by title. Shape: (n, 2).
        extent: The window (x0, x1, y0, y1).
        caption: What was run.
        per_row: Panels in a row; more go below.
        limit: Show at most this many points, the first ones.
    """
    figure, axes = _panels(list(samples), extent, per_row)
    x0, x1, y0, y1 = extent
    for panel, (title, points) in zip(axes, samples.items(), strict=True):
        points = _array(points)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"samples {title!r} have shape {points.shape}: give points of shape (n, 2)")
        points = points[:limit]
        x, y = points.T
        inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)  # NaN counts as outside
        # Rasterised: thousands of vector dots make a page slow.
        panel.scatter(*points[inside].T, s=2.0, lw=0, alpha=0.6, color=colour(title), rasterized=True)
        panel.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        lost = int((~inside).sum())
        _bare(panel, title)
        panel.set_xlabel(f"{len(points):,} points" + (f", {lost:,} outside" if lost else ""), fontsize=11)
    return _finish(figure, caption, DPI_DENSE)


def bars(
    frame: pd.DataFrame,
    caption: str = "",
    *,
    method: str = "column",
    panel: str = "dataset",
    xlabel: str = "test NLL [nats]",
    printed: str | None = None,
) -> Figure:
    """One dot per method with its standard error, right of the exact floor; one axis per data set.

    Args:
        frame: Rows as `Results.frame()` gives them: value, stderr, exact and the fields named below.
        caption: What was run.
        method: The field that names the line.
        panel: The field that names the axis.
        xlabel: Metric and unit.
        printed: The field, if any, with the paper's own figure, shown as a hollow diamond.
    """
    names = list(dict.fromkeys(frame[method]))
    titles = list(dict.fromkeys(frame[panel]))
    if not names:
        raise ValueError("bars got a frame without rows: choose results that were added")
    height = 1.7 + 0.32 * len(names)
    figure, axes = _axes(1, len(titles), (WIDTH, height), sharey=True)
    shape = dict(zip(names, _distinct(names, MARKERS), strict=True))
    for index, (title, ax) in enumerate(zip(titles, axes[0], strict=True)):
        part = frame[frame[panel] == title]
        floors = part["exact"].dropna().unique()
        if len(floors) == 1:
            ax.axvline(floors[0], color=FLOOR_COLOUR, ls="--", lw=1.4, zorder=1, label="exact floor")
        for record in part.to_dict("records"):
            y, hue = names.index(record[method]), colour(record[method])
            if len(floors) > 1 and not pd.isna(record["exact"]):
                ax.plot([record["exact"]] * 2, [y - 0.35, y + 0.35], color=FLOOR_COLOUR, lw=1.6)
            if printed and not pd.isna(record[printed]):
                ax.plot(record[printed], y, "D", mfc="none", mec=METHOD_COLOURS["paper"], mew=1.5, zorder=2)
            if pd.isna(record["value"]):
                ax.text(
                    0.98,
                    y,
                    "not run",
                    transform=ax.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    color="0.4",
                )
            else:
                error = None if pd.isna(record["stderr"]) else record["stderr"]
                mark = shape[record[method]]
                ax.errorbar(record["value"], y, xerr=error, fmt=mark, color=hue, capsize=4, zorder=3)
        ax.set(title=title, xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=6)
        ax.margins(x=0.12)
        if index:
            ax.tick_params(axis="y", length=0)
    said = ["bars: ± one standard error"]
    said += ["dashed line: exact floor"] if frame["exact"].notna().any() else []
    said += ["diamonds: the paper's figure"] if printed and frame[printed].notna().any() else []
    return _finish(figure, f"{'; '.join(said)}. {caption}")


def curves(
    x,
    lines: Mapping[str, tuple],
    floor=None,
    logx: bool = False,
    logy: bool = False,
    xlabel: str = "",
    ylabel: str = "",
    caption: str = "",
) -> Figure:
    """Lines with bands of one standard error.

    Args:
        x: Where the lines were measured. Shape: (n,).
        lines: (mean, stderr) by name, each of shape (n,); stderr may be None.
        floor: The exact value: a number, or one for each x. Shape: () or (n,).
        logx, logy: Logarithmic axes.
        xlabel, ylabel: Quantities with their units.
        caption: What was run.
    """
    x = _array(x)
    figure, [[ax]] = _axes(1, 1, (WIDTH, 4.2))
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    if floor is not None:
        level = np.broadcast_to(_array(floor), x.shape)
        ax.plot(x, level, color=FLOOR_COLOUR, ls=(0, (5, 2)), lw=1.5, label="exact", zorder=1)
    for (name, (mean, stderr)), dash in zip(lines.items(), _distinct(lines, LINES), strict=True):
        mean = _array(mean)
        if mean.shape != x.shape:
            raise ValueError(f"curve {name!r} has shape {mean.shape} but x has {x.shape}: give one mean for each x")
        ax.plot(x, mean, color=colour(name), ls=dash, label=name)
        if stderr is not None:
            low, high = mean - _array(stderr), mean + _array(stderr)
            if logy:
                low = np.where(low > 0, low, mean / 100)  # a logarithmic axis has no room for zero
            ax.fill_between(x, low, high, color=colour(name), alpha=0.22, lw=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid()
    figure.legend(loc="outside upper center", ncols=2 if len(lines) > 1 else 1)
    return _finish(figure, caption)


def timeline(edges_by_name: Mapping[str, object], caption: str = "") -> Figure:
    """The idea in one picture: diffusion time, cut in blocks, one network for each.

    Args:
        edges_by_name: Edges from 0 to T, or a `Partition`, by method. Time points are shown as ticks.
        caption: What the picture says.
    """
    names = list(edges_by_name)
    figure, [[ax]] = _axes(1, 1, (WIDTH, 1.3 + 0.5 * len(names)))
    last = 0.0
    for y, (name, split) in enumerate(edges_by_name.items()):
        edges = _array(getattr(split, "edges", split))
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(f"timeline {name!r} has edges {edges.tolist()}: give two or more in ascending order")
        k, last = len(edges) - 1, max(last, edges[-1])
        if getattr(split, "discrete", False):
            ax.vlines(edges[1:], y - 0.32, y + 0.32, color=colour(name), lw=min(1.5, 150 / k))
            ax.text(1.015 * edges[-1], y, f"{k:,} points", va="center")
            continue
        shades = [_lighter(colour(name), s) for s in (0.0, 0.45)]
        fill = [shades[i % 2] for i in range(k)]
        ax.barh([y] * k, np.diff(edges), left=edges[:-1], height=0.64, color=fill, lw=0)
        ax.text(1.015 * edges[-1], y, f"{k:,} block{'s' if k > 1 else ''}", va="center")
    ax.set(xlim=(0, 1.22 * last), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_xticks(np.linspace(0, last, 6))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlabel("diffusion time t, from data (left) to noise (right)", x=0.0, ha="left")
    return _finish(figure, caption)


def save(figure: Figure, name: str, ending: str = "png") -> Path:
    """Writes a figure to book/_generated/<name>.<ending> for {figure} on other pages; returns where it is."""
    buffer = io.BytesIO()
    # Dates and versions would make equal pictures differ.
    stamps = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.get(ending)
    figure.savefig(buffer, format=ending, metadata=stamps, bbox_inches="tight")
    return write_atomic(Path(paths.GENERATED) / f"{name}.{ending}", buffer.getvalue())


def _array(values) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)


def _density(log_prob_grid) -> np.ndarray:
    density = np.exp(_array(log_prob_grid))
    n = math.isqrt(density.size)
    if n * n != density.size or density.ndim > 2 or (density.ndim == 2 and density.shape != (n, n)):
        raise ValueError(f"a density of shape {density.shape} is no square: evaluate it at the points of grid(...)")
    return density.reshape(n, n)


def _top(densities: Sequence[np.ndarray]) -> float:
    """Where a shared colour scale ends: an outlier of a bad model must not turn every other panel black."""
    finite = [d[np.isfinite(d)] for d in densities]
    return max((float(np.quantile(d, 0.998)) for d in finite if d.size), default=1.0) or 1.0


def _panels(titles: Sequence[str], extent: Sequence[float], per_row: int) -> tuple[Figure, list[Axes]]:
    if not titles:
        raise ValueError("a row of panels needs at least one: give a dict of title and values")
    columns = min(per_row, len(titles))
    rows = math.ceil(len(titles) / columns)
    side = (WIDTH - 0.9) / max(columns, 2)
    height = rows * (side * (extent[3] - extent[2]) / (extent[1] - extent[0]) + 0.45)
    figure, axes = _axes(rows, columns, (0.9 + side * columns, height))
    flat = list(axes.flat)
    for spare in flat[len(titles) :]:
        spare.remove()
    return figure, flat[: len(titles)]


def _axes(rows: int, columns: int, size: tuple[float, float], **options) -> tuple[Figure, np.ndarray]:
    """Axes in a grid whose layout makes room for every label, whether or not `style` was called."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    plt.close(figure)  # at once: after an error a half-drawn figure would turn up below some other cell
    return figure, axes


def _bare(axes: Axes, title: str) -> None:
    axes.set_title("\n".join(textwrap.wrap(title, 20)), fontsize=12)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def _distinct(names, kinds: Sequence[str]) -> list[str]:
    """The first kind for the first of each colour, the next one for the next of that colour, and so on."""
    seen: dict[str, itertools.count] = {}
    return [kinds[next(seen.setdefault(colour(n), itertools.count())) % len(kinds)] for n in names]


def _lighter(hue: str, share: float) -> tuple[float, ...]:
    rgb = np.array(plt.matplotlib.colors.to_rgb(hue))
    return tuple(rgb + share * (1 - rgb))


def _finish(figure: Figure, caption: str, dpi: int = DPI_LINES) -> Figure:
    """Sets the resolution and writes the caption under the picture."""
    figure.set_dpi(dpi)
    if caption.strip():
        text = textwrap.fill(" ".join(caption.split()), int(figure.get_figwidth() * 13.5))
        figure.supxlabel(text, fontsize=11, color="0.25")
    return figure
