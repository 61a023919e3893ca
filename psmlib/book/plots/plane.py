"""Densities and samples in the plane, side by side."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from psmlib.book.plots.look import DPI_DENSE, WIDTH, as_array, colours, finish, new_axes, nothing

BAR = dict(shrink=0.8, aspect=25, pad=0.02)  # the shape of a colour bar


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


def density_row(
    panels: Mapping[str, object], extent: Sequence[float], caption: str = "", *, per_row: int = 3,
    vmax: float | None = None,
) -> Figure:  # fmt: skip
    """Densities side by side on one colour scale.

    Args:
        panels: Log-density at the points of `grid` by title; NaN is shown in grey. Shape: (n * n,) or (n, n).
        extent: The extent that `grid` returned.
        caption: What was run.
        per_row: Panels in a row; more go below.
        vmax: Density at the top of the scale. If None, the highest 99.8 % quantile of the panels.
    """
    if not panels:
        return nothing()
    densities = {title: np.exp(square(panel)) for title, panel in panels.items()}
    norm = Normalize(0.0, _top(densities.values()) if vmax is None else vmax)
    figure, axes = image_panels(densities, extent, per_row, norm=norm, cmap="magma", interpolation="nearest")
    figure.colorbar(axes[-1].images[0], ax=axes, label="density", extend="max", **BAR)
    return finish(figure, caption, DPI_DENSE)


def scatter_row(
    samples: Mapping[str, object], extent: Sequence[float], caption: str = "", *, per_row: int = 3, limit: int = 4000
) -> Figure:
    """Samples side by side in one window, with the numbers of points that are shown and that lie outside.

    Args:
        samples: Points by title. Shape: (n, 2).
        extent: The window (x0, x1, y0, y1).
        caption: What was run.
        per_row: Panels in a row; more go below.
        limit: Show at most this many points, the first ones.
    """
    if not samples:
        return nothing()
    figure, axes = panels_of(list(samples), extent, per_row)
    x0, x1, y0, y1 = extent
    hues = colours(samples)
    for panel, (title, points) in zip(axes, samples.items(), strict=True):
        points = as_array(points)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"samples {title!r} have shape {points.shape}: give points of shape (n, 2)")
        points = points[:limit]
        x, y = points.T
        inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)  # NaN counts as outside
        # rasterised, because thousands of vector dots make a page slow
        panel.scatter(*points[inside].T, s=2.0, lw=0, alpha=0.6, color=hues[title], rasterized=True)
        panel.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        lost = int((~inside).sum())
        bare(panel, title)
        panel.set_xlabel(f"{len(points):,} points" + (f", {lost:,} outside" if lost else ""), fontsize=11)
    return finish(figure, caption, DPI_DENSE)


def square(values) -> np.ndarray:
    """Values at the points of `grid` as a square matrix."""
    values = as_array(values)
    n = math.isqrt(values.size)
    if n * n != values.size or values.ndim > 2 or (values.ndim == 2 and values.shape != (n, n)):
        raise ValueError(f"values of shape {values.shape} are no square: evaluate them at the points of grid(...)")
    return values.reshape(n, n)


def _top(densities: Iterable[np.ndarray]) -> float:
    """The upper end of a shared colour scale, which outliers of one panel do not determine."""
    finite = [d[np.isfinite(d)] for d in densities]
    return max((float(np.quantile(d, 0.998)) for d in finite if d.size), default=1.0) or 1.0


def panels_of(titles: Sequence[str], extent: Sequence[float], per_row: int) -> tuple[Figure, list[Axes]]:
    """Square panels in rows."""
    if not titles:
        raise ValueError("a row of panels needs at least one: give a dict of title and values")
    columns = min(per_row, len(titles))
    rows = math.ceil(len(titles) / columns)
    side = (WIDTH - 0.9) / max(columns, 2)
    height = rows * (side * (extent[3] - extent[2]) / (extent[1] - extent[0]) + 0.45)
    figure, axes = new_axes(rows, columns, (0.9 + side * columns, height))
    flat = list(axes.flat)
    for spare in flat[len(titles) :]:
        spare.remove()
    return figure, flat[: len(titles)]


def image_panels(
    images: Mapping[str, np.ndarray], extent: Sequence[float], per_row: int, *, cmap: str, **look
) -> tuple[Figure, list[Axes]]:
    """Matrices as images in rows of square panels, NaN in grey; the colour scale is part of `look`."""
    figure, axes = panels_of(list(images), extent, per_row)
    look["cmap"] = plt.get_cmap(cmap).with_extremes(bad="#aaaaaa")
    for ax, (title, image) in zip(axes, images.items(), strict=True):
        ax.imshow(np.ma.masked_invalid(image), extent=tuple(extent), origin="lower", **look)
        bare(ax, title)
    return figure, axes


def bare(axes: Axes, title: str) -> None:
    """Sets a title and a frame without ticks."""
    axes.set_title("\n".join(textwrap.wrap(title, 18)), fontsize=12)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
