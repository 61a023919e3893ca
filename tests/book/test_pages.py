"""Generated pages, made from the papers' numbers, the results and the notebooks' metadata."""

import json
import re
from pathlib import Path

import pytest

from psmlib.book import pages
from psmlib.book.formatting import NOTHING
from psmlib.book.paper_values import exhibits, paper_values
from psmlib.book.results import Results
from psmlib.machine import paths


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders for notebooks, results and generated pages that are empty to begin with."""
    for constant, place in (("NOTEBOOKS", "notebooks"), ("RESULTS", "results"), ("GENERATED", "generated")):
        monkeypatch.setattr(paths, constant, tmp_path / place)
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def claim(tree: Path, name: str, *tables: str) -> None:
    """Write a notebook that says which tables it reproduces."""
    document = {"metadata": {"psmlib": {"tables": list(tables)}}, "cells": []}
    (tree / "notebooks" / f"{name}.ipynb").write_text(json.dumps(document))


def result(profile: str, value: float | None, status: str, note: str = "", **cell: str) -> None:
    """Keep one result, for TPSM-B on TY if the cell is not named."""
    results = Results("toys", profile, {})
    place = {"paper": "psm", "table": "1", "row": "TY", "column": "TPSM-B", "metric": "NLL", "unit": "nats"}
    cell = place | cell
    error = None if value is None else 0.004
    results.add(**cell, value=value, stderr=error, n_seeds=3, exact=0.477, status=status, note=note)
    results.save()


def line(text: str) -> str:
    """Return the line of TPSM-B on TY."""
    (found,) = (x for x in text.splitlines() if x.split()[:5:2] == ["|", "|", "|"] and "TPSM-B" in x and "0.64" in x)
    return " ".join(found.split())


def test_every_table_is_described_beside_its_numbers() -> None:
    tables = set(zip(paper_values()["paper"], paper_values()["table"], strict=True))
    assert set(pages.descriptions()) == tables
    assert {paper for paper, _ in tables} == set(pages.PAPER_TITLES)


def test_a_table_has_a_command_or_says_not_yet(tree: Path) -> None:
    assert "papermill" not in pages.rerun()
    claim(tree, "toys", "psm 1", "psm fig2")
    lines = [" ".join(x.split()) for x in pages.rerun().splitlines()]
    (first,) = (x for x in lines if x.startswith("| Table 1 | test NLL on 2-D toys"))
    assert first.endswith("| {doc}`/_executed/toys` | `papermill notebooks/toys.ipynb out.ipynb -p profile quick` |")
    assert sum("papermill" in x for x in lines) == 2 and any(x.startswith("| Figure 2 |") for x in lines)
    assert any(x.startswith("| Table 10 |") and x.endswith("not yet |") for x in lines)


def test_a_number_without_a_result_says_why(tree: Path) -> None:
    chapter = "{doc}`/_executed/toys`"
    assert line(pages.paper_cells()).endswith("| 0.64 | – | – | not yet: this paper has no chapter yet |")
    claim(tree, "images", "psm 2")
    assert line(pages.paper_cells()).endswith("| not yet: no chapter covers this table |")
    claim(tree, "toys", "psm 1")
    assert line(pages.paper_cells()).endswith(f"| not run: {chapter} has no results at any budget yet |")
    result("quick", 0.7, "scaled_down", column="TPSM-A", metric="blocks")
    assert line(pages.paper_cells()).endswith(f"| not run: {chapter} does not measure it |")
    result("quick", 0.7, "scaled_down", column="TPSM-A")
    assert line(pages.paper_cells()).endswith(f"| not run: at no budget so far has {chapter} measured it |")
    result("quick", None, "needs_data", "the data cannot be had")
    assert line(pages.paper_cells()).endswith("| – | – | needs data: the data cannot be had |")


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("CIFAR-10", "cifar10"), ("CelebA 64x64", "celeba64"), ("ImageNet", "imagenet64"), ("MNIST", "mnist")],
)
def test_a_data_set_that_is_not_shipped_has_a_command(tree: Path, dataset: str, name: str) -> None:
    cell = {"paper": "psm", "table": "2", "metric": "BPD", "dataset": dataset}
    ours = {("psm", "2", "SA-DPM", "digits", "BPD"): {}}
    said = pages._why_missing(cell, ours, {("psm", "2"): "images"})
    assert said.startswith("needs data: ") and f"`-p dataset {name}`" in said
    assert pages._kept_elsewhere("CelebA-HQ 256x256") is None and pages._kept_elsewhere("TY") is None


def test_the_largest_budget_is_shown(tree: Path) -> None:
    claim(tree, "toys")
    result("smoke", 0.9, "scaled_down")
    assert line(pages.paper_cells()).endswith("| 0.900 ± 0.004 (smoke, n = 3) | 0.477 | scaled down |")
    result("gpu", 0.6, "within_noise")
    result("quick", 0.7, "scaled_down")
    assert line(pages.paper_cells()).endswith("| 0.600 ± 0.004 (gpu, n = 3) | 0.477 | within noise |")
    result("paper", None, "not_run", "takes days")  # no number: a smaller budget that has one still counts
    assert "(gpu, n = 3)" in line(pages.paper_cells())


def test_the_statuses_of_all_numbers_are_counted(tree: Path) -> None:
    total = len(paper_values())
    assert pages.counts().startswith(f"The five papers print {total} numbers ")
    assert pages.counts().endswith(f": {total} *not yet*.\n")
    claim(tree, "toys")
    result("quick", 0.7, "scaled_down")
    assert f": 1 *scaled down* and {total - 1} *not yet*.\n" in pages.counts()


def test_results_of_a_chapter_that_is_gone_are_left_out_with_a_warning(tree: Path) -> None:
    result("quick", 0.7, "scaled_down")
    with pytest.warns(UserWarning, match="results of toys are on record, but there is no such chapter: delete them"):
        assert f": {len(paper_values())} *not yet*.\n" in pages.counts()


def test_every_table_and_figure_is_covered_or_has_a_reason(tree: Path) -> None:
    claim(tree, "toys", "psm 1", "psm fig2")
    result("night", 0.64, "scaled_down")
    lines = [[cell.strip() for cell in x.split("|")[1:-1]] for x in pages.coverage().splitlines() if x.startswith("|")]
    (table,) = (x for x in lines if x[0] == "Table 1" and x[1].startswith("test NLL on 2-D toys"))
    assert table[2:4] == ["{doc}`/_executed/toys`", "1 of 24: 1 scaled down; 1 night"]
    toys = "{doc}`/_executed/toys`"
    assert table[4] == f"16 x {toys} does not measure it; 7 x at no budget so far has {toys} measured it"
    (figure,) = (x for x in lines if x[:2] == ["Figure 2", exhibits()["psm", "fig2"]])
    assert figure[2] == "{doc}`/_executed/toys`" and set(figure[3:]) == {NOTHING}
    named = [x for x in lines if re.match(r"(Table|Figure) \d+", x[0])]
    assert len(named) == len(pages.descriptions()) + len(exhibits())


def test_all_pages_are_written(tree: Path) -> None:
    names = pages.write()
    assert sorted(names) == sorted(f.name for f in (tree / "generated").iterdir())
    assert ".. automodule:: psmlib.book.pages\n" in (tree / "generated" / "api.md").read_text()


def test_the_api_page_has_a_section_for_each_room_in_reading_order() -> None:
    text = pages.api()
    rooms = [f.parent.name for f in paths.PACKAGE.glob("*/__init__.py")]
    assert sorted(pages.ROOMS) == sorted(["psmlib", *rooms])
    sections = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["psmlib", *(f"psmlib.{room}" for room in pages.ROOMS[1:])]
    assert "\n## psmlib.sampling\n\nSamplers: " in text and text.index("### psmlib.sampling.grids") > 0
    modules = [line.split(":: ")[1] for line in text.splitlines() if "automodule" in line]
    files = [f for f in paths.PACKAGE.rglob("*.py") if not f.name.startswith("_")]
    assert len(set(modules)) == len(modules) == len(files)
