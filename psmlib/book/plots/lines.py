"""Figures of numbers: dots with errors, curves with error bands, and partitions of time."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from psmlib.book.plots.look import EXACT_COLOUR, METHOD_COLOURS, WIDTH, as_array, colours, finish, new_axes, nothing

LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def bars(
    frame: pd.DataFrame, caption: str = "", *, method: str = "column", panel: str = "dataset",
    xlabel: str = "test NLL [nats]", printed: str | None = None,
) -> Figure:  # fmt: skip
    """One dot per method with its standard error, with the exact value; one axis per data set.

    Args:
        frame: Rows as `Results.frame()` gives them: value, stderr, exact and the fields named below.
        caption: What was run.
        method: The field that names the line.
        panel: The field that names the axis.
        xlabel: Metric and unit.
        printed: The field, if any, with the paper's own figure, shown as a hollow diamond.
    """
    names, panels = list(dict.fromkeys(frame[method])), frame.groupby(panel, sort=False)
    if not names:
        return nothing()
    figure, axes = new_axes(1, len(panels), (WIDTH, 1.7 + 0.32 * len(names)), sharey=True)
    shape, hues = dict(zip(names, distinct(names, MARKERS), strict=True)), colours(names)
    for ax, (title, part) in zip(axes[0], panels, strict=True):
        known = part["exact"].dropna().unique()
        if len(known) == 1:
            ax.axvline(known[0], color=EXACT_COLOUR, ls="--", lw=1.4, zorder=1, label="exact")
        for bound in part["bound"].dropna().unique():
            ax.axvline(bound, color=EXACT_COLOUR, ls=":", lw=1.4, zorder=1, label="entropy")
        for record in part.to_dict("records"):
            y, hue = names.index(record[method]), hues[record[method]]
            if len(known) > 1 and not pd.isna(record["exact"]):
                ax.plot([record["exact"]] * 2, [y - 0.35, y + 0.35], color=EXACT_COLOUR, lw=1.6)
            if printed and not pd.isna(record[printed]):
                ax.plot(record[printed], y, "D", mfc="none", mec=METHOD_COLOURS["paper"], mew=1.5, zorder=2)
            if pd.isna(record["value"]):
                place = dict(transform=ax.get_yaxis_transform(), ha="right", va="center")
                ax.text(0.98, y, "not run", color="0.4", **place)
            else:
                error = None if pd.isna(record["stderr"]) else record["stderr"]
                ax.errorbar(record["value"], y, xerr=error, fmt=shape[record[method]], color=hue, capsize=4, zorder=3)
        ax.set(title=title, xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=6)
        ax.margins(x=0.12)
    for ax in axes[0, 1:]:
        ax.tick_params(axis="y", length=0)
    said = ["Bars: ± one standard error"]
    said += ["dashed line: the exact score under the same protocol"] if frame["exact"].notna().any() else []
    said += ["dotted line: the entropy"] if frame["bound"].notna().any() else []
    said += ["diamonds: the paper's figure"] if printed and frame[printed].notna().any() else []
    return finish(figure, f"{'; '.join(said)}. {caption}")


def curves(
    x, lines: Mapping[str, tuple], exact=None, logx: bool = False, logy: bool = False, xlabel: str = "",
    ylabel: str = "", caption: str = "", marks: Sequence[float] = (), exact_label: str = "exact",
) -> Figure:  # fmt: skip
    """Lines with bands of one standard error.

    Args:
        x: Where the lines were measured. Shape: (n,).
        lines: (mean, stderr) by name, each of shape (n,); stderr may be None.
        exact: The exact value: a number, or one for each x. Shape: () or (n,).
        logx, logy: Logarithmic axes.
        xlabel, ylabel: Quantities with their units.
        caption: What was run.
        marks: Where to draw thin vertical lines, such as the borders of blocks.
        exact_label: What the dashed line is called.
    """
    x = as_array(x)
    if not lines:
        return nothing()
    figure, [[ax]] = new_axes(1, 1, (WIDTH, 4.2))
    ax.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    if exact is not None:
        level = np.broadcast_to(as_array(exact), x.shape)
        ax.plot(x, level, color=EXACT_COLOUR, ls=(0, (3, 3)), lw=1.8, label=exact_label, zorder=5)
    for mark in marks:
        ax.axvline(mark, color="0.6", lw=0.9, zorder=0)
    hues = colours(lines)
    for (name, (mean, stderr)), dash in zip(lines.items(), distinct(lines, LINES), strict=True):
        mean = as_array(mean)
        if mean.shape != x.shape:
            raise ValueError(f"curve {name!r} has shape {mean.shape} but x has {x.shape}: give one mean for each x")
        ax.plot(x, mean, color=hues[name], ls=dash, label=name)
        if stderr is not None:
            low, high = mean - as_array(stderr), mean + as_array(stderr)
            if logy:
                low = np.where(low > 0, low, mean / 100)  # a logarithmic axis has no room for zero
            ax.fill_between(x, low, high, color=hues[name], alpha=0.22, lw=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    label_decades(ax)
    ax.grid()
    figure.legend(loc="outside upper center", ncols=2 if len(lines) > 1 else 1)
    return finish(figure, caption)


def timeline(edges_by_name: Mapping[str, object], caption: str = "") -> Figure:
    """Diffusion time cut into blocks, one network for each.

    Args:
        edges_by_name: Edges from 0 to T, or a `Partition`, by method. Time points are shown as ticks.
        caption: What the picture says.
    """
    names = list(edges_by_name)
    hues = colours(names)
    figure, [[ax]] = new_axes(1, 1, (WIDTH, 1.3 + 0.5 * len(names)))
    last = 0.0
    for y, (name, split) in enumerate(edges_by_name.items()):
        edges = as_array(getattr(split, "edges", split))
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(f"timeline {name!r} has edges {edges.tolist()}: give two or more in ascending order")
        k, last = len(edges) - 1, max(last, edges[-1])
        if getattr(split, "discrete", False):
            ax.vlines(edges[1:], y - 0.32, y + 0.32, color=hues[name], lw=min(1.5, 150 / k))
            ax.text(1.015 * edges[-1], y, f"{k:,} points", va="center")
            continue
        rgb = np.array(to_rgb(hues[name]))
        fill = [rgb, rgb + 0.45 * (1 - rgb)] * k  # every other block in a lighter shade
        ax.barh([y] * k, np.diff(edges), left=edges[:-1], height=0.64, color=fill[:k], lw=0)
        ax.text(1.015 * edges[-1], y, f"{k:,} block{'s' if k > 1 else ''}", va="center")
    ax.set(xlim=(0, 1.22 * last), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_xticks(np.linspace(0, last, 6))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlabel("diffusion time t, from data (left) to noise (right)", x=0.0, ha="left")
    return finish(figure, caption)


def label_decades(ax: Axes) -> None:
    """Labels 1, 2 and 5 in each decade for short logarithmic axes, on which powers of ten give one label or none."""
    for axis, kind, ends in ((ax.xaxis, ax.get_xscale(), ax.get_xlim()), (ax.yaxis, ax.get_yscale(), ax.get_ylim())):
        if kind == "log" and ends[1] < 100 * ends[0]:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())


def distinct(names, kinds: Sequence[str]) -> list[str]:
    """A kind of marker or line for each name, so that names of the same colour get different ones."""
    seen: dict[str, itertools.count] = {}
    return [kinds[next(seen.setdefault(hue, itertools.count())) % len(kinds)] for hue in colours(names).values()]
