"""A book built from the record is complete and loads nothing from other hosts; nbval runs the chapters at smoke."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from psmlib.book import captions
from psmlib.book.build import expected, missing
from psmlib.book.notebooks import toc_notebooks, toc_pages
from psmlib.book.pages import reproduced_by
from psmlib.book.paper_values import paper_values
from psmlib.book.parameters import COMPUTES
from psmlib.machine import paths


@pytest.fixture(scope="module")
def html() -> Path:
    """Build the book from the record, once: every test that wants it stands in this file."""
    command = [sys.executable, "-m", "psmlib.run", "book", "--profile", "record", "--force"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"the book was not built:\n{done.stdout}\n{done.stderr}"
    assert done.stdout.rstrip().endswith(str(paths.HTML / "index.html")), "it must end with where the book is"
    return paths.HTML


@pytest.fixture(scope="module")
def texts(html: Path) -> dict[Path, str]:
    """Return every HTML page with its text; the theme keeps templates of its own under _static."""
    pages = [file for file in sorted(html.rglob("*.html")) if "_static" not in file.relative_to(html).parts]
    return {file: file.read_text(encoding="utf-8") for file in pages}


def test_the_tests_do_not_write_over_a_readers_book() -> None:
    assert paths.OUTPUT != paths.ROOT and paths.RESULTS.is_relative_to(paths.OUTPUT)


@pytest.mark.parametrize("page", toc_pages())
def test_the_page_exists_with_all_its_tables_and_figures(html: Path, page: str) -> None:
    assert missing([page]) == []
    assert re.search(r"<h1>[^<]", (html / f"{page}.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", toc_notebooks())
def test_the_notebook_was_shown_from_the_record_without_a_trace_of_trouble(html: Path, name: str) -> None:
    cells = json.loads((paths.EXECUTED / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    (injected,) = (c for c in cells if "injected-parameters" in c["metadata"].get("tags", []))
    assert 'profile = "record"' in "".join(injected["source"])
    assert not [c for c in cells if "".join(c["source"]).startswith(COMPUTES) and c.get("outputs")], "it has computed"
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    noise = ["".join(o["text"]) for o in outputs if o.get("name") == "stderr"]
    assert noise == [], "a warning or a progress bar was left behind"
    assert not [o for o in outputs if any("widget" in kind for kind in o.get("data", {}))]
    assert "Nothing is on record" not in json.dumps(outputs), "commit the record of a run"


@pytest.mark.parametrize("name", toc_notebooks())
def test_every_figure_has_one_caption_which_says_what_was_run(html: Path, name: str) -> None:
    cells = json.loads((paths.EXECUTED / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        pictures = [o for o in cell.get("outputs", []) if any(k.startswith("image/") for k in o.get("data", {}))]
        assert len(pictures) <= 1, f"cell {cell['id']}: two figures would share a caption"
        assert not pictures or cell["metadata"]["mystnb"]["figure"]["caption"], f"cell {cell['id']}"
        assert not [o for o in pictures if captions.KEY in o["metadata"]], "the book must have put it into the caption"


def test_no_page_loads_anything_from_elsewhere(texts: dict[Path, str]) -> None:
    for file, text in texts.items():
        loaded = re.findall(r"<(?:script|img|iframe|source|video)\b[^>]*\ssrc=[\"']([^\"']+)", text)
        loaded += re.findall(r"<link\b[^>]*\shref=[\"']([^\"']+)", text)
        foreign = [url for url in loaded if re.match(r"(https?:)?//", url)]
        assert not foreign, f"{file.name} loads {foreign[0]}"
        assert not re.search(r"<script[^>]*>[^<]*https?://(?!www\.w3\.org)", text), (
            f"{file.name}: a script names a host"
        )
        for url in loaded:
            if not url.startswith("data:"):
                assert (file.parent / unquote(url.split("?")[0].split("#")[0])).exists(), f"{file.name}: {url}"


def test_no_style_loads_anything_from_elsewhere(html: Path) -> None:
    for file in html.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", file.read_text(encoding="utf-8")), file.name


def test_every_link_inside_the_book_leads_somewhere(texts: dict[Path, str]) -> None:
    ids = {file.resolve(): set(re.findall(r"\sid=\"([^\"]+)\"", text)) for file, text in texts.items()}
    for file, text in texts.items():
        for url in re.findall(r"<a\b[^>]*\shref=\"([^\"]*)\"", text):
            if re.match(r"[a-z]+:", url) or url in ("", "#"):
                continue
            place, _, anchor = unquote(url).partition("#")
            target = (file.parent / place).resolve() if place else file.resolve()
            assert target.exists(), f"{file.name} links to {url}"
            if anchor and target in ids:
                assert anchor in ids[target], f"{file.name} links to {url}"


def test_nothing_published_names_a_place_on_this_machine(html: Path) -> None:
    places = {str(paths.ROOT), str(paths.OUTPUT), f"{tempfile.gettempdir()}/psmlib", f"{Path.home()}/"}
    published = [
        f for f in html.rglob("*") if f.suffix in (".html", ".ipynb", ".md", ".txt") or f.name == "searchindex.js"
    ]
    for file in published:
        text = file.read_text(encoding="utf-8")
        found = [place for place in places if place in text]
        assert not found, f"{file.relative_to(html)} names {found[0]}"


def test_every_printed_number_has_a_line(html: Path) -> None:
    text = (html / "tables.html").read_text(encoding="utf-8")
    lines = len(re.findall(r"<tr\b", text)) - len(re.findall(r"<thead\b", text))
    assert lines == len(paper_values()) > 500


def test_every_paper_table_has_a_command_or_says_not_yet(html: Path) -> None:
    text = (html / "rerun.html").read_text(encoding="utf-8")
    lines = re.findall(r"<tr\b.*?</tr>", text[text.find("<article") :], re.S)
    body = [line for line in lines if "<td" in line]
    tables = set(zip(paper_values()["paper"], paper_values()["table"], strict=True)) | set(reproduced_by())
    assert len(body) == len(tables)
    told = [("papermill" in line, "not yet" in line) for line in body]
    assert all(command != later for command, later in told)
    assert sum(command for command, _ in told) == len(reproduced_by())


def test_every_public_module_is_on_the_library_page(html: Path) -> None:
    text = (html / "api.html").read_text(encoding="utf-8")
    for file in paths.PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(paths.PACKAGE.parent).with_suffix("").parts)
        if "._" not in name:
            assert f'id="module-{name}"' in text, f"{name} has no entry"


# --- the checks themselves can fail ----------------------------------------------------------------------


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "BOOK", tmp_path)
    monkeypatch.setattr(paths, "HTML", tmp_path / "html")
    table = {
        "output_type": "display_data",
        "data": {"text/markdown": [":::{table} A\n", ":name: Tab_one\n", ":::"]},
    }
    picture = {"output_type": "display_data", "data": {"image/png": "", "text/plain": ""}}
    figure = {"mystnb": {"figure": {"caption": "B", "name": "fig-two"}}}
    cells = [
        {"cell_type": "code", "source": "", "metadata": {}, "outputs": [table]},
        {"cell_type": "code", "source": "", "metadata": figure, "outputs": [picture]},
        {"cell_type": "code", "source": "", "metadata": {"tags": ["remove-output"]}, "outputs": [picture, table]},
    ]
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": cells}))
    seen = expected(tmp_path / "page.ipynb")
    assert (seen.names, seen.tables, seen.images) == ({"Tab_one", "fig-two"}, 1, 1)
    assert missing(["page"]) == ["page: the page was not built."]

    (tmp_path / "html").mkdir()
    page = '<nav id="tab-one"></nav><article>{}</article>'
    (tmp_path / "html" / "page.html").write_text(page.format(""))
    found = missing(["page"])
    assert len(found) == 4 and "'Tab_one'" in found[0] and "'fig-two'" in found[1]
    assert "0 tables where its notebook has 1" in found[2] and "0 figures" in found[3]
    whole = '<table id="tab-one"></table><figure id="fig-two"><img alt="" src="a.png"></figure>'
    (tmp_path / "html" / "page.html").write_text(page.format(whole))
    assert missing(["page"]) == ["page: picture a.png has no file."]
    (tmp_path / "html" / "a.png").touch()
    assert missing(["page"]) == []


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    for name in ("_config.yml", "requirements.lock", "data/paper_values.toml", "book/references.bib"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths.ROOT / name, tmp_path / name)
    for folder in ("book/_static", "book/_ext"):
        shutil.copytree(paths.ROOT / folder, tmp_path / folder)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book/_toc.yml").write_text("format: jb-book\nroot: index\n")
    (tmp_path / "book/index.md").write_text("# A page\n\nSee {numref}`no-such-table`.\n")
    moved = os.environ | {"PSMLIB_ROOT": str(tmp_path), "PSMLIB_OUTPUT": str(tmp_path)}
    command = [sys.executable, "-m", "psmlib.run", "book"]
    done = subprocess.run(command, cwd=paths.ROOT, env=moved, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no-such-table" in done.stdout and "not complete" in done.stdout


def test_docstrings_are_shown_as_written() -> None:
    file = paths.ROOT / "book" / "_ext" / "plain_docstrings.py"
    spec = importlib.util.spec_from_file_location("plain_docstrings", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.plain("x (n, *shape), |x| and a_ of `b*`") == r"x (n, \*shape), \|x\| and a\_ of ``b*``"
    assert module.plain("* item\n  * other *x*") == "* item\n  * other \\*x\\*"
    kept = "Say :math:`a*b` and ``c*d``.\n\n>>> 2 * 3\n6\n\nEnd"
    assert module.plain(kept) == kept
