"""Takes out of the pages what jupyter-book adds for running code in the browser from another host.

The book has no such button, so the scripts would never be used; without them a page names no foreign script.
"""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Unhook sphinx_thebe, which jupyter-book always loads and has no setting to leave out."""
    for listeners in app.events.listeners.values():
        listeners[:] = [each for each in listeners if not each.handler.__module__.startswith("sphinx_thebe")]
    app.registry.css_files[:] = [each for each in app.registry.css_files if "thebe" not in each[0]]
    return {"parallel_read_safe": True}
