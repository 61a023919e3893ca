"""Flows by maximum likelihood: against matrix exponentials, adaptive solves and quadrature; and their memory."""

import math

import pytest
import torch
from torch import nn
from torchdiffeq import odeint_adjoint

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.cnf import CNF, train_cnf
from psmlib.data.toys import HG, Mixture
from psmlib.likelihood import log_likelihood, rademacher
from psmlib.machine.memory import HeldBytes
from psmlib.machine.streams import stream
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import SA
from psmlib.process import OTFlow
from psmlib.solvers import fixed

F64 = torch.float64
SMALL = Plain(hidden=(12, 10))
gradients = pytest.mark.parametrize("gradient", ["backprop", "adjoint"])


def bank(arch=SMALL, scale=1.0, dtype=F64, seed=0):
    made = Bank(arch, 1, native="velocity", seed=seed, dtype=dtype)
    made.params.mul_(scale)
    return made


def points(n=40, d=2, dtype=F64):
    return torch.randn(n, d, generator=stream(1), dtype=F64).to(dtype)


def test_a_linear_flow_has_the_density_that_the_matrix_exponential_gives():
    # v = x W + b carries x to x e^W + b W^-1 (e^W - 1), and volume grows by e^tr(W)
    linear = bank(Plain(dim=3, hidden=(), times=0), scale=1.7)
    W, b = linear.params[0, :9].view(3, 3), linear.params[0, 9:]
    x = points(20, 3)
    E = torch.linalg.matrix_exp(W)
    end = x @ E + b @ torch.linalg.solve(W, E - torch.eye(3, dtype=F64))
    wanted = -0.5 * end.square().sum(1) - 1.5 * math.log(2 * math.pi) + W.trace()
    flow = CNF.of_bank(linear, steps=40)
    torch.testing.assert_close(flow.log_prob(x), wanted, rtol=0, atol=1e-7)
    torch.testing.assert_close(flow.carry(x), end, rtol=0, atol=1e-7)


def test_time_matters_and_runs_from_the_data_to_the_normal_end():
    # v = 3 t^2 (1, 2) moves everything by (1, 2) in all; RK4 is exact on it
    shift = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    flow = CNF(lambda x, t: (3 * t**2 * shift).expand_as(x) + 0 * x, [shift], steps=1)
    assert torch.allclose(flow.carry(torch.zeros(1, 2, dtype=F64)), shift)
    half = CNF(flow.velocity, [shift], steps=1, T=0.5)
    assert torch.allclose(half.carry(torch.zeros(1, 2, dtype=F64)), shift / 8)


@gradients
def test_a_parameter_that_moves_all_points_alike_has_the_gradient_of_their_mean(gradient):
    shift, idle = (torch.ones(2, dtype=F64, requires_grad=True) for _ in range(2))
    flow = CNF(lambda x, t: shift.expand_as(x), [shift, idle], steps=3, gradient=gradient)
    x = points()
    loss, (slope, none) = flow.loss_and_gradient(x)
    assert torch.allclose(slope, (x + 1).mean(0)) and not none.any()
    assert loss == pytest.approx(float(0.5 * (x + 1).square().sum(1).mean()) + math.log(2 * math.pi))


class Smooth(nn.Module):
    """A small velocity, smooth where ELU has kinks in its slope, which adaptive solvers stumble over."""

    def __init__(self):
        super().__init__()
        shapes = [(3, 12), (12, 2)]
        self.weights = nn.ParameterList(torch.randn(*s, generator=stream(9), dtype=F64) for s in shapes)

    def forward(self, x, t):
        time = torch.as_tensor(t, dtype=x.dtype).expand(len(x), 1)
        return torch.tanh(torch.cat([x, time], 1) @ self.weights[0]) @ self.weights[1] / 2


class Augmented(nn.Module):
    """Points and log density for torchdiffeq."""

    def __init__(self, velocity, probes):
        super().__init__()
        self.velocity, self.probes = velocity, probes

    def forward(self, t, state):
        with torch.enable_grad():
            y = state[0].requires_grad_()
            v = self.velocity(y, t)
            back = [torch.autograd.grad(v, y, p, create_graph=True)[0] * p for p in self.probes]
        return v, sum(back).sum(1)


