"""Plots: what is drawn is what was given, on an opaque ground, in letters that a phone can show."""

import io
import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from psmlib import paths, plots
from psmlib.partition import Partition

matplotlib.use("Agg")
PHONE = 350  # CSS pixels that a figure gets on a phone 390 pixels wide
EXTENT = (-1.0, 1.0, -1.0, 1.0)


@pytest.fixture(autouse=True)
def look():
    with matplotlib.rc_context():
        plots.style()
        yield
    assert matplotlib.pyplot.get_fignums() == [], "a figure left with pyplot is shown twice in a notebook"


def frame() -> pd.DataFrame:
    rows = [
        ("TY", "SA-DPM", 0.8, 0.05, 0.48, 0.76),
        ("TY", "TPSM-B", 0.6, 0.01, 0.48, 0.64),
        ("TY", "TPSM-B, conditioned", 0.5, np.nan, 0.48, np.nan),
        ("HG", "SA-DPM", 1.2, 0.02, 0.96, 1.11),
        ("HG", "TPSM-B", np.nan, np.nan, 0.96, 1.04),
    ]
    return pd.DataFrame(rows, columns=["dataset", "column", "value", "stderr", "exact", "printed"])


def everything() -> dict:
    points, extent = plots.grid(-1, 1, 30)
    normal = -(points**2).sum(1)
    caption = "Test NLL at t0 = 0.001 by RK4, 400 steps, exact trace; 8,000 updates a network; profile quick."
    x = np.geomspace(1e-3, 1, 9)
    return {
        "density": plots.density_row(
            dict.fromkeys(["exact", "SA-DPM", "TPSM-B, conditioned", "d"], normal), extent, caption
        ),
        "scatter": plots.scatter_row({"exact": points, "SA-DPM": 2 * points}, extent, caption),
        "bars": plots.bars(frame(), caption, printed="printed"),
        "curves": plots.curves(x, {"SA-DPM": (x, x / 9)}, 0.01, True, True, "time", "loss", caption),
        "timeline": plots.timeline({"SA-DPM": [0, 1], "TPSM-C": Partition.equal(200)}, caption),
    }


def test_every_figure_is_opaque_complete_and_legible_on_a_phone():
    for name, figure in everything().items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        picture = matplotlib.image.imread(io.BytesIO(buffer.getvalue()))
        assert (picture[..., 3:] == 1).all() and (picture[[0, -1]][:, [0, -1], :3] == 1).all(), name
        assert 0.01 < (picture[..., :3].min(-1) < 0.9).mean() < 0.95, f"{name} is blank or full"
        inches = figure.get_figwidth()
        box = figure.get_tightbbox()
        assert box.x0 > -0.05 and box.x1 < inches + 0.05 and box.y0 > -0.05, f"{name}: {box} sticks out"
        for text in figure.findobj(Text):
            if text.get_text().strip() and text.get_visible():
                pixels = text.get_fontsize() / 72 / inches * PHONE
                assert pixels > 8, f"{name}: {text.get_text()!r} is {pixels:.1f} pixels high"
        assert "profile quick" in " ".join(figure.get_supxlabel().split()), name


