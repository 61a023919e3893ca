"""Likelihoods and samples from a bank of image networks, against solves by hand and flows that are known."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.image_score import ImageScore
from psmlib.likelihood import log_likelihood
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow
from psmlib.sampling import last, ode, sde
from psmlib.sampling.grids import uniform

F64 = torch.float64
P = VP(0.0, 10.0)
EDGES = [0, 0.1, 0.3, 1]
NETS = {
    "unet": UNet(
        4, (1,), channels=1, blocks=1, attention=None, middle="full", heads=1, head_dim=4, groups=2, dtype=F64
    ),
    "ronneberger": Ronneberger(2, 2, 2, dtype=F64, channels_last=True),
    "batch at test": Ronneberger(2, 2, 2, dtype=F64, batch_at_test=True),
}
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
# torch's own forward mode calls what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def images(net, n: int) -> Tensor:
    return torch.randn(n, net.channels, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


def make(net) -> ImageScore:
    bank = ImageBank(net, 3, seed=5)
    bank.buffers.copy_(torch.rand(bank.buffers.shape, dtype=F64, generator=torch.Generator().manual_seed(1)) + 0.5)
    return bank.score(Partition(EDGES), P)


def close(a: Tensor, b: Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


class Matrix(nn.Module):
    """An image turned by a matrix: the network whose flow is known."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix = matrix

    def inputs(self, x, t, process):
        return (x,)

    def forward(self, x):
        return (x.flatten(1) @ self.matrix.T).reshape(x.shape)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_likelihood_of_a_linear_flow(divergence):
    """x_T = exp(.7 A_2) exp(.2 A_1) exp(.1 A_0) x, and the volumes grow by the traces."""
    bank = ImageBank(NETS["ronneberger"], 3, native="velocity")
    A = 0.3 * torch.randn(3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(3))
    bank.network = lambda k: Matrix(A[k])
    x = images(NETS["ronneberger"], 200 if divergence == "hutchinson" else 2)
    found = log_likelihood(bank.score(Partition(EDGES), OTFlow()), OTFlow(), x, t0=0.0, steps=40, divergence=divergence)
    turn = torch.matrix_exp(0.7 * A[2]) @ torch.matrix_exp(0.2 * A[1]) @ torch.matrix_exp(0.1 * A[0])
    close(found.x_T.flatten(1), x.flatten(1) @ turn.T, 1e-5, 1e-5)
    traces = A.diagonal(dim1=1, dim2=2).sum(1)
    total = float(0.1 * traces[0] + 0.2 * traces[1] + 0.7 * traces[2])
    if divergence == "exact":
        close(found.change, torch.full((2,), total, dtype=F64))
    else:
        assert abs(float(found.change.mean()) - total) < 4 * float(found.change.std()) / 200**0.5
    close(found.log_prob, OTFlow().prior_log_prob(found.x_T) + found.change)


@pytest.mark.parametrize("net", [NETS["unet"], NETS["ronneberger"]], ids=["unet", "ronneberger"])
def test_many_probes_average_to_the_exact_likelihood(net):
    score, x, m = make(net), images(net, 2), 200
    kw = dict(t0=0.05, grid=torch.tensor([0.05, 0.1, 0.3, 0.6, 1.0]), method="euler")
    exact = log_likelihood(score, P, x, **kw)
    for fresh in (False, True):
        many = log_likelihood(score, P, x.repeat(m, 1, 1, 1), divergence="hutchinson", fresh_probes=fresh, **kw)
        each = many.log_prob.reshape(m, 2)
        assert bool(((each.mean(0) - exact.log_prob).abs() < 4 * each.std(0) / m**0.5).all())
        close(many.x_T[:2], exact.x_T)
    assert exact.nfe == many.nfe == 4


def test_an_euler_solve_by_hand_gives_the_same_likelihood():
    """Each step with the network of its middle, steps ending on the borders."""
    score, x, times = make(NETS["unet"]), images(NETS["unet"], 2), [0.05, 0.1, 0.2, 0.3, 0.6, 1.0]
    found = log_likelihood(score, P, x, t0=0.05, method="euler", grid=torch.tensor(times, dtype=F64))
    y, change = x, torch.zeros(2, dtype=F64)
    for a, b in itertools.pairwise(times):
        net = score.bank.network(0 if b <= 0.1 else 1 if b <= 0.3 else 2)
        jac = torch.func.jacrev(lambda z, net=net, a=a: net(*net.inputs(z, a, P)))(y).reshape(2, 4, 2, 4).detach()
        eps = net(*net.inputs(y, a, P)).detach()
        f, c = float(P.drift(a)), float(P.diffusion2(a) / (2 * P.sigma(a)))
        change = change + (b - a) * (4 * f + c * torch.stack([jac[i, :, i].trace() for i in range(2)]))
        y = y + (b - a) * (f * y + c * eps)
    close(found.x_T, y)
    close(found.change, change)


@each_net
def test_samplers_take_a_bank_of_images(net):
    score, noise, times = make(net), images(net, 3), uniform(0.05, 1.0, 7).flip(0)
    state = last(ode(score, P, noise, times, method="euler"))
    y = noise
    for a, b in itertools.pairwise(times.tolist()):
        y = y + (b - a) * score.on_block((a + b) / 2).velocity(y, a)
    close(state.x, y)
    assert state.nfe == 7 and state.t == 0.05
    drawn = last(sde(score, P, noise, times, generator=torch.Generator().manual_seed(0), denoise=True))
    assert drawn.x.shape == noise.shape and bool(drawn.x.isfinite().all()) and drawn.nfe == 8
    still = last(sde(score, P, noise, times, noise=lambda t: 0.0))
    close(still.x, y)
