"""Runs that were stopped, prolonged or refused: what is lost, what is kept, and what the reader is told."""

import os

import pytest
import torch

from psmlib.bank.checkpoint import load
from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, TY
from psmlib.kernels.bank_mlp import layers
from psmlib.machine import memory
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import Progress, fit
from psmlib.training.objectives import Denoising, FlowMatching
from psmlib.training.times import LogUniform

F64 = torch.float64
P = VP(0.0, 10.0)
BLOCKS = Partition([0, 0.1, 1])
NET = Plain(hidden=(9, 8))


def run(bank=None, partition=BLOCKS, data=None, process=P, stop: int | None = None, **kw) -> tuple[Bank, Progress]:
    """Trains a small bank; with ``stop``, walks away after so many chunks."""
    bank = bank or Bank(NET, len(partition))
    kw = {"updates": 120, "batch_size": 16, **kw}
    for chunk, progress in enumerate(fit(bank, HG() if data is None else data, process, partition, **kw), 1):  # noqa: B007
        if chunk == stop:
            break
    return bank, progress


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and ". " not in text and len(text) > 20


SETTINGS = {
    "plain": {},
    "ema": {"ema": 0.95},
    "one_cycle": {"schedule": "one_cycle", "lr": 1e-2},
    "all": {"ema": 0.95, "schedule": "one_cycle", "times": LogUniform(0.4), "optimiser": "soap"},
}


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_left_goes_on_exactly_where_it_was(tmp_path, name, chunks):
    kw = {"updates": 230, "path": tmp_path / "run.st", "save_every": 50, **SETTINGS[name]}
    whole, last = run(**{**kw, "path": None})
    run(stop=chunks, **kw)
    resumed, progress = run(Bank(NET, 2, seed=99), resume=True, **kw)
    assert progress.update == 230 and torch.equal(resumed.params, whole.params)
    assert torch.equal(progress.loss, last.loss)
    if "ema" in kw:
        assert torch.equal(progress.average.params, last.average.params)


@pytest.mark.parametrize("stops", [(70,), (7, 49, 51, 130), (50, 99, 100)])
@pytest.mark.parametrize("ema, optimiser", [(None, "adam"), (0.95, "adam"), (None, "soap")])
def test_a_run_may_be_prolonged_from_any_update(tmp_path, stops, ema, optimiser):
    """Also from the middle of a chunk of random numbers."""
    kw = {"ema": ema, "optimiser": optimiser}
    whole, last = run(updates=170, **kw)
    for i, updates in enumerate((*stops, 170)):
        bank = Bank(NET, 2, seed=i)  # from the second on, what counts is the checkpoint
        bank, progress = run(bank, updates=updates, path=tmp_path / "a.st", resume=True, **kw)
        assert progress.update == updates
    assert torch.equal(bank.params, whole.params)
    assert ema is None or torch.equal(progress.average.params, last.average.params)


