"""Small images in a table, with a row for each source and a column for each time or setting."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from psmlib.book.plots.look import DPI_DENSE, WIDTH, as_array, finish, new_axes, nothing


def image_rows(
    rows: Mapping[str, object], titles: Sequence[str] = (), caption: str = "", *,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:  # fmt: skip
    """A row of images for each name.

    Args:
        rows: Images by name, with values from 0 to 1; others are clipped. Shape: (n, C, H, W), C being 1 or 3.
        titles: One for each column.
        caption: What was run.
        notes: Words below the images of a row, one for each.

    Raises:
        ValueError: when rows are not of equal length, or have another shape.
    """
    if not rows:
        return nothing()
    shown = {name: np.clip(as_array(images), 0, 1) for name, images in rows.items()}
    lengths = {len(images) for images in shown.values()}
    for name, images in shown.items():
        if images.ndim != 4 or images.shape[1] not in (1, 3) or len(lengths) != 1:
            raise ValueError(f"row {name!r} has shape {images.shape}: give (n, C, H, W) with C of 1 or 3, n alike")
    n = lengths.pop()
    side = (WIDTH - 1.1) / n
    figure, axes = new_axes(len(shown), n, (WIDTH, len(shown) * (side + 0.3) + 0.5))
    for line, (name, images) in zip(axes, shown.items(), strict=True):
        for i, (ax, image) in enumerate(zip(line, images, strict=True)):
            grey = len(image) == 1
            pixels = image[0] if grey else image.transpose(1, 2, 0)
            ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, origin="upper", interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_xlabel(notes[name][i] if notes and name in notes else "", fontsize=10)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=11)
    return finish(figure, caption, DPI_DENSE)
