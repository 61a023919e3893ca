"""Trainings that a deadline ends keep their state and go on to the same networks; jobs that it ends are left out."""

import pickle
import time

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.book.results import Results
from psmlib.data.toys import HG
from psmlib.machine import deadline
from psmlib.machine.deadline import Unfinished
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import fit, snapshots
from psmlib.training import guarded as guarding

RUN = (HG(), VP(0.0, 10.0), Partition([0, 0.1, 1]))
HOW = dict(stops=[100, 300], batch_size=8, seed=1)


def bank():
    return Bank(Plain(hidden=(8,)), 2, seed=1)


def test_it_is_late_after_the_moment(monkeypatch):
    monkeypatch.delenv(deadline.VARIABLE, raising=False)
    assert not deadline.late()
    for seconds, expected in ((-1, True), (60, False)):
        monkeypatch.setenv(deadline.VARIABLE, str(time.time() + seconds))
        assert deadline.late() is expected


def test_what_is_left_is_told_at_the_measured_rate():
    unfinished = pickle.loads(pickle.dumps(Unfinished(1000, 4000, 5.0)))
    assert unfinished.left == 15.0 and str(unfinished) == "1,000 of 4,000 updates"
    assert Unfinished(0, 4000, 0.0).left is None


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 5])
def test_a_training_that_was_cut_off_goes_on_to_the_same_networks(tmp_path, monkeypatch, chunks):
    whole = snapshots.train(bank(), *RUN, **HOW)
    looks = iter([False] * chunks + [True] * 99)
    monkeypatch.setattr(guarding, "late", lambda: next(looks))
    with pytest.raises(Unfinished) as caught:
        snapshots.train(bank(), *RUN, folder=tmp_path, **HOW)
    assert caught.value.done == 50 * chunks and caught.value.updates == 300
    assert (tmp_path / "100.safetensors").exists() is (chunks >= 2)
    monkeypatch.setattr(guarding, "late", lambda: False)
    found = snapshots.train(bank(), *RUN, folder=tmp_path, **HOW)
    for stop in HOW["stops"]:
        assert torch.equal(found.banks[stop].params, whole.banks[stop].params)


def test_what_could_not_go_on_is_not_cut_off(monkeypatch):
    monkeypatch.setenv(deadline.VARIABLE, "0")
    *_, progress = fit(bank(), *RUN, updates=100, batch_size=8)
    assert progress.update == 100


def test_finished_snapshots_are_read_however_late_it_is(tmp_path, monkeypatch):
    snapshots.train(bank(), *RUN, folder=tmp_path, **HOW)
    monkeypatch.setenv(deadline.VARIABLE, "0")
    assert sorted(snapshots.train(bank(), *RUN, folder=tmp_path, **HOW).banks) == [100, 300]


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_that_were_cut_off_are_left_out_and_named(workers, tmp_path, monkeypatch):
    def square(x):  # by value to other processes
        if x == 3:
            raise Unfinished(10, 40, 1.0)
        return x * x

    monkeypatch.setattr("psmlib.machine.paths.RESULTS", tmp_path)
    results = Results("nb", "night")
    assert results.run(square, [(2,), (3,), (4,)], workers=workers) == {(2,): 4, (4,): 16}
    results.save()
    assert results.provenance["unfinished"] == [{"job": "3", "done": "10 of 40 updates", "seconds_left": 3.0}]
