"""Copies of the book and of kept results in an output folder: nothing of anybody else's is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from psmlib.book.build import COPIED, build, prepare
from psmlib.machine import paths


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository and an output folder beside it."""
    root, output = tmp_path / "root", tmp_path / "output"
    for name in ("book/index.md", "book/_static/a.css", "book/_executed/x.ipynb", "data/results/quick/one.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    moved = {"ROOT": root, "DATA": root / "data", "OUTPUT": output, "BOOK": output / "book", "BUILD": output / "build"}
    for constant, place in moved.items():
        monkeypatch.setattr(paths, constant, place)
    return output


def held(folder: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != COPIED]
    return {f.relative_to(folder).as_posix(): f.read_text() for f in files}


COPIES = {name: name for name in ("book/index.md", "book/_static/a.css", "data/results/quick/one.json")}


def test_sources_and_results_are_copied_and_renewed(output: Path) -> None:
    prepare()
    assert held(output) == COPIES
    (paths.ROOT / "book/index.md").write_text("new")
    (paths.ROOT / "book/_static/a.css").unlink()
    prepare()
    assert held(output) == {"book/index.md": "new", "data/results/quick/one.json": "data/results/quick/one.json"}


def test_what_others_wrote_stays(output: Path) -> None:
    prepare()
    mine = {"book/mine.md": "m", "book/_static/logo.svg": "l", "data/results/quick/one.json": "my run", "a/b.txt": "b"}
    for name, text in mine.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)
    (paths.ROOT / "data/results/quick/one.json").write_text("their newer run")
    prepare()
    assert held(output) == COPIES | mine
    (paths.ROOT / "data/results/quick/one.json").unlink()
    prepare()
    assert held(output) == COPIES | mine


@pytest.mark.parametrize("name", ["book/thesis.md", "book/_static/a.css"])
def test_a_book_of_somebody_elses_is_not_touched(output: Path, name: str) -> None:
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text("mine")
    with pytest.raises(paths.OutputError, match="book is not of this program's making: name another folder in PSML"):
        prepare()
    assert held(output) == {name: "mine"}


def test_own_results_alone_are_no_obstacle(output: Path) -> None:
    (output / "data/results/quick").mkdir(parents=True)
    (output / "data/results/quick/one.json").write_text("mine")
    prepare()
    assert held(output) == COPIES | {"data/results/quick/one.json": "mine"}


@pytest.mark.parametrize("text", ["{half", "[]", "3"])
def test_a_damaged_list_of_copies_deletes_nothing(output: Path, text: str) -> None:
    prepare()
    (output / COPIED).write_text(text)
    with pytest.raises(paths.OutputError, match=r"cannot be read|not of this program's making"):
        prepare()
    assert held(output) == COPIES


def test_built_pages_of_somebody_elses_stay(output: Path) -> None:
    (output / "build/_build").mkdir(parents=True)
    (output / "build/_build/thesis.html").write_text("mine")
    with pytest.raises(paths.OutputError, match="_build is not of this program's making"):
        build()
    assert held(output) == {"build/_build/thesis.html": "mine"}


def test_collecting_tests_touches_no_book(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "thesis.md").write_text("mine")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_solvers.py",
    ]
    environment = os.environ | {"PSMLIB_OUTPUT": str(tmp_path)}
    done = subprocess.run(command, cwd=paths.PACKAGE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 4 and "is not of this program's making" in done.stderr and "Traceback" not in done.stderr
    assert held(tmp_path) == {"book/thesis.md": "mine"}