@gradients
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_gradients_agree_with_an_adaptive_solve(gradient, divergence):
    velocity, x = Smooth(), points(12)
    params = list(velocity.parameters())
    flow = CNF(velocity, params, steps=60, gradient=gradient, divergence=divergence)
    basis = list(torch.eye(2, dtype=F64)[:, None].expand(-1, 12, -1))
    ends = odeint_adjoint(
        Augmented(velocity, basis if divergence == "exact" else [rademacher(x, stream(7))]), (x, x.new_zeros(12)),
        torch.tensor([0.0, 1.0], dtype=F64), rtol=1e-8, atol=1e-8,
    )  # fmt: skip
    loss = (0.5 * ends[0][-1].square().sum(1) - ends[1][-1]).mean() + math.log(2 * math.pi)
    found, slopes = flow.loss_and_gradient(x, stream(7))
    assert found == pytest.approx(loss.item(), abs=1e-6)
    for slope, wanted in zip(slopes, torch.autograd.grad(loss, params), strict=True):
        assert wanted.norm() > 0.1
        torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)


def test_backprop_is_the_gradient_of_the_solvers_own_answer():
    # two coarse Euler steps, far from the exact solution: only the discrete gradient fits the finite difference
    own = bank(scale=3.0)
    x, v = points(), torch.randn(own.params.shape, generator=stream(2), dtype=F64)
    found = {}
    for gradient in ("backprop", "adjoint"):
        flow = CNF.of_bank(own, steps=2, method="euler", gradient=gradient)
        found[gradient] = float((flow.loss_and_gradient(x)[1][0] * v).sum())
    start, h, ends = own.params.clone(), 1e-5, []
    for sign in (1, -1):
        own.params.copy_(start + sign * h * v)
        ends.append(float(-flow.log_prob(x).mean()))
    slope = (ends[0] - ends[1]) / (2 * h)
    assert found["backprop"] == pytest.approx(slope, rel=1e-6)
    assert abs(found["adjoint"] - slope) > 0.01 * abs(slope)


def test_a_probe_is_unbiased_for_the_trace():
    flow = CNF.of_bank(bank(scale=3.0), steps=2, divergence="hutchinson")
    exact = CNF.of_bank(bank(scale=3.0), steps=2)
    x = points(1).expand(20_000, 2)
    found = flow.log_prob(x, stream(3))
    assert abs(found.mean() - exact.log_prob(x[:1])) < 4 * found.std() / len(x) ** 0.5 < 0.05


@pytest.mark.parametrize("arch", [SMALL, Conditioned(hidden=(8, 8), octaves=2)], ids=["plain", "conditioned"])
def test_the_bank_is_the_same_field_for_every_tool_of_the_book(arch):
    own, path = bank(arch, scale=2.0), OTFlow()
    for method, nfe in (("euler", 5), ("heun", 10)):
        flow, x = CNF.of_bank(own, steps=5, method=method), points()
        result = log_likelihood(own.score(SA, path), path, x, t0=0.0, t1=1.0, steps=5, method=method)
        torch.testing.assert_close(flow.log_prob(x), result.log_prob, rtol=0, atol=1e-12)
        torch.testing.assert_close(flow.carry(x), result.x_T, rtol=0, atol=1e-12)
        assert flow.evaluations == 2 * result.nfe == 2 * nfe


def test_the_three_eighths_rule_differs_from_the_classical_one_by_their_truncation():
    velocity, x, gaps = Smooth(), points(12), []
    for steps in (5, 10, 20):
        flow = CNF(velocity, list(velocity.parameters()), steps=steps)
        grid = torch.linspace(0, 1, steps + 1, dtype=F64)
        with torch.no_grad():
            *_, (end, _, _) = fixed(lambda middle: lambda y, t: (velocity(y, t), 0.0), x, grid, "rk4")
        gaps.append(float((flow.carry(x) - end).abs().max()))
        assert flow.evaluations == 4 * steps
    assert 0 < gaps[2] < gaps[1] / 12 < gaps[0] / 144


def test_it_can_be_inverted():
    flow, x = CNF.of_bank(bank(scale=4.0), steps=80), points()
    there = flow.carry(x)
    assert (there - x).abs().max() > 0.3
    torch.testing.assert_close(flow.carry(there, backwards=True), x, rtol=0, atol=1e-5)
    draws = flow.sample(7, (2,), stream(4))
    torch.testing.assert_close(flow.carry(draws), torch.randn(7, 2, generator=stream(4), dtype=F64), rtol=0, atol=1e-5)


def test_the_density_integrates_to_one_and_fits_its_samples():
    flow = CNF.of_bank(bank(scale=2.5), steps=20)
    side = torch.linspace(-9, 9, 121, dtype=F64)
    grid = torch.cartesian_prod(side, side)
    mass = flow.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    mean = (mass[:, None] * grid).sum(0)
    draws = flow.sample(4000, (2,), stream(5))
    assert mean.norm() > 0.1 and ((draws.mean(0) - mean).abs() < 4 * draws.std(0) / 4000**0.5).all()


