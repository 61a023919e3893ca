"""Nights: stages in order, slices that go on where the last one ended, one night at a time."""

import json
import os
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from psmlib.book import night
from psmlib.book.notebooks import Outcome, toc_notebooks
from psmlib.book.parameters import ParameterError
from psmlib.book.results import Results, load
from psmlib.machine import deadline, paths

PARAMETERS = (
    'profile = "smoke"  # record | smoke | quick | night | gpu | paper\ndataset = "all"\nseeds = 0\ndevice = "cpu"'
)
TRAINS = """
from psmlib.bank.mlp_bank import Bank
from psmlib.book.results import Results
from psmlib.data.toys import HG
from psmlib.nets.mlp import Plain
from psmlib.partition import SA
from psmlib.process import VP
from psmlib.training import snapshots

def job(seed):
    how = dict(stops=[UPDATES], batch_size=8, seed=seed, folder=snapshots.place("one", profile, seed))
    return snapshots.train(Bank(Plain(hidden=(8,)), 1, seed=seed), HG(), VP(), SA, **how).losses[UPDATES][0]

results = Results("one", profile, dict(profile=profile, dataset=dataset, seeds=seeds, device=device))
for (seed,), loss in results.run(job, [(0,), (1,)], workers=1).items():
    results.add("1", "loss", str(seed), loss, metric="loss", unit="1", paper="ours")
_ = results.save()
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository of one notebook with two stages, and one without."""
    (tmp_path / "notebooks").mkdir()
    stages = [dict(order=2, hours=1.0, parameters=dict(seeds=3)), dict(order=1, hours=0.5, parameters=dict(seeds=1))]
    for name, about in (("one", dict(night=stages)), ("two", {})):
        kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "psmlib": about})
        notebook.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "book").mkdir()
    chapters = "".join(f"- file: _executed/{name}\n" for name in ("two", "one"))
    (tmp_path / "book" / "_toc.yml").write_text(f"format: jb-book\nroot: index\nchapters:\n{chapters}")
    for constant, place in (("ROOT", ""), ("OUTPUT", ""), ("NOTEBOOKS", "notebooks"), ("RESULTS", "data/results")):
        monkeypatch.setattr(paths, constant, tmp_path / place)
    for variable in ("PSMLIB_OUTPUT", deadline.VARIABLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
    return tmp_path


def recorded(tree, parameters, unfinished=(), value=1.0):
    """What a slice leaves in the night's own folder."""
    run = Results("one", "night", parameters)
    run.add("1", "loss", "0", value, metric="loss", unit="1")
    run._unfinished = [dict(job=str(i), done="?", seconds_left=left) for i, left in enumerate(unfinished)]
    folder, paths.RESULTS = paths.RESULTS, tree / "data" / "cache" / "night" / "data" / "results"
    run.save()
    paths.RESULTS = folder


def test_stages_come_in_order_with_checked_parameters(tree):
    found = night.stages()
    assert [(s.notebook, s.order, s.parameters["seeds"]) for s in found] == [("one", 1, 1), ("one", 2, 3)]
    assert {s.parameters["profile"] for s in found} == {"night"}
    with pytest.raises(ParameterError, match="two has no stage of profile night: leave it out"):
        night.stages(["two"])


def test_slices_go_on_until_every_stage_is_on_record(tree):
    asked, said, unfinished = [], [], [[3600.0, None], [], []]

    def runner(template, output, parameters):
        asked.append((template.stem, parameters["seeds"], float(os.environ[deadline.VARIABLE]) > time.time()))
        recorded(tree, parameters, unfinished.pop(0))
        return Outcome(60.0)

    assert night.run([], 5.0, time.time() + 100, said.append, runner) == 0
    assert asked == [("one", 1, True), ("one", 1, True), ("one", 3, True)]
    assert load("night", "one").parameters["seeds"] == 3
    cores = night.cores()
    assert said[0] == f"  left: one (dataset all, seeds 1), about {0.5 / cores:.1f} hours on {cores} cores"
    # an hour measured, and an eighth of half an hour for a training that has not begun
    assert said[3] == f"  left: one (dataset all, seeds 1), about {(1 + 0.5 / 8) / cores:.1f} hours on {cores} cores"
    assert night.run([], 5.0, time.time() + 100, said.append, runner) == 0 and len(asked) == 3, "all is on record"


def test_a_failed_stage_keeps_the_older_record_and_stops_no_other(tree):
    recorded(tree, {"seeds": 7}, value=5.0)
    made = tree / "data" / "cache" / "night" / "data" / "results" / "night" / "one.json"
    (paths.RESULTS / "night").mkdir(parents=True)
    (paths.RESULTS / "night" / "one.json").write_bytes(made.read_bytes())
    asked, said = [], []

    def runner(template, output, parameters):
        asked.append(parameters["seeds"])
        return Outcome(1.0, reason="cell 1: ValueError: no")

    assert night.run([], 5.0, time.time() + 100, said.append, runner) == 1
    assert asked == [1, 3] and "one (dataset all, seeds 1) FAILED: cell 1: ValueError: no" in said
    assert load("night", "one").frame()["value"].tolist() == [5.0]


def test_the_time_limit_ends_a_night(tree):
    assert night.run([], 5.0, time.time() - 1, lambda text: None, runner=None) == 3


def test_a_second_night_is_refused_while_the_first_is_alive(tree):
    lock = tree / "data" / "cache" / "night" / "lock.json"
    lock.parent.mkdir(parents=True)
    me = psutil.Process()
    for held, refused in (
        ({"process": me.pid, "began": me.create_time()}, True),
        ({"process": me.pid, "began": me.create_time() - 1e4}, False),  # the number went to another process
        ([], False),
    ):
        lock.write_text(json.dumps(held))
        if refused:
            with pytest.raises(ParameterError, match=f"process {me.pid} is at work on the night's runs here"):
                night.run([], 5.0, time.time() - 1, lambda text: None)
        else:
            assert night.run([], 5.0, time.time() - 1, lambda text: None) == 3 and not lock.exists()


@pytest.mark.parametrize("minutes", [0.5, 10.0])
def test_a_night_as_a_user_runs_it(tree, minutes):
    """Cut off by its deadline it leaves a partial record; with time enough, a whole one."""
    template = paths.NOTEBOOKS / "one.ipynb"
    notebook = nbformat.read(template, 4)
    updates = 100 if minutes > 1 else 10**8
    notebook.cells.append(nbformat.v4.new_code_cell(TRAINS.replace("UPDATES", str(updates))))
    notebook.metadata["psmlib"]["night"] = [dict(order=1, hours=0.1)]
    nbformat.write(notebook, template)
    command = [
        sys.executable,
        "-m",
        "psmlib.run",
        "night",
        "one",
        "--slice",
        str(minutes**5),
        "--minutes",
        str(minutes),
    ]
    environment = os.environ | {"PSMLIB_ROOT": str(tree), "PSMLIB_OUTPUT": str(tree), "OMP_NUM_THREADS": "1"}
    environment.pop(deadline.VARIABLE, None)
    done = subprocess.run(command, cwd=paths.PACKAGE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == (0 if minutes > 1 else 3), done.stdout + done.stderr
    run = load("night", "one")
    unfinished = run.provenance["unfinished"]
    if minutes > 1:
        assert len(run) == 2 and not unfinished and "Nothing is left." in done.stdout
    else:
        assert len(run) == 0 and [job["job"] for job in unfinished] == ["0", "1"]


def test_the_book_has_stages_that_make_sense():
    found = night.stages()
    assert found[0].notebook == "psm_toys" and found[0].parameters["seeds"] == 1
    orders = [stage.order for stage in found]
    assert len(set(orders)) == len(orders) and {stage.notebook for stage in found} <= set(toc_notebooks())
