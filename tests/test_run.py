"""The runner: strict parameters, failures that do not stop other notebooks, and runs that are skipped when current."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest

from psmlib.book.notebooks import Outcome, Run, metadata, staleness_key, toc_pages
from psmlib.book.parameters import ParameterError, check, convert, declared, resolve
from psmlib.machine import paths
from psmlib.run import with_device

PARAMETERS = 'profile = "smoke"\ndataset = "all"\nseeds = 0\nrate = 0.1\nema = False\ndevice = "cpu"'
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
TOC = "format: jb-book\nroot: index\nchapters:\n" + "".join(f"- file: _executed/{n}\n" for n in ("one", "two", "three"))


def write_notebook(path: Path, *cells: str, **psmlib: object) -> Path:
    """Write a notebook of a parameters cell and the given code cells."""
    notebook = nbformat.v4.new_notebook(metadata=KERNEL | {"psmlib": psmlib})
    notebook.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository: three notebooks, a table of contents, a lock, data."""
    for name, source in (("one", "print(dataset)"), ("two", "1 / 0"), ("three", "print(2 + 2)")):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", source)
    for name, text in (
        ("book/_toc.yml", TOC),
        ("requirements.lock", "x==1\n"),
        ("data/paper_values.toml", ""),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    moved = {"ROOT": "", "OUTPUT": "", "NOTEBOOKS": "notebooks", "DATA": "data", "LOCK": "requirements.lock"}
    moved |= {"EXECUTED": "book/_executed", "RESULTS": "data/results", "BOOK": "book"}
    for constant, place in moved.items():
        monkeypatch.setattr(paths, constant, tmp_path / place)
    return tmp_path


def run(tree: Path, *words: str) -> subprocess.CompletedProcess:
    """Call the command line on a small repository, as a reader would."""
    environment = os.environ | {"PSMLIB_ROOT": str(tree), "PSMLIB_OUTPUT": str(tree)}
    command = [sys.executable, "-m", "psmlib.run", *words]
    return subprocess.run(command, cwd=paths.PACKAGE.parent, env=environment, capture_output=True, text=True)


# --- parameters ------------------------------------------------------------------------------------------


def test_types_come_from_the_literals_of_the_parameters_cell(tree: Path) -> None:
    template = tree / "notebooks" / "one.ipynb"
    given = {"seeds": "3", "rate": "1", "ema": "true", "dataset": "TY"}
    values = resolve(template, given)
    assert values == declared(template) | {"seeds": 3, "rate": 1.0, "ema": True, "dataset": "TY"}
    assert type(values["rate"]) is float


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("profil", "quick", ["one has no parameter 'profil'", "did you mean 'profile'", "seeds (int)"]),
        ("profile", "huge", ["no profile 'huge'", "record, smoke, quick, gpu, night, paper"]),
        ("seeds", "many", ["seeds must be of type int, like 0, not 'many'"]),
        ("seeds", "1.5", ["seeds must be of type int", "not 1.5"]),
        ("seeds", "True", ["seeds must be of type int", "not True"]),
        ("rate", "nan", ["rate must be of type float"]),
        ("rate", "1e999", ["rate must be of type float"]),
        ("ema", "1", ["ema must be of type bool", "not 1"]),
    ],
)
def test_wrong_parameters_are_refused_in_one_sentence(tree: Path, name: str, value: str, words: list[str]) -> None:
    with pytest.raises(ParameterError) as error:
        resolve(tree / "notebooks" / "one.ipynb", {name: value})
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and message.endswith(".")


def test_a_default_must_be_a_literal_and_a_cell_must_be_there(tree: Path) -> None:
    derived = nbformat.v4.new_code_cell("seeds = 2 * 3", metadata={"tags": ["parameters"]})
    broken = {
        "derived": nbformat.v4.new_notebook(cells=[derived], metadata=KERNEL),
        "kernelless": nbformat.v4.new_notebook(cells=[derived]),
        "empty": nbformat.v4.new_notebook(metadata=KERNEL),
    }
    for name, notebook in broken.items():
        nbformat.write(notebook, tree / "notebooks" / f"{name}.ipynb")
    said = {
        "derived": "literal",
        "kernelless": "kernelspec",
        "empty": "tag a cell",
        "missing": "notebooks/ has",
    }
    for name, word in said.items():
        with pytest.raises(ParameterError, match=word):
            declared(tree / "notebooks" / f"{name}.ipynb")


