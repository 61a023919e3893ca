"""What both kinds of banks do alike: parts, copies and files."""

import pytest
import torch

from psmlib.bank.checkpoint import save
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.machine import memory
from psmlib.nets.mlp import Plain
from psmlib.nets.ronneberger import Ronneberger

MAKE = {
    "mlp": lambda size=4, **kw: Bank(Plain(hidden=(5,)), size, dtype=torch.float64, **kw),
    "images": lambda size=4, **kw: ImageBank(Ronneberger(2, 2, 1, dtype=torch.float64), size, **kw),
}
both = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def same(a, b) -> bool:
    told = [(bank.description, bank.native, bank.seed, bank.first, bank.whole, repr(bank)) for bank in (a, b)]
    return told[0] == told[1] and all(torch.equal(rows, b.tensors[name]) for name, rows in a.tensors.items())


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and ". " not in text and len(text) > 20


@both
def test_parts_are_those_of_the_whole_bank_and_make_it_again(make, tmp_path):
    whole, parts = make(seed=3), [make(seed=3, only=part) for part in (range(3, 4), range(1), range(1, 3))]
    assert [(len(part), part.first, part.whole) for part in parts] == [(1, 3, 4), (1, 0, 4), (2, 1, 4)]
    assert torch.equal(parts[2].params, whole.params[1:3]) and torch.equal(parts[0].params, whole.params[3:])
    assert same(type(whole).joined(iter(parts)), whole) and same(type(whole).joined([whole]), whole)
    for part in parts:
        part.save(tmp_path / "part.st", note=[1])
        again, about = type(part).load(tmp_path / "part.st")
        assert same(again, part) and about["note"] == [1]
    for wrong in ([], parts[:2], [*parts, parts[0]], [parts[0], parts[1], make(seed=4, only=range(1, 3))]):
        with pytest.raises(ValueError, match=r"the parts .* do not make one bank") as error:
            type(whole).joined(wrong)
        assert one_sentence(error)


@both
def test_a_copy_takes_tensors_by_name(make):
    bank = make(seed=3)
    part, other = make(seed=3, only=range(2, 4)), bank.copy()
    assert same(other, bank) and same(part.copy(), part)
    other.params.zero_()
    assert bank.params.abs().max() > 0, "its tensors are its own"
    twice = part.copy(params=2 * part.params)
    assert torch.equal(twice.params, 2 * part.params) and (twice.first, twice.whole) == (2, 4)
    few = bank.copy(**{name: rows[1:3] for name, rows in bank.tensors.items()})
    assert torch.equal(few.params, bank.params[1:3]) and (few.first, few.whole, len(few)) == (0, 2, 2)
    for wrong in ({"weights": bank.params}, {"params": bank.params[:2], "buffers": bank.params[:3]}):
        with pytest.raises(ValueError, match=r"a copy needs params.* with one row per network, got \[") as error:
            bank.copy(**wrong)
        assert one_sentence(error)


@both
def test_what_cannot_be_made_is_refused(make, monkeypatch):
    with pytest.raises(ValueError, match="size must be a positive whole number, got 0") as error:
        make(0)
    assert one_sentence(error)
    for only in (range(0), range(3, 5), range(-1, 2), range(0, 3, 2)):
        with pytest.raises(ValueError, match="selects no unbroken range of networks: give one within 0..4") as error:
            make(only=only)
        assert one_sentence(error)
    monkeypatch.setattr(memory, "available", lambda device: 10.0)
    with pytest.raises(MemoryError, match="4 networks of [0-9,]+ parameters needs"):
        make()


@both
def test_files_of_other_networks_are_refused(make, tmp_path):
    bank, path = make(), tmp_path / "bank.st"
    other = next(MAKE[kind]() for kind in MAKE if MAKE[kind] is not make)
    bank.save(path)
    with pytest.raises(ValueError, match=f"bank.st does not hold the networks of {type(other).__name__}: ") as error:
        type(other).load(path)
    assert one_sentence(error)
    about = {"arch": bank.kind.__name__, "settings": bank.settings, "native": "eps", "seed": 0, "first": 0, "whole": 4}
    for tensors in (
        {**bank.tensors, "params": bank.params[:, 1:].clone()},
        {**bank.tensors, "more": bank.params + 1},
        {},
    ):
        save(path, tensors, about)
        with pytest.raises(ValueError, match="bank.st holds other parameters than a .*: train its networks") as error:
            type(bank).load(path)
        assert one_sentence(error)
