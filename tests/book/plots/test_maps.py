"""Maps and pairs show every value in its place, on the requested scale."""

import numpy as np
import pandas as pd
import pytest
import torch

from psmlib.book import plots


def test_panels_share_one_scale_and_keep_their_places():
    points, extent = plots.grid(-1, 1, 10)
    x = points[:, 0]
    figure = plots.map_row({"a": x, "b": 10 * x}, extent, "size", ends=(-5.0, 5.0))
    first, second = (ax.images[0] for ax in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (-5.0, 5.0)
    np.testing.assert_allclose(first.get_array(), x.reshape(10, 10))
    assert first.origin == "lower" and tuple(first.get_extent()) == extent
    assert figure.axes[2].get_ylabel() == "size"


def test_a_logarithmic_scale_survives_zeros_and_nan():
    values = torch.tensor([0.0, 1e-3, 1.0, torch.nan])
    figure = plots.map_row({"a": values}, (0, 1, 0, 1), "size", logarithmic=True, ends=(1e-4, 1.0))
    shown = figure.axes[0].images[0].get_array()
    assert shown.mask.ravel().tolist() == [False, False, False, True]
    assert shown.ravel()[0] == pytest.approx(1e-4)


@pytest.mark.parametrize("values", [torch.zeros(4), torch.full((4,), torch.nan)])
def test_a_scale_without_values_is_still_drawn(values):
    for logarithmic in (False, True):
        plots.map_row({"a": values}, (0, 1, 0, 1), "size", logarithmic=logarithmic).draw_without_rendering()


def test_quantiles_end_the_scale_by_default():
    values = torch.linspace(0, 1, 10000)
    low, high = plots.map_row({"a": values}, (0, 1, 0, 1), "size").axes[0].images[0].get_clim()
    assert (low, high) == (pytest.approx(0.01, abs=1e-3), pytest.approx(0.99, abs=1e-3))


def test_pairs_put_each_run_on_its_axis():
    frame = pd.DataFrame(
        [("SA-DPM", "TY", 0.1, 1.0), ("SA-DPM", "HG", 0.2, 2.0), ("TPSM-B", "TY", 0.3, 3.0), ("odd", "TY", 0.4, 4.0)],
        columns=["method", "dataset", "a", "b"],
    )
    figure = plots.pairs(frame, "a", "b", "what was run", xlabel="a", ylabel="b")
    assert [ax.get_title() for ax in figure.axes] == ["TY", "HG"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["TPSM-B"].get_xydata().tolist() == [[0.3, 3.0]]
    assert lines["TPSM-B"].get_color() == plots.colour("TPSM-B")
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert "Nothing is on record" in plots.pairs(frame[:0], "a", "b").axes[0].texts[0].get_text()


def test_marks_are_drawn_at_their_places():
    figure = plots.curves([0.1, 1.0], {"SA-DPM": ([1.0, 2.0], None)}, marks=(0.2, 0.5))
    upright = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert upright == [0.2, 0.5]
