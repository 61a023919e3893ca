"""Captions of figures in the book: what the notebook's author wrote of a figure, then what was run to make it.

The author's text stands in the metadata of the cell (``mystnb.figure.caption``). What was run is known only after the
run, and comes in the metadata of the output, under `KEY` (:mod:`psmlib.book.plots`).
"""

KEY = "caption"


def complete(notebook: dict) -> None:
    """Appends to the caption of each cell what its figures say of their run, in place.

    They lose what they say, so that a second call changes nothing.

    Args:
        notebook: The JSON document of an executed notebook.

    Example:
        >>> output = {"data": {"image/png": ""}, "metadata": {"caption": "TY, 500 updates."}}
        >>> cell = {"metadata": {"mystnb": {"figure": {"caption": "Test NLL."}}}, "outputs": [output]}
        >>> complete({"cells": [cell]})
        >>> cell["metadata"]["mystnb"]["figure"]["caption"], output["metadata"]
        ('Test NLL. TY, 500 updates.', {})
    """
    for cell in notebook["cells"]:
        said = [o["metadata"].pop(KEY) for o in cell.get("outputs", []) if KEY in o.get("metadata", {})]
        if said:
            figure = cell["metadata"].setdefault("mystnb", {}).setdefault("figure", {})
            written = [figure["caption"]] if figure.get("caption") else []
            figure["caption"] = " ".join([*written, *said])
