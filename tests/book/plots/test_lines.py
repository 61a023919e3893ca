"""Dots, bands and blocks are at the given numbers."""

import itertools

import numpy as np
import pytest
import torch

from psmlib.book import plots
from psmlib.partition import Partition


def test_bars_put_each_method_at_its_figure_with_its_error_and_what_is_known(frame):
    figure = plots.bars(frame, printed="printed")
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["TY", "HG"]
    assert [t.get_text() for t in left.get_yticklabels()] == ["SA-DPM", "TPSM-B", "TPSM-B, conditioned"]
    low, high = left.get_ylim()
    assert low > high, "the first method is on top"
    dots = [c.lines[0].get_xydata()[0].tolist() for c in left.containers]
    assert dots == [[0.8, 0], [0.6, 1], [0.5, 2]]
    reach = left.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert np.allclose(reach, [0.75, 0.85]) and len(left.containers[2].lines[2]) == 0
    dark = [(ax.get_title(), line) for ax in figure.axes for line in ax.lines if line.get_color() == plots.EXACT_COLOUR]
    dashed, dotted = ({of: x.get_xdata()[0] for of, x in dark if x.get_linestyle() == kind} for kind in ("--", ":"))
    assert dashed == {"TY": 0.48, "HG": 0.96} and dotted == {"TY": 0.47}
    assert [t.get_text() for t in right.texts] == ["not run"] and right.texts[0].get_position()[1] == 1
    marks = [c.lines[0].get_marker() for c in left.containers]
    assert marks[1] != marks[2], "two lines of one colour differ in shape"
    hollow = [line.get_xydata()[0].tolist() for line in left.lines if line.get_marker() == "D"]
    assert hollow == [[0.76, 0], [0.64, 1]]
    known = "dashed line: the exact score under the same protocol; dotted line: the entropy"
    assert figure.said == f"Bars: ± one standard error; {known}; diamonds: the paper's figure."
    assert plots.bars(frame.assign(exact=np.nan, bound=np.nan)).said == "Bars: ± one standard error."


def test_bars_show_an_exact_value_for_each_line_where_protocols_differ(frame):
    rows = frame.iloc[:2].assign(exact=[0.586, 0.477], bound=np.nan)
    (ax,) = plots.bars(rows).axes
    ticks = [line.get_xdata()[0] for line in ax.lines if line.get_color() == plots.EXACT_COLOUR]
    assert ticks == [0.586, 0.477]
    assert "Nothing is on record" in plots.bars(rows.iloc[:0]).axes[0].texts[0].get_text()
    assert "Nothing is on record" in plots.curves([], {}).axes[0].texts[0].get_text()


def test_curves_have_bands_of_one_error_and_their_own_dash():
    x = np.array([1.0, 2.0, 4.0])
    lines = {"TPSM-B": (x, x / 10), "TPSM-B, conditioned": (x / 2, None), "SA-DPM": (2 * x, x)}
    figure = plots.curves(torch.tensor(x), lines, exact=x / 4, logx=True, xlabel="updates", ylabel="NLL")
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == (
        "log",
        "linear",
        "updates",
        "NLL",
    )
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn["exact"].get_zorder() > drawn["TPSM-B"].get_zorder(), "it may lie on another line"
    assert set(drawn) == {*lines, "exact"} and np.allclose(drawn["exact"].get_ydata(), x / 4)
    assert drawn["TPSM-B"].get_color() == drawn["TPSM-B, conditioned"].get_color()
    assert drawn["TPSM-B"].get_linestyle() != drawn["TPSM-B, conditioned"].get_linestyle()
    band = ax.collections[0].get_paths()[0].vertices
    assert len(ax.collections) == 2
    assert {tuple(np.round(v, 6)) for v in band} == {(t, round(t * s, 6)) for t in x for s in (0.9, 1.1)}


def test_curves_on_a_logarithmic_axis_stay_positive_and_shapes_are_checked():
    x = np.array([1.0, 2.0])
    (ax,) = plots.curves(x, {"a": (x, 2 * x)}, exact=0.5, logy=True).axes
    assert ax.get_yscale() == "log" and ax.collections[0].get_paths()[0].vertices[:, 1].min() > 0
    with pytest.raises(ValueError, match=r"curve 'a' has shape \(3,\) but x has \(2,\)"):
        plots.curves(x, {"a": (np.ones(3), None)})


@pytest.mark.parametrize("edges", [[0, 0.02, 0.1, 0.3, 1], Partition([0, 0.02, 0.1, 0.3, 1])])
def test_the_timeline_covers_time_without_gap_or_overlap(edges):
    (ax,) = plots.timeline({"SA-DPM": [0, 1], "TPSM-B": edges}).axes
    first, *blocks = ax.patches
    assert (first.get_x(), first.get_width()) == (0, 1)
    ends = [(b.get_x(), b.get_x() + b.get_width()) for b in blocks]
    assert np.allclose(ends, [(0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 1)])
    shades = [b.get_facecolor() for b in blocks]
    assert all(a != b for a, b in itertools.pairwise(shades)) and shades[0] == shades[2]
    assert [t.get_text() for t in ax.texts] == ["1 block", "4 blocks"]


def test_time_points_are_ticks_and_disordered_edges_are_refused():
    (ax,) = plots.timeline({"DPSM": Partition.points(10)}).axes
    assert ax.texts[0].get_text() == "10 points" and not ax.patches
    assert np.allclose([s[0, 0] for s in ax.collections[0].get_segments()], np.arange(1, 11) / 10)
    for bad in ([0, 0.5, 0.2], [1.0], []):
        with pytest.raises(ValueError, match="timeline 'x' has edges .*: give two or more in ascending order"):
            plots.timeline({"x": bad})
