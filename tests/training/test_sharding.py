"""A bank trained in groups is the bank trained whole, within the memory that was told."""

import functools
import json

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG
from psmlib.machine import memory
from psmlib.machine.memory import HeldBytes
from psmlib.nets.mlp import Plain
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import CHUNK, fit, shard_plan, sharding, steps
from psmlib.training.shard_plan import Plan, plan, predicted
from psmlib.training.sharding import fit_sharded, joined

F64 = torch.float64
P, K = VP(0.0, 10.0), 5
BLOCKS = Partition.equal(K)
NORMED = Ronneberger(2, 2, 1, bias=False, dtype=F64, channels_last=True)
DROPPING = UNet(4, (1,), 1, blocks=1, attention=None, middle=None, groups=2, dropout=0.3, dtype=F64)
DATA = 0.5 + torch.randn(30, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
RUN = {"updates": CHUNK + 3, "batch_size": 2, "ema": 0.9, "lr": 3e-3}


def maker(net=NORMED, size: int = K, seed: int = 3):
    return lambda only: ImageBank(net, size, seed=seed, only=only)


def budget(networks: int, net=NORMED, size: int = K, **kw) -> int:
    """Bytes that so many networks need."""
    return predicted(maker(net, size), networks, DATA, P, Partition.equal(size), **{**RUN, **kw})


def run(folder, most: int = 2, net=NORMED, **kw):
    """A run in groups of at most so many networks."""
    return fit_sharded(maker(net), DATA, P, BLOCKS, folder=folder, **{**RUN, "budget": budget(most, net), **kw})


def last(states):
    for state in states:  # noqa: B007
        pass
    return state


@functools.cache
def whole(net=NORMED, updates=RUN["updates"]) -> tuple[ImageBank, ImageBank]:
    bank = ImageBank(net, K, seed=3)
    return bank, last(fit(bank, DATA, P, BLOCKS, **{**RUN, "updates": updates})).average


def same(found, wanted) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(torch.equal(a.params, b.params) and torch.equal(a.buffers, b.buffers) for a, b in pairs)


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and ". " not in text and len(text) > 20


# The networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_any_cut_gives_the_bank_trained_whole(most, tmp_path):
    end = last(run(tmp_path, most))
    assert len(end.plan.groups) == -(-K // most) and end.group is None
    assert same((end.bank, end.average), whole()) and (end.bank.first, len(end.bank)) == (0, K)
    assert not torch.equal(end.bank.params, end.average.params)
    assert not list(tmp_path.glob("running-*")), "states are not kept longer than needed"
    assert same(joined(tmp_path), (end.bank, end.average))


def test_dropout_too(tmp_path):
    end = last(run(tmp_path, 2, DROPPING, updates=3))
    assert same((end.bank, end.average), whole(DROPPING, 3))


def test_without_an_average_and_without_joining(tmp_path):
    end = last(run(tmp_path, 3, ema=None, updates=2, join=False))
    assert end.bank is None and end.average is None
    bank, average = joined(tmp_path)
    wanted = ImageBank(NORMED, K, seed=3)
    last(fit(wanted, DATA, P, BLOCKS, updates=2, batch_size=2, lr=3e-3))
    assert average is None and same((bank,), (wanted,))


@pytest.mark.parametrize("stop, most", [(1, 2), (2, 2), (3, 5), (4, 3), (5, 1)])
def test_a_run_goes_on_where_it_was_left_whatever_the_next_budget(stop, most, tmp_path, monkeypatch):
    """After the plan a group takes two chunks, and its state is written after each."""
    for _, state in zip(range(stop), run(tmp_path, 2, save_every=CHUNK), strict=False):
        left = state
    finished = [
        part for part in (range(2), range(2, 4)) if (tmp_path / f"networks-{part[0]}-{part[-1]}.safetensors").exists()
    ]
    trained, given = [], sharding.fit

    @functools.wraps(given)
    def counted(bank, *args, **settings):
        for progress in given(bank, *args, **settings):
            trained.append((range(bank.first, bank.first + len(bank)), progress.update))
            yield progress

    monkeypatch.setattr(sharding, "fit", counted)
    end = last(run(tmp_path, max(most, len(left.group or [])), save_every=CHUNK))
    assert same((end.bank, end.average), whole())
    assert len(finished) == max(0, (stop - 2) // 2)
    assert not {k for part, _ in trained for k in part} & {k for part in finished for k in part}
    if left.group is not None:
        assert trained[0] == (left.group, RUN["updates"]), "the first chunk is not done again"


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch):
    states = run(tmp_path, 2)
    while not (tmp_path / "networks-0-1.safetensors").exists():
        next(states)
    states.close()
    kept = (tmp_path / "networks-0-1.safetensors").read_bytes()
    end = last(run(tmp_path, 5))
    assert end.plan.groups[0].start == 2, end.plan
    assert same((end.bank, end.average), whole())
    assert (tmp_path / "networks-0-1.safetensors").read_bytes() == kept
    monkeypatch.setattr(sharding, "_train", None)
    again = last(run(tmp_path, 1))
    assert again.plan.groups == () and str(again.plan) == "0 of 5 networks to train"
    assert same((again.bank, again.average), (end.bank, end.average))


def test_a_stop_between_two_files_is_put_right(tmp_path):
    """The state is deleted last, and the networks are written after the average."""
    last(run(tmp_path, 5))
    (tmp_path / "running-0-4.safetensors").write_bytes(b"left over")
    last(run(tmp_path, 5))
    assert not (tmp_path / "running-0-4.safetensors").exists()


# The memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kw", [{}, {"workers": 2}, {"ema": None}, {"batch_size": 7}], ids=str)
def test_what_is_told_is_what_fit_asks_for_and_the_networks(kw, monkeypatch):
    asked, kw = [], {**RUN, "updates": 1, **kw}
    monkeypatch.setattr(steps, "check_memory", lambda needed, device, what: asked.append(needed))
    for networks in (1, 4):
        bank = ImageBank(NORMED, networks)
        own = bank.params.nbytes + bank.buffers.nbytes
        last(fit(bank, DATA, P, Partition.equal(networks), **kw))
        assert budget(networks, **kw) == asked[-1] + own


def test_groups_do_not_pile_up(tmp_path):
    """Threads are not looked into, and shapes without storage count: for comparisons alone."""
    net = Ronneberger(16, 2, 1, dtype=F64)

    def held(most, networks):
        given = {**RUN, "updates": 1, "budget": budget(most, net), "folder": tmp_path / f"{most} of {networks}"}
        states = fit_sharded(maker(net, networks), DATA, P, Partition.equal(networks), join=False, **given)
        next(states)  # planning looks at many sizes
        with HeldBytes() as seen:
            last(states)
        return seen.peak

    one, each = held(1, 2), budget(2, net) - budget(1, net)
    assert held(1, 4) < one + 0.1 * each < held(2, 2) - 0.8 * each


def twenty(**kw) -> Plan:
    return plan(maker(size=20), DATA, P, Partition.equal(20), **{**RUN, **kw})


def test_as_few_groups_as_fit_of_nearly_equal_lengths():
    for most in (1, 3, 7, 20):
        found = twenty(budget=budget(most) + 100)
        lengths = [len(part) for part in found.groups]
        assert [k for part in found.groups for k in part] == list(range(20))
        assert len(lengths) == -(-20 // most) and max(lengths) <= most and max(lengths) - min(lengths) <= 1
        assert found.needed == tuple(budget(n) for n in lengths) and max(found.needed) <= found.budget
    for spare, most in ((0, 3), (-1, 2)):
        assert max(len(part) for part in twenty(budget=budget(3) + spare).groups) == most


def test_the_device_is_the_budget_if_none_is_given(monkeypatch):
    monkeypatch.setattr(shard_plan, "available", lambda device: budget(3) / 0.9 + 1)
    found = twenty()
    assert len(found.groups) == 7 and found.groups[:2] == (range(3), range(3, 6)) and found.device == "cpu"


def test_the_plan_comes_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_train", None)
    first = next(run(tmp_path, 2))
    gib = f"{first.plan.needed[0] / 2**30:.3g} GiB"
    assert str(first.plan) == (
        f"5 of 5 networks to train, in 3 groups of at most 2: they need up to {gib} of the {gib} allowed on cpu"
    )
    assert "in 1 group of at most 4" in str(Plan(4, (range(4),), (1,), 2, "cpu"))


def test_what_does_not_fit_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_train", None)
    with pytest.raises(MemoryError, match="training one network needs about .* GiB but") as error:
        next(run(tmp_path, budget=budget(1) - 1))
    assert one_sentence(error)
    monkeypatch.setattr(memory, "available", lambda device: 50_000)
    with pytest.raises(MemoryError, match=r"joining 5 networks at the end \(join=True\) needs") as error:
        next(run(tmp_path, 2))
    assert one_sentence(error) and not list(tmp_path.iterdir())


def test_a_state_that_does_not_fit_any_more_is_refused(tmp_path):
    for _, _ in zip(range(2), run(tmp_path, 3, save_every=CHUNK), strict=False):
        pass
    with pytest.raises(MemoryError, match="running-0-2.safetensors was begun with 3 networks, which need") as error:
        next(run(tmp_path, 2))
    assert one_sentence(error)


# Refusals ---------------------------------------------------------------------------------------------------


CHANGES = [
    ({"batch_size": 3}, "batch_size"), ({"lr": 1e-3}, "lr"), ({"ema": None}, "ema"), ({"updates": 9}, "updates"),
    ({"make": maker(seed=4)}, "start"), ({"make": maker(Ronneberger(2, 2, 1, dtype=F64))}, "arch"),
    ({"data": DATA[:9]}, "data"), ({"process": VP()}, "process"), ({"partition": Partition.points(K)}, "discrete"),
    ({"make": maker(size=4), "partition": Partition.equal(4)}, "edges"),
]  # fmt: skip


def test_a_folder_of_another_run_is_refused(tmp_path):
    last(run(tmp_path, 5, updates=2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = {"make": maker(), "data": DATA, "process": P, "partition": BLOCKS}
    for change, key in CHANGES:
        kw = {**given, **RUN, "updates": 2, "folder": tmp_path, **change}
        with pytest.raises(ValueError, match=f"was made with {key} = .* but this run has") as error:
            next(fit_sharded(**kw))
        assert one_sentence(error)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="holds networks but no run.json") as error:
        next(run(tmp_path, 5, updates=2))
    assert one_sentence(error)


def test_a_run_that_was_refused_binds_nobody(tmp_path):
    with pytest.raises(ValueError, match="lr must be positive"):
        last(run(tmp_path, lr=-1.0))
    assert same((last(run(tmp_path, 5, updates=2)).bank,), whole(updates=2)[:1])
    assert json.loads((tmp_path / "run.json").read_text())["lr"] == RUN["lr"]


def test_groups_that_overlap_or_lie_outside_are_refused(tmp_path):
    last(run(tmp_path, 3, updates=2))
    for wrong in ("networks-1-2", "running-4-5"):
        file = tmp_path / f"{wrong}.safetensors"
        file.write_bytes(b"")
        with pytest.raises(ValueError, match="the groups in .* are not those of one run") as error:
            next(run(tmp_path, 3, updates=2))
        assert one_sentence(error)
        file.unlink()


def test_missing_groups_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no finished group of a bank") as error:
        joined(tmp_path)
    assert one_sentence(error)
    last(run(tmp_path, 3, updates=2))
    (tmp_path / "networks-0-2.safetensors").unlink()
    with pytest.raises(ValueError, match="do not make one bank"):
        joined(tmp_path)


def test_settings_that_make_no_sense():
    for kw, culprit in (
        ({"optimiser": "sgd"}, "unknown optimiser 'sgd': use one of adam"),
        ({"batch_size": 0}, "batch_size must be a positive whole number, got 0"),
    ):
        with pytest.raises(ValueError, match=culprit) as error:
            twenty(**kw)
        assert one_sentence(error)


def test_a_bank_of_mlps_too(tmp_path):
    toy, kw = HG(), {"updates": CHUNK + 1, "batch_size": 4, "ema": 0.9}
    make = lambda only: Bank(Plain(hidden=(5,)), K, seed=3, only=only)  # noqa: E731
    bank = make(range(K))
    average = last(fit(bank, toy, P, BLOCKS, **kw)).average
    needed = predicted(make, 2, toy, P, BLOCKS, **kw)
    end = last(fit_sharded(make, toy, P, BLOCKS, folder=tmp_path, budget=needed, **kw))
    assert len(end.plan.groups) == 3 and type(end.bank) is Bank
    assert torch.equal(end.bank.params, bank.params) and torch.equal(end.average.params, average.params)