def test_text_is_kept_as_it_is() -> None:
    assert convert("dataset", "1", "all") == "1"


def test_a_running_notebook_sees_what_papermill_injected(tree: Path) -> None:
    good = declared(tree / "notebooks" / "one.ipynb")
    assert check("one", good | {"In": ["", PARAMETERS, '# Parameters\nprofile = "smoke"\n']}) == good
    with pytest.raises(ParameterError, match="no parameter 'seed'.*did you mean 'seeds'"):
        check("one", good | {"In": ["", PARAMETERS, "# Parameters\nseed = 3\n"]})
    with pytest.raises(ParameterError, match="seeds must be of type int"):
        check("one", good | {"seeds": "3"})


def test_a_large_budget_without_a_gpu_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ParameterError, match="Profile gpu wants a CUDA device"):
        with_device("gpu", {})
    assert with_device("gpu", {"device": "cpu"}) == {"profile": "gpu", "device": "cpu"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert with_device("paper", {}) == {"profile": "paper", "device": "cuda"}
    assert with_device("quick", {}) == {"profile": "quick"}


def test_nothing_runs_after_a_wrong_parameter(tree: Path) -> None:
    done = run(tree, "book", "--profile", "smoke", "-p", "sedes", "3")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "'sedes'" in done.stderr
    assert not (tree / "book" / "_executed").exists()


# --- failures --------------------------------------------------------------------------------------------


def test_a_failed_notebook_stops_the_book_but_not_the_others(tree: Path) -> None:
    done = run(tree, "book", "--profile", "smoke")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "[2/3] two FAILED" in done.stdout and "ZeroDivisionError: division by zero" in done.stdout
    assert "[3/3] three done" in done.stdout
    assert "two (partial output: " in lines[-1] and "_executed/two.ipynb)" in lines[-1]
    assert not (tree / "build").exists(), "the book must not be built over a failed notebook"
    partial = json.loads((tree / "book/_executed/two.ipynb").read_text())
    assert [o["ename"] for c in partial["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert {f.name for f in (tree / "book/_executed").glob("*.key.json")} == {
        "one.key.json",
        "three.key.json",
    }

    again = run(tree, "book", "--profile", "smoke")  # the good ones stand, the failed one is tried again
    assert again.returncode == 1
    assert again.stdout.count("unchanged") == 2 and "[2/3] two FAILED" in again.stdout


def test_one_notebook_runs_with_its_parameters_and_leaves_no_machine_path(tree: Path) -> None:
    done = run(tree, "notebook", "one", "--profile", "smoke", "-p", "dataset", "TY")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tree / "book/_executed/one.ipynb").read_text()
    cells = json.loads(text)["cells"]
    assert cells[-1]["outputs"][0]["text"] == ["TY\n"]
    assert str(tree) not in text
    assert run(tree, "notebook", "four").returncode == 2


# --- staleness -------------------------------------------------------------------------------------------


def test_the_key_is_stable(tree: Path) -> None:
    template = tree / "notebooks" / "one.ipynb"
    assert staleness_key(template, {"a": 1, "b": 2}) == staleness_key(template, {"b": 2, "a": 1})


def _touch(place: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        file = tree / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((file.read_text() if file.is_file() else "") + "\n ")

    return change


@pytest.mark.parametrize(
    ("place", "stale"),
    [
        ("notebooks/one.ipynb", True),
        ("requirements.lock", True),
        ("data/paper_values.toml", True),
        ("data/raw/digits.bin", True),
        ("psmlib/process.py", True),
        ("data/results/gpu/one.json", True),  # its own results of another budget, which it names under uses
        ("data/results/smoke/two.json", True),
        ("data/results/smoke/one.json", False),  # what it writes itself
        ("data/results/smoke/three.json", False),  # what it does not read
        ("data/bench/rows.csv", False),
        ("notebooks/two.ipynb", False),
    ],
)
def test_what_makes_a_run_stale(tree: Path, monkeypatch: pytest.MonkeyPatch, place: str, stale: bool) -> None:
    monkeypatch.setattr(paths, "PACKAGE", tree / "psmlib")
    template = write_notebook(tree / "notebooks" / "one.ipynb", "1", uses=["one", "two"])
    before = staleness_key(template, {"profile": "smoke"})
    _touch(place)(tree)
    assert (staleness_key(template, {"profile": "smoke"}) != before) is stale
    assert metadata(template)["uses"] == ["one", "two"]


def test_benchmarks_make_a_run_stale_that_reads_them(tree: Path) -> None:
    rows = tree / "data" / "bench" / "rows.csv"
    for source, stale in (("bench_records.load('rows')", True), ("1", False)):
        template = write_notebook(tree / "notebooks" / "one.ipynb", source)
        rows.parent.mkdir(exist_ok=True, parents=True)
        rows.write_text("a")
        before = staleness_key(template, {"profile": "smoke"})
        rows.write_text("b")
        assert (staleness_key(template, {"profile": "smoke"}) != before) is stale


def test_parameters_make_a_run_stale(tree: Path) -> None:
    template = tree / "notebooks" / "one.ipynb"
    assert staleness_key(template, {"profile": "smoke"}) != staleness_key(template, {"profile": "quick"})


def test_a_run_stands_only_while_its_files_are_as_it_left_them(tree: Path) -> None:
    result, executed = tree / "data/results/smoke/one.json", paths.EXECUTED / "one.ipynb"
    for damage in (Path.unlink, lambda file: file.write_text("{"), lambda file: file.write_text('{"a": 2}')):
        for broken in (result, executed):
            for file in (result, executed):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text('{"a": 1}')
            Run.of("one", "k", Outcome(1.5, ["data/results/smoke/one.json"])).save("one")
            record = Run.load("one")
            assert record is not None and record.seconds == 1.5
            assert record.fresh("one", "k") and not record.fresh("one", "other")
            damage(broken)
            assert not record.fresh("one", "k")


@pytest.mark.parametrize(
    "text",
    ["{half", "[]", "1", "null", '{"key": "a", "seconds": "x"}', '{"key": "a", "seconds": 1, "outputs": ["a"]}',
     '{"key": "a", "seconds": 1, "outputs": {"a": 1}}', '{"key": ["a"], "seconds": 1}', "[" * 10000],
)  # fmt: skip
def test_a_damaged_record_counts_as_none(tree: Path, text: str) -> None:
    Run.path("one").parent.mkdir(parents=True)
    Run.path("one").write_text(text)
    assert Run.load("one") is None


@pytest.mark.parametrize("name", ["../notebooks/one", "/tmp/one", "one.ipynb", "", "two/one", "a b"])
def test_only_names_name_notebooks(tree: Path, name: str) -> None:
    for command in ("notebook", "check-parameters"):
        done = run(tree, command, name)
        assert done.returncode == 2 and "is no name of a notebook" in done.stderr and done.stderr.count("\n") == 1


def test_choices_stand_in_the_comments_of_the_parameters_cell(tree: Path) -> None:
    lines = ['profile = "smoke"  # smoke | quick', 'dataset = (\n    "all"  # TY | HG | all, beside the line\n)']
    lines += ["seeds = 0  # 0: as many as the profile says", 'device = "cpu"', 'inception = ""  # path of the weights']
    notebook = nbformat.v4.new_notebook(metadata=KERNEL)
    notebook.cells = [nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["parameters"]})]
    template = tree / "notebooks" / "four.ipynb"
    nbformat.write(notebook, template)
    assert resolve(template, {"dataset": "HG", "seeds": "3", "inception": str(template)})["dataset"] == "HG"
    for name, value, said in (
        ("dataset", "hg", "dataset = 'hg' is no choice: take TY, HG, all."),
        ("seeds", "-1", "seeds = -1 is negative: give 0 or more."),
        ("device", "CPU", "device = 'CPU' is none: take cpu, cuda, or one of several such as cuda:1."),
        ("device", "cuda:99", "device = 'cuda:99' is not there: torch sees"),
        ("inception", "no/such", "inception = 'no/such' names no file: give the path of the weights."),
    ):
        with pytest.raises(ParameterError, match=re.escape(said)):
            resolve(template, {name: value})
        with pytest.raises(ParameterError, match=re.escape(said)):
            check("four", declared(template) | {name: int(value) if name == "seeds" else value})


