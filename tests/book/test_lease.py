"""A lease: steps in order of value within the time, done once, and the whole path on a processor."""

import os
import subprocess
import sys

import pytest

from psmlib.book import lease
from psmlib.book.lease import Step, steps
from psmlib.book.results import Results
from psmlib.machine import paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "OUTPUT", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return tmp_path


def record(unfinished):
    results = Results("nb", "gpu", {"seeds": 1})
    results._unfinished = [dict(job="x", done="1 of 2 updates", seconds_left=1.0)] if unfinished else []
    results.save()


def test_steps_are_done_once_and_what_failed_or_was_cut_off_is_left(folder):
    todo = [Step("a", 100.0, ("a",)), Step("b", 100.0, ("b",)), Step("c", 100.0, ("c",)), Step("d", 1e4, ("d",))]
    called, said, status = [], [], {"a": 0, "b": 3, "c": None, "d": 0}

    def call(command, seconds):
        called.append((command[0], seconds))
        return status[command[0]]

    assert lease.run(todo, 9.0, said.append, call) == ["b", "c"]
    assert [name for name, _ in called] == list("abcd")
    assert [seconds for _, seconds in called[:3]] == [100.0] * 3 and called[3][1] == pytest.approx(540, abs=5)
    outcomes = ["a: done", "b: FAILED with status 3", "c: cut off by the time limit", "d: done"]
    assert [line.partition(" after")[0] for line in said] == outcomes
    called.clear()
    status.update(b=0, c=0)
    assert lease.run(todo, 9.0, said.append, call) == [] and [name for name, _ in called] == ["b", "c"]


def test_without_time_nothing_is_begun(folder):
    assert lease.run([Step("a", 9.0, ("a",))], 0.5, lambda text: None, call=None) == ["a"]


def test_a_run_whose_trainings_are_unfinished_is_not_done(folder):
    step, said = Step("a", 100.0, ("a",), ("gpu", "nb")), []
    for unfinished in (True, False):
        record(unfinished)
        assert lease.run([step], 9.0, said.append, lambda command, seconds: 0) == (["a"] if unfinished else [])
    assert [line.partition(" after")[0] for line in said] == ["a: begun", "a: done"]


def test_trainings_are_told_to_end_before_a_command_is_cut_off(folder):
    within = "import os, time; left = float(os.environ['PSMLIB_UNTIL']) - time.time(); raise SystemExit(30 < left < 41)"
    assert lease._call(("-c", within), 60.0) == 1  # of 60 seconds SPARE are kept
    assert lease._call(("-c", "import time; time.sleep(60)"), 0.5) is None


def test_a_change_of_the_source_makes_a_step_due_again(folder, monkeypatch):
    step, called = Step("a", 100.0, ("a",)), []
    for source, calls in (("one", 1), ("one", 1), ("other", 2)):
        monkeypatch.setattr(lease, "source_hash", lambda name, source=source: source)
        assert lease.run([step], 9.0, lambda text: None, lambda command, seconds: called.append(command) or 0) == []
        assert len(called) == calls


def test_the_most_valuable_steps_come_first():
    names = [step.name for step in steps("gpu", "cuda")]
    first = ["tests of the kernels", "benchmarks", *(f"TPSM-C at the paper's budget, {toy}" for toy in ("TY", "HG"))]
    assert names[:4] == first


def test_the_whole_path_on_a_processor(tmp_path):
    """As a user tries it before a machine is lent: every step of profile smoke ends well."""
    environment = os.environ | {"PSMLIB_OUTPUT": str(tmp_path), "PSMLIB_BATCH": "1"}
    command = [sys.executable, "-m", "psmlib.run", "lease", "--profile", "smoke", "--minutes", "9"]
    done = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "Everything is done." in done.stdout and (tmp_path / "data" / "results" / "smoke" / "psm_toys.json").is_file()
    )
    again = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True)
    assert again.stdout.count("done before") == len(steps("smoke", "cpu")), again.stdout
