"""Roofline plots: a device's highest rate by operations per byte, with the measured rates below it."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from psmlib.book.plots.lines import MARKERS
from psmlib.book.plots.look import WIDTH, colours, finish, new_axes


def roofline(
    ceilings: Mapping[str, tuple[float, float]], points: Mapping[str, Mapping[str, tuple[float, float]]],
    caption: str = "",
) -> Figure:  # fmt: skip
    """Measured rates below the roofline of each device.

    Args:
        ceilings: Rate of products [GFLOP/s] and of copies [GB/s] by device.
        points: By device and kernel: operations a byte, and the measured rate [GFLOP/s].
        caption: What was measured.

    Raises:
        ValueError: when there is no device, or a rate is not positive.
    """
    if not ceilings:
        raise ValueError("a roofline needs the rates of a device: run python -m psmlib.bench device first")
    numbers = [n for pair in ceilings.values() for n in pair]
    numbers += [n for each in points.values() for pair in each.values() for n in pair]
    if not all(n > 0 for n in numbers):
        raise ValueError("rates and intensities of a roofline must be positive: leave out what was not measured")
    figure, axes = new_axes(1, len(ceilings), (WIDTH, 3.6), sharey=False)
    for (device, (product, copy)), ax in zip(ceilings.items(), axes[0], strict=True):
        mine = points.get(device, {})
        knee = product / copy
        reach = [knee / 30, knee * 30, *(x for x, _ in mine.values())]
        x = np.geomspace(min(reach) / 2, max(reach) * 2, 200)
        ax.loglog(x, np.minimum(product, copy * x), color="0.35", lw=1.6, zorder=1)
        ax.axvline(knee, color="0.75", lw=0.8, ls=":", zorder=0)
        for (name, (intensity, rate)), mark in zip(mine.items(), MARKERS * 3, strict=False):
            ax.loglog(intensity, rate, mark, ms=7, color=colours(mine)[name], label=name, zorder=2)
        ax.set(title=device, xlabel="operations a byte", ylabel="GFLOP/s")
        ax.grid(True, which="major")
        if mine:
            ax.legend(loc="lower right", fontsize=8)
    return finish(figure, caption)
