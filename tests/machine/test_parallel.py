"""Jobs in parallel processes."""

import os

import pytest
import torch

from psmlib.machine.parallel import parallel_map


def reporter():
    """A function that pickles by value, as one from a notebook does."""

    def where(x):
        return x, os.getpid(), torch.get_num_threads()

    return where


where = reporter()


def fails(x):
    raise ValueError(f"job {x} is broken")


def test_answers_come_in_order_from_other_processes_with_one_thread():
    found = parallel_map(where, [(i,) for i in range(6)], workers=2)
    assert [x for x, _, _ in found] == list(range(6))
    assert os.getpid() not in {pid for _, pid, _ in found}
    assert {threads for *_, threads in found} == {1}


def test_a_device_or_one_worker_stays_in_this_process():
    for settings in ({"workers": 1}, {"device": "cuda"}):
        assert {pid for _, pid, _ in parallel_map(where, [(1,), (2,)], **settings)} == {os.getpid()}


def test_the_environment_sets_the_workers(monkeypatch):
    monkeypatch.setenv("PSMLIB_WORKERS", "1")
    assert {pid for _, pid, _ in parallel_map(where, [(1,), (2,)])} == {os.getpid()}


def test_an_error_in_a_job_comes_back():
    with pytest.raises(ValueError, match="job 1 is broken"):
        parallel_map(fails, [(1,)], workers=1)


def test_no_jobs_no_answers():
    assert parallel_map(where, []) == []
