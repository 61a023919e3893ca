"""The form of every notebook: no outputs, one parameters cell, short code, no result typed into prose."""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ruff import find_ruff_bin

from psmlib.book.notebooks import metadata, toc_notebooks, toc_pages
from psmlib.book.pages import PAPER_TITLES
from psmlib.book.paper_values import paper_values
from psmlib.book.parameters import declared
from psmlib.machine import paths

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
PAGES = sorted((paths.ROOT / "book").glob("*.md"))
TAGS = {"parameters", "hide-input", "hide-cell", "remove-input", "remove-output", "remove-cell"}
TAGS |= {"nbval-check-output"}
MACHINE_PATH = re.compile(r"""(?:^|[\s"'(=:])(?:~/|[A-Z]:\\|/(?:home|root|tmp|work|mnt|opt|usr|var|Users)/)""", re.M)
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    """Read a notebook as it stands in the file, with nothing filled in."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[str]:
    """Return the sources of the code cells."""
    return ["".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] == "code"]


def test_the_book_and_the_folder_have_the_same_notebooks() -> None:
    assert sorted(toc_notebooks()) == [path.stem for path in NOTEBOOKS]


@every
def test_it_is_a_valid_notebook_with_stable_ids(path: Path) -> None:
    document = read(path)
    nbformat.validate(document)
    assert (document["nbformat"], document["nbformat_minor"]) >= (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids), "two cells share an id"


@every
def test_it_carries_no_output(path: Path) -> None:
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"cell {cell['id']} has been run"


@every
def test_its_metadata_holds_nothing_volatile(path: Path) -> None:
    document = read(path)
    about = document["metadata"]
    assert set(about) <= {"kernelspec", "language_info", "psmlib"}
    assert about["kernelspec"]["name"] == "python3"
    assert "version" not in about.get("language_info", {})
    for cell in document["cells"]:
        assert set(cell["metadata"]) <= {"tags", "mystnb"}, f"cell {cell['id']}"
        assert set(cell["metadata"].get("tags", [])) <= TAGS, f"cell {cell['id']}"
        assert not cell.get("attachments"), f"cell {cell['id']} holds a file"


@every
def test_it_declares_the_common_parameters_once(path: Path) -> None:
    cells = read(path)["cells"]
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    values = declared(path)
    common = {"profile": "smoke", "seeds": 0, "device": "cpu"}
    assert isinstance(values.get("dataset"), str), "no parameter dataset"
    assert {name: values.get(name) for name in common} == common
    (source,) = ("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    assert all(isinstance(node, ast.Assign) for node in ast.parse(source).body), "it does more than set values"
    assert len(ast.parse(source).body) == len(values), "papermill cannot read every line of it"


@every
def test_it_checks_its_parameters(path: Path) -> None:
    assert any(f'check("{path.stem}", globals())' in source for source in code_cells(path)), (
        f'call psmlib.book.parameters.check("{path.stem}", globals()) after the parameters cell'
    )


@every
def test_its_psmlib_metadata_is_well_formed(path: Path) -> None:
    about = metadata(path)
    assert set(about) <= {"title", "tables", "uses", "night"}
    assert about["title"].strip() and isinstance(about["tables"], list)
    printed = set(zip(paper_values()["paper"], paper_values()["table"], strict=True))
    for entry in about["tables"]:
        paper, _, table = entry.partition(" ")
        assert paper in PAPER_TITLES and ((paper, table) in printed or re.fullmatch(r"fig\d+\w?", table)), entry
    assert set(about.get("uses", [])) <= {other.stem for other in NOTEBOOKS}


def test_no_paper_table_has_two_notebooks() -> None:
    claimed = [entry for path in NOTEBOOKS for entry in metadata(path).get("tables", [])]
    assert len(set(claimed)) == len(claimed)


@every
def test_the_results_that_it_reads_are_named(path: Path) -> None:
    names = {other.stem for other in NOTEBOOKS}
    calls = (node for source in code_cells(path) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    for call in calls:
        if getattr(call.func, "attr", getattr(call.func, "id", "")) == "load":
            read_here = {a.value for a in call.args if isinstance(a, ast.Constant) and a.value in names}
            assert read_here <= set(metadata(path).get("uses", [])), "name it under psmlib.uses: a rerun depends on it"


@every
def test_its_code_is_short(path: Path) -> None:
    for source in code_cells(path):
        tree = ast.parse(source)
        imports = sum(n.end_lineno - n.lineno + 1 for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom))
        lines = len(source.splitlines()) - imports
        assert lines <= 20, f"a cell of over 20 lines, imports not counted:\n{source[:200]}"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} has over ten lines: move it to psmlib"
            assert not isinstance(node, ast.ClassDef), f"{getattr(node, 'name', '')}: classes belong in psmlib"


def ruff(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess:
    """Run ruff with the settings that stand beside the file."""
    command = [find_ruff_bin(), *arguments, "--no-cache"]
    return subprocess.run(command, input=text, capture_output=True, text=True)


@every
def test_its_code_is_in_style(path: Path) -> None:
    for command in (("check",), ("format", "--diff")):
        done = ruff(*command, path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("length", "status"), [(88, 0), (89, 1)])
def test_no_line_is_cut_off_in_the_built_page(length: int, status: int) -> None:
    beside = ("--stdin-filename", paths.NOTEBOOKS / "any.py", "-")
    assert ruff("check", *beside, text=f"# x {'x' * (length - 4)}\n").returncode == status


@every
def test_it_names_no_place_on_a_machine(path: Path) -> None:
    for cell in read(path)["cells"]:
        assert not MACHINE_PATH.search("".join(cell["source"])), f"cell {cell['id']}"


@every
def test_it_opens_with_its_title(path: Path) -> None:
    first = read(path)["cells"][0]
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")


def typed_decimals(markdown: str) -> list[str]:
    """Return the decimal numbers that stand in plain prose.

    Settings belong in `$...$` or in backticks; a result comes from a table or from report.sentence.
    """
    text = re.sub(r"^(```|:::|~~~).*?^\1", " ", markdown, flags=re.M | re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]+\$|`+[^`]+`+|\]\([^)]*\)|https?://\S+", " ", text, flags=re.S)
    text = re.sub(r"(?i)\b(python|section|appendix|eq\.|equation|version|arxiv[: ])\s*\(?[\w.]+", " ", text)
    return re.findall(r"(?<![\w.])\d*\.\d+", text)


def test_a_typed_decimal_is_found() -> None:
    assert typed_decimals("TPSM-B reaches 0.61 nats, SA .84.") == ["0.61", ".84"]
    assert typed_decimals("With $t_0 = 0.01$, `lr=0.001`, Python 3.11 and Section 2.2, see 3. and a.1.") == []


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.name)
def test_no_result_is_typed_into_prose(path: Path) -> None:
    texts = [path.read_text(encoding="utf-8")]
    if path.suffix == ".ipynb":
        cells = read(path)["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        texts += [c["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "") for c in cells]
    assert [number for text in texts for number in typed_decimals(text)] == []


def test_every_page_is_in_the_contents() -> None:
    assert {path.stem for path in PAGES} == {page for page in toc_pages() if "/" not in page}
