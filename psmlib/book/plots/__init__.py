"""Figures of the book in one style, with one colour per method, legible on a phone.

Every function returns a `Figure` that pyplot no longer holds, so that a notebook shows it exactly once: end
the cell with the call, or `display(figure)`. `caption` says what was run, as Markdown: the book adds it to the caption
below the picture, and where there is no book it stands under the picture itself.
"""

from psmlib.book.plots.images import image_rows
from psmlib.book.plots.lines import bars, curves, timeline
from psmlib.book.plots.look import EXACT_COLOUR, METHOD_COLOURS, colour, save, style
from psmlib.book.plots.maps import map_row, pairs
from psmlib.book.plots.plane import density_row, grid, scatter_row

__all__ = [
    "EXACT_COLOUR", "METHOD_COLOURS", "bars", "colour", "curves", "density_row", "grid", "image_rows", "map_row",
    "pairs", "save", "scatter_row", "style", "timeline",
]  # fmt: skip
