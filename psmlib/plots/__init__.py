"""Figures of the book: one look, one colour per method, legible on a phone.

Every function returns a `Figure` that pyplot no longer holds, so that a notebook shows it exactly once: end
the cell with the call, or `display(figure)`. `caption` goes under the picture and says what was run.
"""

from psmlib.plots.images import image_rows
from psmlib.plots.lines import bars, curves, timeline
from psmlib.plots.look import FLOOR_COLOUR, METHOD_COLOURS, colour, save, style
from psmlib.plots.maps import map_row, pairs
from psmlib.plots.plane import density_panel, density_row, grid, scatter_row

__all__ = [
    "FLOOR_COLOUR", "METHOD_COLOURS", "bars", "colour", "curves", "density_panel", "density_row", "grid", "image_rows",
    "map_row", "pairs", "save", "scatter_row", "style", "timeline",
]  # fmt: skip
