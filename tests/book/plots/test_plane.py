"""Densities and samples in the plane are in their places, on one scale."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from psmlib.book import plots

EXTENT = (-1.0, 1.0, -1.0, 1.0)


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
        with pytest.raises(ValueError, match=r"shape \(.*\) are no square: evaluate them at the points of grid"):
            plots.density_row({"a": torch.zeros(shape)}, extent)
    for empty in (plots.density_row({}, extent), plots.scatter_row({}, extent)):
        assert "Nothing is on record" in empty.axes[0].texts[0].get_text()


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
