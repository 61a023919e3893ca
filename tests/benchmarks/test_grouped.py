"""Networks side by side are the networks one by one: outputs, gradients, running statistics, a step of Adam."""

import pytest
import torch
import torch.nn.functional as F

from psmlib.bank.image_bank import ImageBank
from psmlib.benchmarks.grouped import Grouped
from psmlib.nets import ronneberger, unet
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.training.optim import Adam

F64 = torch.float64
SMALL = dict(heads=2, head_dim=3, groups=2, dtype=F64)
NETS = {
    "ronneberger": (Ronneberger(3, 3, 2, dtype=F64), 8),
    "ronneberger, channels last": (ronneberger.small(a=2, dtype=F64), 8),
    "ronneberger, no bias, rim": (Ronneberger(2, 3, 1, bias=False, dtype=F64), 6),
    "unet": (UNet(4, (1, 2), 2, attention=("linear", "full"), **SMALL), 4),
    "unet, root mean squares, rim": (UNet(4, (1, 3), 1, blocks=1, norm="rms", **SMALL), 5),
    "unet, channels last": (UNet(4, (2, 1), 1, attention=None, middle=None, channels_last=True, **SMALL), 4),
    "small unet": (unet.small(dim=8, dtype=F64), 8),
}
each_net = pytest.mark.parametrize("net, side", NETS.values(), ids=NETS)


def batch(bank: ImageBank, side: int, n: int = 3) -> tuple[torch.Tensor, ...]:
    """Images, times (or None) and targets for each network."""
    g = torch.Generator().manual_seed(1)
    shape = (len(bank), n, bank.settings["channels"], side, side)
    x, target = (torch.randn(shape, generator=g, dtype=F64) for _ in range(2))
    time = 3 * torch.randn(shape[:2], generator=g, dtype=F64) if bank.kind is UNet else None
    return x, time, target


def one_by_one(bank: ImageBank, x, time, target) -> tuple[torch.Tensor, torch.Tensor]:
    """What each network says in training, and its gradient of the mean squared error."""
    grad, said = torch.zeros_like(bank.params), []
    for k in range(len(bank)):
        bank.bind_gradients(k, grad[k])
        net = bank.network(k).train().requires_grad_(True)
        out = net(x[k]) if time is None else net(x[k], time[k])
        F.mse_loss(out, target[k]).backward()
        said.append(out.detach())
        net.eval().requires_grad_(False)
    return torch.stack(said), grad


@each_net
@pytest.mark.parametrize("size", [1, 3])
def test_outputs_gradients_and_statistics_are_those_of_networks_alone(net, side, size):
    bank = ImageBank(net, size, seed=2)
    wide, (x, time, target) = Grouped(bank), batch(bank, side)
    said = wide(x, time)
    (said - target).square().mean((1, 2, 3, 4)).sum().backward()
    wanted, grad = one_by_one(bank, x, time, target)
    torch.testing.assert_close(said.detach(), wanted, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(wide.gradients(), grad, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(wide.bank().buffers, bank.buffers, rtol=1e-11, atol=1e-12)
    assert float(grad.abs().max(1).values.min()) > 1e-3, "every network has a gradient"


@each_net
def test_networks_stay_apart(net, side):
    """Another image for one network changes what that one says, and no other."""
    bank = ImageBank(net, 3)
    wide, (x, time, _) = Grouped(bank), batch(bank, side)
    before, other = wide(x, time), x.clone()
    other[1] += torch.randn(x[1].shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    after = wide(other, time)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[1], before[1], atol=1e-3)


@pytest.mark.parametrize("name", ["ronneberger, no bias, rim", "small unet"])
def test_steps_of_adam_on_all_numbers_at_once_are_those_of_each_network(name):
    net, side = NETS[name]
    bank = ImageBank(net, 3)
    wide, (x, time, target) = Grouped(bank), batch(bank, side)
    moments, wide_moments = Adam(bank.params), Adam(wide.params)
    for count in (1, 2, 3):
        wide.grad.zero_()
        (wide(x, time) - target).square().mean((1, 2, 3, 4)).sum().backward()
        wide_moments.step(wide.params, wide.grad, lr=1e-3, count=count)
        _, grad = one_by_one(bank, x, time, target)
        moments.step(bank.params, grad, lr=1e-3, count=count)
    assert not torch.allclose(bank.params, ImageBank(net, 3).params, atol=1e-4), "they have moved"
    torch.testing.assert_close(wide.bank().params, bank.params, rtol=1e-7, atol=1e-9)


@each_net
def test_a_bank_goes_in_and_comes_out(net, side):
    bank = ImageBank(net, 3, seed=5)
    bank.buffers.add_(torch.randn(bank.buffers.shape, generator=torch.Generator().manual_seed(0)).to(bank.buffers))
    wide = Grouped(bank)
    again = wide.bank()
    assert torch.equal(again.params, bank.params)
    for k in range(3):
        for a, b in zip(again.network(k).buffers(), bank.network(k).buffers(), strict=True):
            assert torch.equal(a, b)
    assert again.description == bank.description and again.seed == bank.seed
    wide.params.zero_()
    assert not bool(wide.bank().params.any()) and bool(bank.params.any()) and bool(again.params.any())


def test_networks_at_rest_use_their_own_running_statistics():
    bank = ImageBank(NETS["ronneberger"][0], 2)
    bank.buffers.add_(torch.rand(bank.buffers.shape, generator=torch.Generator().manual_seed(0), dtype=F64))
    wide, (x, _, _) = Grouped(bank), batch(bank, 8)
    wide.net.eval()
    wanted = torch.stack([bank.network(k)(x[k]) for k in range(2)])
    torch.testing.assert_close(wide(x).detach(), wanted, rtol=1e-10, atol=1e-11)


def test_dropout_is_refused():
    with pytest.raises(ValueError, match="streams of their own: train them one by one with fit") as error:
        Grouped(ImageBank(UNet(4, (1,), dropout=0.3, **SMALL), 2))
    assert "\n" not in str(error.value)
