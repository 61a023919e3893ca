"""The style: an opaque background, type legible on a phone, and a fixed colour for each method."""

import io
import itertools
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.pylabtools import select_figure_formats
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from psmlib.book import plots
from psmlib.book.plots.look import colours
from psmlib.machine import paths
from psmlib.partition import Partition

PHONE = 350  # CSS pixels that a figure gets on a phone 390 pixels wide


def everything(frame) -> dict:
    points, extent = plots.grid(-1, 1, 30)
    normal = -(points**2).sum(1)
    caption = "Test NLL at t0 = 0.001 by RK4, 400 steps, exact trace; 8,000 updates a network; profile quick."
    x = np.geomspace(1e-3, 1, 9)
    return {
        "density": plots.density_row(
            dict.fromkeys(["exact", "SA-DPM", "TPSM-B, conditioned", "d"], normal), extent, caption
        ),
        "scatter": plots.scatter_row({"exact": points, "SA-DPM": 2 * points}, extent, caption),
        "bars": plots.bars(frame, caption, printed="printed"),
        "curves": plots.curves(x, {"SA-DPM": (x, x / 9)}, 0.01, True, True, "time", "loss", caption),
        "timeline": plots.timeline({"SA-DPM": [0, 1], "TPSM-C": Partition.equal(200)}, caption),
    }


def test_every_figure_is_opaque_complete_and_legible_on_a_phone(frame):
    for name, figure in everything(frame).items():
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
        assert "profile quick" in figure.said and " ".join(figure.get_supxlabel().split()) == figure.said, name


def test_the_book_gets_what_was_run_beside_the_picture_and_not_in_it(frame, monkeypatch):
    monkeypatch.setenv("PSMLIB_BATCH", "1")
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    select_figure_formats(shell, {"png"})
    for name, figure in everything(frame).items():
        data, about = shell.display_formatter.format(figure)
        assert "image/png" in data and about["caption"] == figure.said and "profile quick" in figure.said, name
        assert not figure.get_supxlabel() and not [t for t in figure.findobj(Text) if "profile quick" in t.get_text()]
    assert "caption" not in shell.display_formatter.format(plots.timeline({"a": [0, 1]}))[1]


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
    # Names that are no method differ within a figure, and none of them takes a method's colour.
    others = colours(["data", "SA-DPM", "SA-DPMX", "noise"])
    assert len(set(others.values())) == 4 and others["SA-DPM"] == plots.colour("SA-DPM")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_saved_figure_is_the_same_file_every_time(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(paths, "GENERATED", tmp_path / "generated")
    saved = [plots.save(plots.timeline({"SA-DPM": [0, 1]}), "idea", ending).read_bytes() for _ in range(2)]
    assert saved[0] == saved[1] and [f.name for f in (tmp_path / "generated").iterdir()] == [f"idea.{ending}"]
    assert saved[0].startswith(b"\x89PNG" if ending == "png" else b"<?xml")
