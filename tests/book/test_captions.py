"""A figure of the book has one caption: what its author wrote, then what was run."""

import copy

import nbformat

from psmlib.book import captions
from psmlib.book.notebooks import execute


def picture(said: str = "") -> dict:
    return {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {captions.KEY: said} if said else {}}


def cell(outputs: list, **figure) -> dict:
    return {"cell_type": "code", "metadata": {"mystnb": {"figure": figure}} if figure else {}, "outputs": outputs}


def test_what_was_run_follows_what_was_written():
    cells = [
        cell([picture("Profile quick.")], caption="Test NLL.", name="fig-nll"),
        cell([picture("Profile quick.")]),
        cell([picture(), {"output_type": "stream", "text": ""}], caption="Alone.", name="fig-alone"),
        {"cell_type": "markdown", "metadata": {}},
    ]
    document = {"cells": cells}
    captions.complete(document)
    figures = [c["metadata"].get("mystnb", {}).get("figure") for c in document["cells"]]
    assert figures[0] == {"caption": "Test NLL. Profile quick.", "name": "fig-nll"}
    assert figures[1:] == [{"caption": "Profile quick."}, {"caption": "Alone.", "name": "fig-alone"}, None]
    once = copy.deepcopy(document)
    captions.complete(document)
    assert document == once, "a second call changes nothing"


def test_a_run_for_the_book_completes_the_caption(tmp_path):
    source = 'from psmlib.book import plots\nplots.timeline({"a": [0, 1]}, "Profile quick.")'
    figure = {"mystnb": {"figure": {"caption": "Blocks.", "name": "fig-blocks"}}}
    parameters = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell(source, metadata=figure)]
    template, output = tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), template)
    assert execute(template, output, {"n": 2}).reason == ""
    ran = nbformat.read(output, as_version=4).cells[-1]
    assert ran.metadata.mystnb.figure == {"caption": "Blocks. Profile quick.", "name": "fig-blocks"}
    assert "image/png" in ran.outputs[0].data and captions.KEY not in ran.outputs[0].metadata