def test_the_time_between_checkpoints_is_kept(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("psmlib.bank.checkpoint.save", lambda path, tensors, about: saved.append(about["done"]))
    run(updates=430, save_every=120, path=tmp_path / "a.st")
    assert saved == [150, 250, 400, 430], "at the first look after every 120 updates, and at the end"


def test_a_finished_run_is_left_alone(tmp_path):
    kw = {"updates": 60, "path": tmp_path / "a.st", "ema": 0.9}
    bank, last = run(**kw)
    again, progress = run(Bank(NET, 2, seed=5), resume=True, **kw)
    assert torch.equal(again.params, bank.params) and torch.equal(progress.average.params, last.average.params)
    assert progress.update == 60 and bool(progress.loss.isnan().all())


def test_without_resume_the_checkpoint_is_not_read(tmp_path):
    first, _ = run(path=tmp_path / "a.st")
    again, _ = run(path=tmp_path / "a.st", resume=False)
    fresh, _ = run(path=tmp_path / "none.st", resume=True)
    assert torch.equal(first.params, again.params) and torch.equal(first.params, fresh.params)


def test_a_crash_while_saving_costs_the_last_chunks_only(tmp_path, monkeypatch):
    kw = {"updates": 150, "path": tmp_path / "a.st", "save_every": 50}
    whole, _ = run(**{**kw, "path": None})
    replace, calls = os.replace, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(*args)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        run(**kw)
    assert [f.name for f in tmp_path.iterdir()] == ["a.st"]
    resumed, _ = run(resume=True, **kw)
    assert torch.equal(resumed.params, whole.params) and len(calls) == 4, "one chunk was kept, two were done again"


OTHER_RUNS = {
    "lr": {"lr": 2e-3}, "batch_size": {"batch_size": 17}, "seed": {"seed": 1},
    "times": {"times": LogUniform(0.1)}, "t_min": {"times": LogUniform(0.0, 1e-4)},
    "ema": {"ema": 0.9}, "optimiser": {"optimiser": "soap"},
    "schedule": {"schedule": "one_cycle"},
    "edges": {"partition": Partition([0, 0.2, 1])}, "discrete": {"partition": Partition([0, 0.1, 1], discrete=True)},
    "process": {"process": VP()}, "networks": {"partition": Partition([0, 0.1, 0.5, 1])},
    "arch": {"bank": Bank(Plain(hidden=(8, 9)), 2)}, "dtype": {"bank": Bank(NET, 2, dtype=F64)},
    "objective": {"bank": Bank(NET, 2, native="velocity")}, "data": {"data": TY()}, "rows": {"data": torch.ones(4, 2)},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, name):
    run(updates=50, path=tmp_path / "a.st")
    kw = {"bank": Bank(NET, 2), "updates": 100, **OTHER_RUNS[name]}
    if "partition" in kw:
        kw["bank"] = Bank(NET, len(kw["partition"]))
    before = kw["bank"].params.clone()
    with pytest.raises(ValueError, match=r"a.st was made with .* but this run has .*: resume with the same") as error:
        run(path=tmp_path / "a.st", resume=True, **kw)
    assert one_sentence(error) and torch.equal(kw["bank"].params, before)


def test_one_cycle_cannot_be_prolonged_and_says_so(tmp_path):
    run(updates=50, schedule="one_cycle", path=tmp_path / "a.st")
    with pytest.raises(ValueError, match="made with schedule_updates = 50 but this run has 100") as error:
        run(updates=100, schedule="one_cycle", path=tmp_path / "a.st", resume=True)
    assert one_sentence(error)


def test_a_corrupt_checkpoint_is_refused(tmp_path):
    run(updates=50, path=tmp_path / "a.st")
    whole = (tmp_path / "a.st").read_bytes()
    (tmp_path / "a.st").write_bytes(whole[: len(whole) // 2])
    bank = Bank(NET, 2)
    with pytest.raises(ValueError, match="a.st is not a checkpoint of psmlib .*: delete it and train anew") as error:
        run(bank, path=tmp_path / "a.st", resume=True)
    assert one_sentence(error) and torch.equal(bank.params, Bank(NET, 2).params)


# Refusals before the start and on the way ----------------------------------------------------------------------


class Breaking:
    """HG, drawn by a generator; draw number ``at`` holds a number that is none."""

    fingerprint = "breaking"

    def __init__(self, at: int | None = 4):
        self.calls, self.at = 0, at

    def sample(self, n, generator):
        self.calls += 1
        x = HG().sample(n, generator)
        if self.calls == self.at:
            x[-1, 0] = torch.nan
        return x


def test_broken_data_name_the_block_and_leave_the_last_finite_state(tmp_path):
    good, last = run(data=Breaking(at=None), updates=50, ema=0.9)
    bank = Bank(NET, 2)
    with pytest.raises(FloatingPointError, match=r"block 1 \(0.1, 1.0\) is nan between updates 50 and 100") as error:
        for progress in fit(
            bank, Breaking(), P, BLOCKS, updates=200, batch_size=16, ema=0.9, path=tmp_path / "a.st", save_every=50
        ):
            average = progress.average
    assert one_sentence(error) and "lower lr (0.001) or check the data" in str(error.value)
    assert torch.equal(bank.params, good.params) and torch.equal(average.params, last.average.params)
    found, about = load(tmp_path / "a.st")
    assert about["done"] == 50 and torch.equal(found["params"], good.params)


def test_a_last_step_that_leaves_the_finite_numbers_is_taken_back():
    """The loss of a step is taken before it, so the loss alone would not tell of an infinite gradient."""
    arch = Plain(hidden=(4,), times=0)
    bank = Bank(arch, 1)
    (weight, _), (last, _) = layers(bank.params, arch.widths)
    weight.zero_()  # the huge points reach the gradient of this layer, not the loss
    last.mul_(1e6)
    before = bank.params.clone()
    with pytest.raises(FloatingPointError, match="block 0 .* between updates 0 and 1: lower lr"):
        run(bank, Partition([0, 1]), data=torch.full((3, 2), 1e37), updates=1)
    assert torch.equal(bank.params, before)


class Untouched:
    """Data that must not be asked for."""

    name = "untouched"

    def sample(self, n, generator):
        raise AssertionError("the run had started")


def test_a_run_that_would_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 20000)
    bank = Bank(NET, 2)
    with pytest.raises(MemoryError, match="training 2 networks at batch 16 needs about .* GiB but cpu has") as error:
        run(bank, data=Untouched(), path=tmp_path / "a.st")
    assert one_sentence(error) and torch.equal(bank.params, Bank(NET, 2).params) and not list(tmp_path.iterdir())


def test_the_prediction_grows_with_everything_that_is_held(monkeypatch):
    asked = {}
    monkeypatch.setattr("psmlib.training.steps.check_memory", lambda needed, device, what: asked.update(last=needed))

    def needed(arch=NET, K=2, **kw):
        run(Bank(arch, K), Partition.equal(K), updates=1, **kw)
        return asked["last"]

    base = needed()
    assert base > Bank(NET, 2).params.nbytes * 3
    for more in ("K", 20), ("arch", Plain()), ("batch_size", 64), ("ema", 0.9), ("workers", 2), ("optimiser", "soap"):
        kw = dict([more])
        assert needed(**kw) > base, kw


@pytest.mark.parametrize(
    "kw, culprit",
    [
        ({"partition": Partition([0, 0.1, 0.5, 1])}, "holds 2 networks but .* has 3 blocks"),
        ({"partition": Partition([0, 0.1, 0.9])}, r"ends at 0.9 but .* runs to T = 1: give edges from 0 to 1"),
        ({"bank": Bank(NET, 2, native="velocity"), "objective": Denoising()}, "'eps' but .* predicts 'velocity'"),
        ({"objective": FlowMatching()}, "trains 'velocity' but the bank predicts 'eps': make it with"),
        ({"updates": -1}, "updates must be a positive whole number, got -1"),
        ({"updates": 0}, "updates must be a positive whole number, got 0"),
        ({"updates": 10.5}, "updates must be a positive whole number, got 10.5"),
        ({"batch_size": 0}, "batch_size must be a positive whole number, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"times": "uniform"}, r"times must be a class of psmlib.training.times, such as Uniform\(\), got 'uniform'"),
        ({"ema": 1.0}, r"ema must lie in \(0, 1\) or be None, got 1.0"),
        ({"optimiser": "sgd"}, "unknown optimiser 'sgd': use one of adam, soap"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine': use one of constant, one_cycle"),
    ],
)
def test_arguments_that_do_not_fit_are_named_in_one_sentence(kw, culprit):
    bank = kw.pop("bank", None) or Bank(NET, 2)
    before = bank.params.clone()
    with pytest.raises(ValueError, match=culprit) as error:
        run(bank, data=Untouched(), **kw)
    assert one_sentence(error) and torch.equal(bank.params, before)
