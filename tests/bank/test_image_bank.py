"""A bank of image networks: views of a stack, against the modules that its rows stand for."""

import copy
import pickle

import joblib
import pytest
import torch
from torch import Tensor, nn

from psmlib.bank.checkpoint import save
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.bank.stack import row_size
from psmlib.machine import memory
from psmlib.machine.streams import stream
from psmlib.nets import ronneberger, unet
from psmlib.nets.mlp import Plain
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import VP

F64 = torch.float64
TINY = dict(channels=1, blocks=1, attention=None, middle="full", heads=1, head_dim=4, groups=2, dtype=F64)
NETS = {
    "unet": UNet(4, (1, 2), **TINY),
    "unet, channels last": UNet(4, (1, 2), channels_last=True, **TINY),
    "ronneberger": Ronneberger(2, 2, 3, dtype=F64),
    "ronneberger, channels last": Ronneberger(2, 2, 1, channels_last=True, dtype=F64),
}
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def images(net, n: int = 3) -> Tensor:
    return torch.randn(n, net.channels, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))


def said(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(*net.inputs(x, 0.3, VP(0.0, 10.0)))


def lone(bank: ImageBank, k: int, seed: int) -> nn.Module:
    """The module that network k shall be, made by itself."""
    return type(bank.network(0))(**bank.settings, dtype=F64, seed=stream(seed, k, 0)).eval()


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and ". " not in text and len(text) > 20


@each_net
def test_network_k_is_the_module_of_its_stream_in_numbers_and_in_layout(net):
    bank, x = ImageBank(net, 3, seed=5), images(net)
    for k in (2, 0, 1):
        made, found = lone(bank, k, 5), bank.network(k)
        for (name, a), (_, b) in zip(made.state_dict().items(), found.state_dict().items(), strict=True):
            assert torch.equal(a, b) and a.stride() == b.stride(), name
        assert torch.equal(said(found, x), said(made, x))
        assert not found.training and not any(p.requires_grad for p in found.parameters())
    assert not torch.equal(said(bank.network(0), x), said(bank.network(1), x))


@each_net
def test_a_network_starts_alike_in_any_company(net):
    whole = ImageBank(net, 4, seed=2)
    for other, rows in [
        (ImageBank(net, 2, seed=2), slice(0, 2)),
        (ImageBank(net, 4, seed=2, only=range(1, 3)), slice(1, 3)),
        (ImageBank(net, 9, seed=2, only=range(3, 4)), slice(3, 4)),
    ]:
        assert torch.equal(other.params, whole.params[rows]) and torch.equal(other.buffers, whole.buffers[rows])
    assert torch.equal(ImageBank(net.__class__(**net.settings), 4, seed=2).params, whole.params.float())
    assert not torch.equal(ImageBank(net, 4, seed=3).params, whole.params)


@each_net
def test_every_number_of_a_row_is_one_of_its_network_and_of_no_other(net):
    bank = ImageBank(net, 2)
    assert bank.params.shape == (2, row_size(net.parameters())) and bank.params.dtype == F64
    assert bank.buffers.shape == (2, row_size(net.buffers()))
    bank.network(0), bank.network(1)
    bank.params[1] = torch.arange(bank.params.shape[1])
    bank.buffers[1] = -1.0 - torch.arange(bank.buffers.shape[1])
    found = torch.cat([t.flatten() for t in bank.network(1).state_dict().values()]).tolist()
    assert len(set(found)) == len(found) == net.parameter_count + sum(b.numel() for b in net.buffers())
    assert all(t.data_ptr() % 16 == 0 for k in range(2) for t in bank.network(k).state_dict().values())
    for a, b in zip(lone(bank, 0, 0).parameters(), bank.network(0).parameters(), strict=True):
        assert torch.equal(a, b)


@each_net
def test_gradients_are_added_to_the_row_that_was_bound(net):
    bank, x, rows = ImageBank(net, 2), images(net), torch.full((2, row_size(net.parameters())), 7.0, dtype=F64)
    rows[1], before = 0, bank.params.clone()
    bank.bind_gradients(1, rows[1])
    made, found = lone(bank, 1, 0).requires_grad_(), bank.network(1).requires_grad_(True)
    for scale in (1.0, 2.0):
        for module in (made, found):
            (scale * module(*module.inputs(x, 0.3, VP(0.0, 10.0))).square().sum()).backward()
    for a, b in zip(made.parameters(), found.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-12) and b.grad.data_ptr() >= rows[1].data_ptr()
    assert float(rows[1].square().sum()) == pytest.approx(sum(float(p.grad.square().sum()) for p in made.parameters()))
    assert bool((rows[0] == 7).all()) and torch.equal(bank.params, before)


THROUGH = {
    "pickle": lambda bank, folder: pickle.loads(pickle.dumps(bank)),
    "joblib": lambda bank, folder: joblib.load(joblib.dump(bank, folder / "bank.pkl")[0]),
    "deepcopy": lambda bank, folder: copy.deepcopy(bank),
    "copy": lambda bank, folder: bank.copy(),
    "to": lambda bank, folder: bank.to("cpu", F64),
    "changed": lambda bank, folder: bank.changed(pad=False),
    "joined": lambda bank, folder: ImageBank.joined([bank]),
    "file": lambda bank, folder: [bank.save(folder / "bank.st"), ImageBank.load(folder / "bank.st")[0]][1],
}


@pytest.mark.parametrize("way", THROUGH.values(), ids=THROUGH)
@each_net
def test_another_bank_is_equal_and_then_independent(net, way, tmp_path):
    bank, x = ImageBank(net, 2, native="velocity", seed=3), images(net)
    bank.buffers.add_(0.5)
    before = [said(bank.network(k), x) for k in range(2)]  # the views exist before the copy is made
    other = way(bank, tmp_path)
    assert torch.equal(other.params, bank.params) and torch.equal(other.buffers, bank.buffers)
    assert (other.native, other.seed, other.first, other.whole) == ("velocity", 3, 0, 2)
    assert torch.equal(said(other.network(1), x), before[1])
    other.params.mul_(1.5), other.buffers.add_(1.0)
    assert torch.equal(said(bank.network(1), x), before[1]), "the first one stays"
    fresh = other.copy()
    for k in range(2):
        assert not torch.equal(said(other.network(k), x), before[k]), "the views are of the new stack"
        assert torch.equal(said(other.network(k), x), said(fresh.network(k), x))


def test_a_copy_takes_the_tensors_it_is_given_and_another_dtype():
    bank = ImageBank(NETS["ronneberger"], 2)
    x, given = images(bank.network(0)), 2 * bank.params
    other = bank.copy(params=given, buffers=bank.buffers + 1)
    given.zero_()
    assert torch.equal(other.params, 2 * bank.params) and torch.equal(other.buffers, bank.buffers + 1)
    low = bank.to(dtype=torch.float32)
    assert low.params.dtype == low.buffers.dtype == torch.float32 and bank.params.dtype == F64
    assert torch.allclose(said(low.network(1), x.float()).double(), said(bank.network(1), x), atol=1e-5)
    assert torch.equal(low.to(dtype=F64).params, bank.params.float().double())


def test_networks_look_at_the_tensors_that_a_bank_has_now():
    bank = ImageBank(NETS["ronneberger"], 2)
    x, other = images(bank.network(0)), ImageBank(NETS["ronneberger"], 2, seed=1)
    other.buffers.add_(0.5)
    assert not torch.equal(said(bank.network(1), x), said(other.network(1), x))
    bank.params = other.params
    assert not torch.equal(said(bank.network(1), x), said(other.network(1), x))
    bank.buffers = other.buffers
    assert torch.equal(said(bank.network(1), x), said(other.network(1), x))


def test_settings_may_change_but_not_what_a_row_means():
    bank = ImageBank(ronneberger.small(a=2, dtype=F64), 2)
    x = images(bank.network(0))
    other = bank.changed(batch_at_test=True)
    made = Ronneberger(**{**bank.settings, "batch_at_test": True}, dtype=F64, seed=stream(0, 1, 0)).eval()
    assert torch.equal(said(other.network(1), x), said(made, x))
    assert bank.settings["batch_at_test"] is False and "True" in other.description
    for change in ({"a": 4}, {"bias": False}, {"channels_last": False}):
        with pytest.raises(ValueError, match=f"{change} would change the parameters .*: make a new") as error:
            bank.changed(**change)
        assert one_sentence(error)
    with pytest.raises(ValueError, match="would change the parameters"):
        ImageBank(unet.small(dim=8, norm="rms"), 1).changed(dim_mults=(2, 1))


@each_net
def test_parts_make_the_whole_in_any_order(net):
    whole = ImageBank(net, 5, seed=1)
    parts = [ImageBank(net, 5, seed=1, only=part) for part in (range(3, 5), range(1), range(1, 3))]
    assert [(part.first, len(part), part.whole) for part in parts] == [(3, 2, 5), (0, 1, 5), (1, 2, 5)]
    parts[0].buffers.add_(1.0)
    bank, x = ImageBank.joined(iter(parts)), images(net)
    assert torch.equal(bank.params, whole.params) and (bank.first, bank.whole, len(bank)) == (0, 5, 5)
    assert torch.equal(bank.buffers, torch.cat([whole.buffers[:3], whole.buffers[3:] + 1]))
    assert torch.equal(said(bank.network(4), x), said(parts[0].network(1), x))
    assert len(bank.score(Partition.equal(5), VP(0.0, 10.0)).bank) == 5


def test_what_is_no_bank_in_parts_is_refused():
    def part(a, b, net=NETS["ronneberger"], **kw):
        return ImageBank(net, 4, only=range(a, b), **kw)

    for parts in (
        [], [part(0, 2)], [part(2, 4)], [part(0, 2), part(3, 4)], [part(0, 2), part(1, 4)], [part(0, 4), part(0, 4)],
        [part(0, 2), part(2, 4, seed=1)], [part(0, 2), part(2, 4, native="velocity")],
        [part(0, 2), part(2, 4).to(dtype=torch.float32)], [part(0, 2), part(2, 4).changed(batch_at_test=True)],
        [part(0, 2), part(2, 4, NETS["ronneberger, channels last"])], [part(0, 2), ImageBank(NETS["ronneberger"], 2)],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"the parts .* do not make one bank: give each part") as error:
            ImageBank.joined(parts)
        assert one_sentence(error)


def test_a_part_is_no_score():
    for blocks in (4, 2):
        with pytest.raises(ValueError, match="is a part, 2 of 4 networks: put the parts together") as error:
            ImageBank(NETS["ronneberger"], 4, only=range(2)).score(Partition.equal(blocks), VP(0.0, 10.0))
        assert one_sentence(error)


def test_a_bank_that_would_not_fit_is_refused_before_it_is_made(monkeypatch):
    net = NETS["ronneberger"]
    numbers = row_size(net.parameters()) + row_size(net.buffers())
    monkeypatch.setattr(memory, "available", lambda device: 10 * numbers * 8 / 0.9)
    assert len(ImageBank(net, 1000, only=range(10))) == 10, "what counts is what is made"
    for size in (11, 10**14):
        with pytest.raises(MemoryError, match=f"{size} networks of {net.parameter_count:,} parameters needs") as error:
            ImageBank(net, size)
        assert one_sentence(error)


def test_files_that_hold_something_else_are_refused(tmp_path):
    bank, path = ImageBank(NETS["unet"], 2), tmp_path / "bank.st"
    bank.save(path, updates=[1, 2])
    again, about = ImageBank.load(path)
    assert again.settings == bank.settings and again.description == bank.description and about["updates"] == [1, 2]
    with pytest.raises(ValueError, match="bank.st does not hold the networks of Bank: write it with Bank.save"):
        Bank.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="bank.st is not a checkpoint of psmlib") as error:
        ImageBank.load(path)
    with pytest.raises(ValueError, match="no checkpoint at .*none.st"):
        ImageBank.load(tmp_path / "none.st")
    Bank(Plain(hidden=(3,)), 2).save(path)
    with pytest.raises(ValueError, match="bank.st does not hold the networks of ImageBank: write it") as error:
        ImageBank.load(path)
    assert one_sentence(error)
    about = {"arch": "UNet", "settings": bank.settings, "native": "eps", "seed": 0, "first": 0, "whole": 2}
    save(path, {"params": bank.params[:, 1:], "buffers": bank.buffers}, about)
    with pytest.raises(ValueError, match="bank.st holds other parameters than a UNet") as error:
        ImageBank.load(path)
    assert one_sentence(error)
