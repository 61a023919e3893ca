"""The roofline."""

import pytest

from psmlib.book.plots.roofline import roofline


def test_points_lie_where_they_were_measured():
    figure = roofline({"a": (100.0, 10.0), "b": (1000.0, 50.0)}, {"a": {"x": (2.0, 15.0)}})
    first, second = figure.axes
    roof = first.lines[0]
    assert max(roof.get_ydata()) == 100 and first.lines[1].get_xdata()[0] == 10
    assert [line.get_label() for line in first.lines][2] == "x"
    assert (first.lines[2].get_xdata()[0], first.lines[2].get_ydata()[0]) == (2.0, 15.0)
    assert len(second.lines) == 2 and second.get_title() == "b"
    assert all(y == pytest.approx(min(100, 10 * x)) for x, y in zip(*roof.get_data(), strict=True))


def test_refusals():
    with pytest.raises(ValueError, match="needs the rates of a device"):
        roofline({}, {})
    with pytest.raises(ValueError, match="must be positive"):
        roofline({"a": (1.0, 0.0)}, {})
