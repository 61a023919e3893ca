"""Sampling by the probability-flow equation: there and back, moments, and what a step may see."""

import math

import pytest
import torch

from psmlib.data.toys import Mixture
from psmlib.likelihood import log_likelihood
from psmlib.partition import Partition
from psmlib.process import EDM, RVE, VE, VP, OTFlow
from psmlib.sampling import State, last, ode
from psmlib.sampling.grids import log_snr, quadratic, uniform, with_borders
from psmlib.sampling.ode import probability_flow
from psmlib.sampling.state import check_descending
from psmlib.score import Score

F64 = torch.float64
PSM = VP(0.0, 10.0)
MEAN, COV = torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
GAUSSIAN = Mixture(gaussians=[(1, MEAN.tolist(), COV.tolist())])
SMALL = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]]), (1, [-0.7, -0.9], 0.05)],
    boxes=[(4, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.2, 0.6], -15.0)],
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def end_sample(p, toy, n, seed=0):
    """Draws from the exact law of x_T."""
    g = gen(seed)
    return p.perturb(toy.sample(n, g), p.T, torch.randn(n, 2, generator=g, dtype=F64))


@pytest.mark.parametrize(
    "p, t0", [(PSM, 0.02), (VP(0.1, 20.0), 1e-3), (OTFlow(), 0.05), (VE(0.05, 8.0), 0.02), (RVE(0.01, 5.0), 2e-5)]
)
def test_there_and_back(p, t0):
    law, x = SMALL.diffused(p), SMALL.sample(20, gen())
    times = log_snr(p, t0, p.T, 100) if isinstance(p, RVE) else quadratic(t0, p.T, 100, power=3.0)
    x_T = log_likelihood(law, p, x, t0=t0, grid=times).x_T
    assert float((x_T - x).abs().max()) > 0.5
    back = last(ode(law, p, x_T, times.flip(0)))
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-5)
    assert (back.t, back.nfe) == (t0, 400)
    again = last(ode(law, p, x_T, [p.T, t0], method="adaptive", rtol=1e-8, atol=1e-8))
    torch.testing.assert_close(again.x, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("p", [PSM, OTFlow(), EDM(5.0), RVE(0.01, 5.0, 0.1)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("method, atol", [("euler", 0.07), ("heun", 2e-3), ("rk4", 1e-6), ("adaptive", 1e-6)])
def test_gaussian_data_in_closed_form(p, method, atol):
    # the flow keeps standardised coordinates along each principal axis
    values, axes = torch.linalg.eigh(COV)
    z, t0 = torch.randn(20, 2, generator=gen(), dtype=F64), 0.15 * p.T

    def at(t):
        return p.alpha(t) * MEAN + (z * (p.alpha(t) ** 2 * values + p.sigma(t) ** 2).sqrt()) @ axes.T

    times = uniform(t0, p.T, 100).flip(0)
    got = last(ode(GAUSSIAN.diffused(p), p, at(p.T), times, method=method, rtol=1e-8, atol=1e-8))
    torch.testing.assert_close(got.x, at(t0), rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["rk4", "adaptive"])
def test_the_flow_runs_forwards_too(method):
    x, times = SMALL.sample(20, gen()), quadratic(0.02, 1.0, 100, power=3.0)
    states = list(probability_flow(SMALL.diffused(PSM), x, times, method=method, rtol=1e-8, atol=1e-8))
    assert [s.t for s in states] == times[1:].tolist()
    wanted = log_likelihood(SMALL.diffused(PSM), PSM, x, t0=0.02, grid=times).x_T
    torch.testing.assert_close(states[-1].x, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method, order, steps", [("euler", 1, 100), ("heun", 2, 100), ("rk4", 4, 100)])
def test_each_method_has_its_order(method, order, steps):
    law, x_T = SMALL.diffused(PSM), end_sample(PSM, SMALL, 30)
    found = [last(ode(law, PSM, x_T, quadratic(0.05, 1.0, n).flip(0), method=method)).x for n in (steps, 2 * steps)]
    exact = last(ode(law, PSM, x_T, [1.0, 0.05], method="adaptive", rtol=1e-11, atol=1e-11)).x
    coarse, fine = (float((x - exact).abs().mean()) for x in found)
    assert abs(math.log2(coarse / fine) - order) < 0.25


@pytest.mark.parametrize("p, t0", [(PSM, 1e-3), (OTFlow(), 1e-3), (VE(0.05, 8.0), 1e-3), (RVE(0.01, 5.0), 1e-5)])
def test_moments_and_density_of_samples(p, t0):
    n, law = 1500, SMALL.diffused(p)
    times = log_snr(p, t0, p.T, 60) if not isinstance(p, OTFlow) else quadratic(t0, p.T, 60)
    x = last(ode(law, p, end_sample(p, SMALL, n), times.flip(0))).x
    alpha, sigma = float(p.alpha(t0)), float(p.sigma(t0))
    dev = x - alpha * SMALL.mean
    assert (dev.mean(0).abs() < 4 * dev.std(0) / n**0.5).all()
    outer = dev[:, :, None] * dev[:, None, :]
    want = alpha**2 * SMALL.cov + sigma**2 * torch.eye(2, dtype=F64)
    assert ((outer.mean(0) - want).abs() < 4 * outer.std(0) / n**0.5).all()
    # the whole law, not its moments alone: E log p against fresh data
    ours, fresh = law.log_prob(x, t0), law.log_prob(p.perturb(SMALL.sample(n, gen(5)), t0, 0 * x), t0)
    spread = (float(ours.var() + fresh.var()) / n) ** 0.5
    assert abs(float(ours.mean() - fresh.mean())) < 4 * spread + 0.01


def test_flow_matching_starts_at_pure_noise():
    p, z = OTFlow(), torch.randn(5, 2, generator=gen(), dtype=F64)
    state = next(ode(GAUSSIAN.diffused(p), p, z, [1.0, 0.9], method="euler"))
    torch.testing.assert_close(state.x, z - 0.1 * (z - MEAN))  # v(x, 1) = x - E x_0


def test_states_of_fixed_grids():
    p, x = PSM, torch.randn(3, 2, generator=gen(), dtype=F64)
    times = [1.0, 0.6, 0.5, 0.2]
    for method, cost in [("euler", 1), ("heun", 2), ("rk4", 4)]:
        states = list(ode(GAUSSIAN.diffused(p), p, x, times, method=method))
        assert all(isinstance(s, State) for s in states)
        assert [s.t for s in states] == times[1:]
        assert [s.nfe for s in states] == [cost, 2 * cost, 3 * cost]
    first = next(ode(GAUSSIAN.diffused(p), p, x, times, method="euler"))
    torch.testing.assert_close(first.x, x - 0.4 * GAUSSIAN.diffused(p).velocity(x, 1.0))


def test_states_of_adaptive_steps():
    states = list(ode(GAUSSIAN.diffused(PSM), PSM, torch.ones(2, 2, dtype=F64), [1.0, 0.5, 0.1], method="adaptive"))
    assert [s.t for s in states] == [0.5, 0.1]
    assert 0 < states[0].nfe < states[1].nfe


class Blocks(Score):
    """Velocity c x with a rate for each block; refuses to answer outside the block that it is frozen to."""

    native = "velocity"

    def __init__(self, rates, partition, block=None):
        self.rates, self.partition, self.process, self.block = rates, partition, PSM, block

    def on_block(self, t):
        return Blocks(self.rates, self.partition, int(self.partition.block_of(t)))

    def predict(self, x, t):
        low, high = self.partition.bounds(self.block)
        assert low - 1e-12 <= t <= high + 1e-12
        return self.rates[self.block] * x


@pytest.mark.parametrize("method", ["rk4", "adaptive"])
def test_a_step_keeps_to_one_block(method):
    partition, x = Partition([0, 0.13, 0.57, 1]), torch.ones(2, 2, dtype=F64)
    times = with_borders(uniform(0.0, 1.0, 20), partition).flip(0)
    got = last(ode(Blocks([2.0, -1.0, 0.5], partition), PSM, x, times, method=method, rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(got.x, x * math.exp(-2.0 * 0.13 + 0.44 - 0.5 * 0.43), rtol=1e-6, atol=0)


def test_nothing_is_recorded_for_gradients():
    x = torch.ones(2, 2, dtype=F64, requires_grad=True)
    for method in ("rk4", "adaptive"):
        assert not last(ode(GAUSSIAN.diffused(PSM), PSM, x, [1.0, 0.9, 0.8], method=method)).x.requires_grad


def test_single_precision_stays_single():
    x = torch.ones(2, 2)
    assert last(ode(SMALL.diffused(PSM), PSM, x, [1.0, 0.9, 0.8])).x.dtype == torch.float32


@pytest.mark.parametrize("times", [[0.1, 0.5], [1.0, 1.0], [1.0], [], [1.0, math.nan, 0.5], [1.0, 0.5, 0.7]])
def test_times_must_descend(times):
    with pytest.raises(ValueError, match="times must (descend|lie)") as caught:
        last(ode(GAUSSIAN.diffused(PSM), PSM, torch.ones(1, 2), times))
    assert "\n" not in str(caught.value)


def test_other_bad_input():
    law, x = GAUSSIAN.diffused(PSM), torch.ones(1, 2, dtype=F64)
    with pytest.raises(ValueError, match="unknown method 'rk5'"):
        last(ode(law, PSM, x, [1.0, 0.5], method="rk5"))
    with pytest.raises(RuntimeError, match="stopped at t = "):
        last(ode(law, PSM, x, [1.0, 0.01], method="adaptive", rtol=1e-10, atol=1e-10, max_nfe=21))
    with pytest.raises(ValueError, match="the sampler made no step"):
        last([])


def test_check_descending_gives_floats():
    assert check_descending(torch.tensor([1.0, 0.5, 0.0]), PSM) == [1.0, 0.5, 0.0]
