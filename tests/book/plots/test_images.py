"""Rows of images: each pixel is in its place."""

import numpy as np
import pytest
import torch

from psmlib.book import plots


def test_images_stand_upright_in_their_places():
    digits = torch.zeros(3, 1, 4, 4)
    digits[1, 0, 0, 3] = 2.0  # cut off at 1
    figure = plots.image_rows({"a": digits, "b": torch.rand(3, 3, 4, 4)}, ("x", "y", "z"), notes={"a": ("1", "2", "3")})
    first = figure.axes[1]
    image = first.images[0]
    assert image.origin == "upper" and first.get_ylim() == (3.5, -0.5)
    assert image.get_array()[0, 3] == 1.0 and image.get_array().sum() == 1.0
    assert [ax.get_title() for ax in figure.axes[:3]] == ["x", "y", "z"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["1", "2", "3", "", "", ""]
    assert figure.axes[0].get_ylabel() == "a" and figure.axes[3].images[0].get_array().shape == (4, 4, 3)
    figure.draw_without_rendering()


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 2, 4, 4), (2, 1, 4, 4)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"row '.' has shape .*: give \(n, C, H, W\)"):
        plots.image_rows({"a": np.zeros((3, 1, 4, 4)), "b": np.zeros(shape)})