def test_every_chapter_takes_its_own_defaults() -> None:
    for template in sorted((paths.PACKAGE.parent / "notebooks").glob("*.ipynb")):
        assert resolve(template, {}) == declared(template)


@pytest.mark.parametrize("text", ["nan", "inf", "0", "-3"])
def test_a_time_limit_is_positive(tree: Path, text: str) -> None:
    done = run(tree, "batch", "one", "--profile", "smoke", "--minutes", text)
    assert done.returncode == 2 and f"{text} is no time: give a positive number of minutes" in done.stderr


@pytest.mark.parametrize("command", [("book",), ("notebook", "one"), ("pages",)])
def test_an_output_folder_that_is_a_file_is_refused(tree: Path, command: tuple[str, ...]) -> None:
    (tree / "file").write_text("mine")
    environment = os.environ | {"PSMLIB_ROOT": str(tree), "PSMLIB_OUTPUT": str(tree / "file" / "sub")}
    words = [sys.executable, "-m", "psmlib.run", *command]
    done = subprocess.run(words, cwd=paths.PACKAGE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is no folder: name a folder for the output in PSMLIB_OUTPUT" in done.stderr


def test_a_run_that_is_ended_takes_its_kernel_with_it(tree: Path) -> None:
    write_notebook(tree / "notebooks" / "two.ipynb", "import time; time.sleep(600)")
    environment = os.environ | {"PSMLIB_ROOT": str(tree), "PSMLIB_OUTPUT": str(tree)}
    command = [sys.executable, "-m", "psmlib.run", "notebook", "two", "--profile", "smoke"]
    process = subprocess.Popen(command, cwd=paths.PACKAGE.parent, env=environment, stderr=subprocess.PIPE)
    parent, end = psutil.Process(process.pid), time.monotonic() + 120
    while len(family := parent.children(recursive=True)) < 2 and time.monotonic() < end:  # papermill and its kernel
        time.sleep(0.2)
    assert len(family) >= 2
    process.terminate()
    assert process.wait(60) == 130 and b"what had been run is kept" in process.stderr.read()
    assert psutil.wait_procs(family, timeout=20)[1] == []


def test_pages_are_read_in_the_order_of_the_contents(tmp_path: Path) -> None:
    toc = tmp_path / "_toc.yml"
    toc.write_text(
        "root: index\nparts:\n- chapters:\n  - file: a\n    sections:\n    - file: a1\n  - file: b\n"
        "- chapters:\n  - url: elsewhere\n  - file: c\n"
    )
    assert toc_pages(toc) == ["index", "a", "a1", "b", "c"]


# --- batches ---------------------------------------------------------------------------------------------


def test_a_batch_goes_on_where_it_stopped(tree: Path) -> None:
    """The first limit ends it during the second notebook; the next call does only what is left."""
    write_notebook(tree / "notebooks" / "two.ipynb", "import time; time.sleep(60)")
    first = run(tree, "batch", "one", "two", "three", "--profile", "smoke", "--minutes", "0.4")
    assert first.returncode == 3, first.stderr
    assert "two cut off by the time limit" in first.stdout and "left to do: two, three." in first.stdout
    write_notebook(tree / "notebooks" / "two.ipynb", "print(1)")
    second = run(tree, "batch", "one", "two", "three", "--profile", "smoke")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "one unchanged" in second.stdout and "two done" in second.stdout and "three done" in second.stdout


def test_a_batch_names_what_failed(tree: Path) -> None:
    done = run(tree, "batch", "two", "--profile", "smoke")
    assert done.returncode == 1 and "1 of 1 notebooks failed and the others were run" in done.stdout