@gradients
def test_training_lowers_the_loss_towards_the_entropy(gradient):
    narrow = Mixture(gaussians=[(1, [0.4, -0.2], 0.1)], name="narrow")
    own = bank(dtype=torch.float32)
    flow = CNF.of_bank(own, steps=3, gradient=gradient)
    seen = list(train_cnf(flow, narrow, updates=60, batch_size=64, lr=0.03, every=25))
    assert [p.update for p in seen] == [25, 50, 60] and seen[-1].seconds > seen[0].seconds > 0
    # a step of RK4 calls the field four times; the adjoint does so again on the way back
    assert flow.evaluations == 60 * 3 * 4 * (2 if gradient == "adjoint" else 1)
    test = narrow.sample(2000, stream(6))
    nll = -float(log_likelihood(own.score(SA, OTFlow()), OTFlow(), test.float(), t0=0.0, steps=20).log_prob.mean())
    entropy = 1 + math.log(2 * math.pi * 0.1)
    assert seen[0].loss > seen[-1].loss and entropy - 0.05 < nll < entropy + 0.2


def test_training_depends_on_the_seed_alone_and_takes_a_tensor():
    data, found = HG().sample(50, stream(8)).float(), []
    for seed in (0, 0, 1):
        own = bank(dtype=torch.float32)
        for _ in train_cnf(CNF.of_bank(own, steps=1), data, updates=3, batch_size=8, seed=seed):
            pass
        found.append(own.params)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_training_is_adam_on_fresh_draws():
    own, other, seen = bank(dtype=torch.float32), bank(dtype=torch.float32), []

    class Spy:
        def sample(self, n, generator):
            seen.append(HG().sample(n, generator).float())
            return seen[-1]

    for _ in train_cnf(CNF.of_bank(own, steps=2), Spy(), updates=4, batch_size=8, lr=0.01):
        pass
    assert len({float(x.sum()) for x in seen}) == 4
    flow = CNF.of_bank(other, steps=2)
    adam = torch.optim.Adam(flow.params, lr=0.01)
    for x in seen:
        flow.params[0].grad = flow.loss_and_gradient(x)[1][0]
        adam.step()
    torch.testing.assert_close(own.params, other.params, rtol=0, atol=1e-6)


def held(gradient, steps):
    own = bank(dtype=torch.float32)
    flow, x = CNF.of_bank(own, steps=steps, gradient=gradient), points(dtype=torch.float32)
    with HeldBytes(own.params, x) as counted:
        flow.loss_and_gradient(x)
    return counted.peak


def test_backprop_holds_every_step_and_the_adjoint_holds_one():
    grown = [held("backprop", steps) for steps in (2, 4, 8)]
    each = [(b - a) / n for a, b, n in zip(grown, grown[1:], (2, 4), strict=False)]
    assert max(each) < 1.01 * min(each) and grown[0] > 1.5 * each[0]
    flat = [held("adjoint", steps) for steps in (2, 8)]
    assert flat[1] < 1.05 * flat[0] < grown[0]


def test_it_can_be_trained_where_gradients_are_off():
    with torch.no_grad():
        loss, (slope,) = CNF.of_bank(bank(), steps=2).loss_and_gradient(points())
    assert math.isfinite(loss) and slope.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CNF.of_bank(bank(), steps=0), "steps must be a positive whole number, got 0"),
        (lambda: CNF.of_bank(bank(), divergence="none"), "unknown divergence 'none': use one of exact, hutchinson"),
        (lambda: CNF.of_bank(bank(), gradient="x"), "unknown gradient 'x': use one of backprop, adjoint"),
        (lambda: CNF.of_bank(bank(), method="adaptive"), "unknown method 'adaptive'"),
        (lambda: CNF.of_bank(Bank(SMALL, 1)), "one network that predicts a velocity, got 1 that predict 'eps'"),
        (lambda: CNF.of_bank(Bank(SMALL, 2, native="velocity")), "got 2 that predict 'velocity'"),
        (lambda: CNF.of_bank(bank()).log_prob(torch.zeros(3, 2)), "takes torch.float64 points of shape"),
        (lambda: next(train_cnf(CNF.of_bank(bank()), HG(), updates=0)), "updates must be a positive whole number"),
        (lambda: next(train_cnf(CNF.of_bank(bank()), HG(), updates=1, lr=0.0)), "lr must be positive, got 0.0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match="^[^.]*") as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_training_and_is_undone():
    own = bank(dtype=torch.float32)
    before = own.params.clone()
    far = torch.full((4, 2), 1e30)
    message = "loss is nan between updates 0 and 1: lower lr .* the flow was put back to update 0"
    with pytest.raises(FloatingPointError, match=message):
        next(train_cnf(CNF.of_bank(own, steps=1), far, updates=1, batch_size=2))
    assert torch.equal(own.params, before)
