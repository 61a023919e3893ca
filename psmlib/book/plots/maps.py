"""Maps of a quantity over the plane, and plots of one quantity against another."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from psmlib.book.plots.lines import MARKERS, distinct, label_decades
from psmlib.book.plots.look import DPI_DENSE, WIDTH, colours, finish, new_axes, nothing
from psmlib.book.plots.plane import BAR, image_panels, square


def map_row(
    panels: Mapping[str, object], extent: Sequence[float], label: str, caption: str = "", *, per_row: int = 3,
    ends: tuple[float, float] | None = None, logarithmic: bool = False,
) -> Figure:  # fmt: skip
    """Maps of one quantity on one colour scale.

    Args:
        panels: Values at the points of `grid` by title; NaN is shown in grey. Shape: (n * n,) or (n, n).
        extent: The extent that `grid` returned.
        label: Quantity and unit.
        caption: What was run.
        per_row: Panels in a row; more go below.
        ends: Both ends of the scale. If None, the 1 % and 99 % quantiles of all panels.
        logarithmic: Whether the scale is; values that are not positive get its lower end.
    """
    if not panels:
        return nothing()
    values = {title: square(panel) for title, panel in panels.items()}
    every = np.concatenate([v[np.isfinite(v)] for v in values.values()] or [np.ones(1)])
    every = every[every > 0] if logarithmic else every
    low, high = ends or tuple(np.quantile(every, [0.01, 0.99])) if every.size else (0.1, 1.0)
    norm = LogNorm(low, max(high, low * 1.01), clip=True) if logarithmic else Normalize(low, high)
    if logarithmic:
        values = {title: np.maximum(value, low) for title, value in values.items()}
    figure, axes = image_panels(values, extent, per_row, norm=norm, cmap="cividis")
    figure.colorbar(axes[-1].images[0], ax=axes, label=label, extend="both", **BAR)
    return finish(figure, caption, DPI_DENSE)


def pairs(
    frame: pd.DataFrame, x: str, y: str, caption: str = "", *, method: str = "method", panel: str = "dataset",
    xlabel: str = "", ylabel: str = "", logx: bool = True, logy: bool = True,
) -> Figure:  # fmt: skip
    """One quantity against another: a mark for each run, one colour for each method, one axis for each data set.

    Args:
        frame: A row for each run.
        x, y: The fields to set against each other.
        caption: What was run.
        method, panel: The fields that name the colour and the axis.
        xlabel, ylabel: Quantities with their units.
        logx, logy: Logarithmic axes.
    """
    names, titles = list(dict.fromkeys(frame[method])), list(dict.fromkeys(frame[panel]))
    if not names:
        return nothing()
    figure, axes = new_axes(1, len(titles), (WIDTH, 4.4), sharex=True, sharey=True)
    hues, shapes = colours(names), dict(zip(names, distinct(names, MARKERS), strict=True))
    for title, ax in zip(titles, axes[0], strict=True):
        for name in names:
            part = frame[(frame[panel] == title) & (frame[method] == name)]
            ax.plot(part[x], part[y], shapes[name], color=hues[name], alpha=0.8, label=name)
        ax.set(title=title, xlabel=xlabel, xscale="log" if logx else "linear", yscale="log" if logy else "linear")
        ax.grid()
        label_decades(ax)
    axes[0, 0].set_ylabel(ylabel)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return finish(figure, caption)