def test_style_is_white_and_keeps_text_as_text_in_svg():
    assert {matplotlib.rcParams[k] for k in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")} == {"white"}
    assert matplotlib.rcParams["svg.fonttype"] == "none" and not matplotlib.rcParams["savefig.transparent"]


# Machado, Oliveira and Fernandes (2009): linear RGB as seen without red, or without green, receptors.
BLIND = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_colours_of_the_blocks_stay_apart_for_the_colour_blind(kind):
    methods = ["SA-DPM", "TPSM-A", "TPSM-B", "TPSM-C", "TPSM-10blocks", "exact"]
    seen = []
    for method in methods:
        linear = np.array(BLIND[kind]) @ np.array(to_rgb(plots.colour(method))) ** 2.2
        seen.append(np.clip(linear, 0, 1) ** (1 / 2.2))
    for (a, x), (b, y) in itertools.combinations(zip(methods, seen, strict=True), 2):
        assert np.linalg.norm(x - y) > 0.12, f"{a} and {b} look alike"


def test_a_colour_belongs_to_a_method_for_good():
    assert len(set(plots.METHOD_COLOURS.values())) == len(plots.METHOD_COLOURS)
    assert plots.colour("TPSM-10blocks") != plots.colour("TPSM-A")
    assert plots.colour("SA-DPM, 8,000 updates") == plots.colour("SA-DPM late") == plots.colour("SA-DPM")
    # Fixed here on purpose: a new method must not repaint an old one.
    assert [plots.colour(n) for n in ("something else", "SA-DPMX")] == ["#888888", "#332288"]


def test_the_grid_integrates_a_density_to_one():
    points, extent = plots.grid((-6, -5), (7, 6), 80, dtype=torch.float64)
    cell = (extent[1] - extent[0]) * (extent[3] - extent[2]) / len(points)
    density = torch.exp(-(points**2).sum(1) / 2) / (2 * torch.pi)
    assert abs(float(density.sum()) * cell - 1) < 1e-6
    assert extent == (-6.0, 7.0, -5.0, 6.0) and points.shape == (6400, 2)


@pytest.mark.parametrize("bad", [(1, -1, 5), ((0, 0), (1, 0), 5), (-1, 1, 0)])
def test_a_grid_without_cells_is_refused(bad):
    with pytest.raises(ValueError, match="has no cells: give lo below hi"):
        plots.grid(*bad)


def test_a_density_is_drawn_where_it_is():
    points, extent = plots.grid((-2, -1), (2, 1), 40)
    peak = torch.tensor([1.05, -0.525])
    figure = plots.density_row({"a": -50 * ((points - peak) ** 2).sum(1)}, extent)
    image = figure.axes[0].images[0]
    data = image.get_array()
    i, j = np.unravel_index(data.argmax(), data.shape)
    x0, x1, y0, y1 = image.get_extent()
    assert image.origin == "lower" and (x0, x1, y0, y1) == extent
    found = (x0 + (j + 0.5) * (x1 - x0) / 40, y0 + (i + 0.5) * (y1 - y0) / 40)
    assert np.allclose(found, peak, atol=0.051) and data.max() == pytest.approx(1.0, abs=0.1)


def test_densities_share_one_scale_that_an_outlier_does_not_move():
    points, extent = plots.grid(-1, 1, 50)
    good, bad = -(points**2).sum(1), -2 * (points**2).sum(1)
    bad[7], bad[8] = 80.0, float("nan")
    figure = plots.density_row({"good": good, "bad": bad}, extent)
    images = [ax.images[0] for ax in figure.axes[:2]]
    assert images[0].get_clim() == images[1].get_clim()
    assert images[0].get_clim()[0] == 0 and 0.9 < images[0].get_clim()[1] <= 1.0
    assert images[1].get_array().mask.sum() == 1 and not np.ma.getmaskarray(images[0].get_array()).any()
    assert plots.density_row({"a": good}, extent, vmax=3.0).axes[0].images[0].get_clim() == (0, 3.0)


def test_panels_wrap_and_bad_shapes_are_refused():
    points, extent = plots.grid(-1, 1, 10)
    figure = plots.density_row(dict.fromkeys("abcde", -(points**2).sum(1).reshape(10, 10)), extent)
    panels = [ax for ax in figure.axes if ax.images and ax.get_title()]
    assert [ax.get_title() for ax in panels] == list("abcde")
    figure.draw_without_rendering()
    assert len({round(ax.get_position().y0, 2) for ax in panels}) == 2
    for shape in ((7,), (2, 8), (2, 2, 4)):
        with pytest.raises(ValueError, match=r"shape \(.*\) is no square: evaluate it at the points of grid"):
            plots.density_row({"a": torch.zeros(shape)}, extent)
    with pytest.raises(ValueError, match="at least one"):
        plots.density_row({}, extent)


def test_samples_say_how_many_are_shown_and_lost():
    inside = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    lost = np.array([[2.0, 0.0], [np.nan, 0.0]])
    figure = plots.scatter_row({"SA-DPM": np.concatenate([lost, inside]), "b": torch.zeros(9, 2)}, EXTENT, limit=20)
    first, second = figure.axes
    assert first.get_xlabel() == "20 points, 2 outside" and second.get_xlabel() == "9 points"
    assert np.allclose(first.collections[0].get_offsets(), inside[:18])
    assert first.get_xlim() == (-1, 1) and first.get_aspect() == 1
    assert np.allclose(first.collections[0].get_facecolor()[0, :3], to_rgb(plots.colour("SA-DPM")))
    with pytest.raises(ValueError, match=r"samples 'c' have shape \(4, 3\): give points of shape \(n, 2\)"):
        plots.scatter_row({"c": np.zeros((4, 3))}, EXTENT)


def test_bars_put_each_method_at_its_figure_with_its_error_beside_the_floor():
    figure = plots.bars(frame(), printed="printed")
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["TY", "HG"]
    assert [t.get_text() for t in left.get_yticklabels()] == ["SA-DPM", "TPSM-B", "TPSM-B, conditioned"]
    low, high = left.get_ylim()
    assert low > high, "the first method is on top"
    dots = [c.lines[0].get_xydata()[0].tolist() for c in left.containers]
    assert dots == [[0.8, 0], [0.6, 1], [0.5, 2]]
    reach = left.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert np.allclose(reach, [0.75, 0.85]) and len(left.containers[2].lines[2]) == 0
    assert [ax.lines[0].get_xdata() for ax in figure.axes] == [[0.48] * 2, [0.96] * 2]
    assert [t.get_text() for t in right.texts] == ["not run"] and right.texts[0].get_position()[1] == 1
    marks = [c.lines[0].get_marker() for c in left.containers]
    assert marks[1] != marks[2], "two lines of one colour differ in shape"
    hollow = [line.get_xydata()[0].tolist() for line in left.lines if line.get_marker() == "D"]
    assert hollow == [[0.76, 0], [0.64, 1]]
    said = " ".join(figure.get_supxlabel().split())
    assert said == "bars: ± one standard error; dashed line: exact floor; diamonds: the paper's figure."


def test_bars_show_a_floor_for_each_line_where_protocols_differ():
    rows = frame().iloc[:2].assign(exact=[0.586, 0.477])
    (ax,) = plots.bars(rows).axes
    ticks = [line.get_xdata()[0] for line in ax.lines if line.get_color() == plots.FLOOR_COLOUR]
    assert ticks == [0.586, 0.477]
    with pytest.raises(ValueError, match="without rows"):
        plots.bars(rows.iloc[:0])


def test_curves_have_bands_of_one_error_and_their_own_dash():
    x = np.array([1.0, 2.0, 4.0])
    lines = {"TPSM-B": (x, x / 10), "TPSM-B, conditioned": (x / 2, None), "SA-DPM": (2 * x, x)}
    figure = plots.curves(torch.tensor(x), lines, floor=x / 4, logx=True, xlabel="updates", ylabel="NLL")
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == (
        "log",
        "linear",
        "updates",
        "NLL",
    )
    drawn = {line.get_label(): line for line in ax.lines}
    assert set(drawn) == {*lines, "exact"} and np.allclose(drawn["exact"].get_ydata(), x / 4)
    assert drawn["TPSM-B"].get_color() == drawn["TPSM-B, conditioned"].get_color()
    assert drawn["TPSM-B"].get_linestyle() != drawn["TPSM-B, conditioned"].get_linestyle()
    band = ax.collections[0].get_paths()[0].vertices
    assert len(ax.collections) == 2
    assert {tuple(np.round(v, 6)) for v in band} == {(t, round(t * s, 6)) for t in x for s in (0.9, 1.1)}


def test_curves_on_a_logarithmic_axis_stay_positive_and_shapes_are_checked():
    x = np.array([1.0, 2.0])
    (ax,) = plots.curves(x, {"a": (x, 2 * x)}, floor=0.5, logy=True).axes
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


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_saved_figure_is_the_same_file_every_time(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(paths, "GENERATED", tmp_path / "generated")
    saved = [plots.save(plots.timeline({"SA-DPM": [0, 1]}), "idea", ending).read_bytes() for _ in range(2)]
    assert saved[0] == saved[1] and [f.name for f in (tmp_path / "generated").iterdir()] == [f"idea.{ending}"]
    assert saved[0].startswith(b"\x89PNG" if ending == "png" else b"<?xml")
