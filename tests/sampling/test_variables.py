"""Stepping in log SNR: right values, orders, agreement with steps in t, and what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from psmlib.data.toys import Mixture
from psmlib.exact.gaussian import GaussianScore
from psmlib.likelihood import GRIDS, log_likelihood
from psmlib.partition import Partition
from psmlib.process import EDM, RVE, VE, VP, OTFlow, Retimed, Shortened, SubVP
from psmlib.sampling import grids, last, ode
from psmlib.sampling.ode import probability_flow
from psmlib.sampling.variables import points, variable_of
from psmlib.score import Score

F64 = torch.float64
PSM = VP(0.0, 10.0)
LINE = Mixture(gaussians=[(1, [-0.8], 0.1), (2, [0.7], 0.2)])
X = torch.tensor([[-1.1], [0.1], [0.9]], dtype=F64)
RVE_, VE_ = RVE(0.01, 5.0), VE(0.05, 8.0)  # of a shorter range than the usual ones, so that few steps suffice
SUDDEN = Retimed(VP(), 0.1)
STARTS = {RVE_: 1e-5, VE_: 0.02, Shortened(RVE_, 1e-4): 1.5e-5, SUDDEN: 1e-8}
STARTS |= {p: 1e-2 * p.T for p in (PSM, SubVP(), OTFlow(), EDM(5.0), Shortened(OTFlow(), 0.9), Retimed(VP(), 2.0))}
REFUSED = {(RVE_, "uniform"), (RVE_, "warped"), (RVE_, "blocks"), (SUDDEN, "uniform"), (SUDDEN, "blocks")}
REFUSED |= {(OTFlow(), "log_snr")}
METHODS = {"euler": (60, 0.4), "heun": (30, 0.08), "rk4": (15, 0.02), "adaptive": (1, 1e-3), "logdet": (60, 0.3)}


def gaussian(p, mean=0.2, var=0.7):
    return GaussianScore(torch.full((1,), mean, dtype=F64), torch.full((1, 1), var, dtype=F64), p)


def error(score, p, x, t0, law=None, **how):
    """Largest error of the log density, with the exact law at the end for a prior."""
    law = law or score
    found = log_likelihood(score, p, x, t0=t0, prior=lambda y: law.log_prob(y, p.T), **how)
    return float((found.log_prob - law.log_prob(x, t0)).abs().max())


# right or refused


@pytest.mark.parametrize("p", STARTS, ids=repr)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_process_grid_and_method_is_right_or_refused(p, grid):
    score = gaussian(p)
    score.partition = Partition([0, 0.3 * p.T, p.T])
    for method, (steps, tolerance) in METHODS.items():
        how = dict(method="euler", divergence="logdet") if method == "logdet" else dict(method=method)
        if (p, grid) not in REFUSED or method == "adaptive" and p.variable == "log_snr":
            assert error(score, p, X, STARTS[p], grid=grid, steps=steps, **how) < tolerance, method
            continue
        with pytest.raises(ValueError, match=r"of log SNR, where 4 is|infinite at t = 1: keep clear") as caught:
            error(score, p, X, STARTS[p], grid=grid, steps=steps, **how)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("p", STARTS, ids=repr)
def test_every_process_goes_there_and_back(p):
    score, t0 = gaussian(p), STARTS[p]
    end = p.T * (1 - 1e-3) if p == OTFlow() else p.T
    times = grids.log_snr(p, t0, end, 40)
    (alpha, start), (beta, scale) = ((p.alpha(t), (p.alpha(t) ** 2 * 0.7 + p.sigma(t) ** 2).sqrt()) for t in (t0, end))
    there = last(probability_flow(score, X, times, variable="log_snr")).x
    torch.testing.assert_close(there, beta * 0.2 + (X - alpha * 0.2) / start * scale, rtol=2e-3, atol=1e-4)
    back = last(ode(score, p, there, times.flip(0), variable="log_snr"))
    assert back.t == t0 and back.nfe == 160
    torch.testing.assert_close(back.x, X, rtol=0, atol=2e-3)


# values and orders


def test_the_value_of_the_issue():
    """A standard normal in the plane at its mode: -log(2 pi); steps in t gave 83 at 50 steps and 3.4 at 200."""
    score, x = GaussianScore(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), RVE()), torch.zeros(1, 2, dtype=F64)
    for steps in (50, 200):
        found = log_likelihood(score, RVE(), x, t0=1e-5, steps=steps, grid="log_snr")
        assert float(found.log_prob) == pytest.approx(-math.log(2 * math.pi), abs=1e-3)
    found = log_likelihood(score, RVE(), x, t0=1e-5, method="adaptive")
    assert float(found.log_prob) == pytest.approx(-math.log(2 * math.pi), abs=1e-3) and found.nfe < 300


@pytest.mark.parametrize("p", [RVE_, VE_], ids=repr)
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("method, order, steps", [("euler", 1, 200), ("heun", 2, 80), ("rk4", 4, 40)])
def test_orders(p, data, method, order, steps):
    score = gaussian(p) if data == "gaussian" else LINE.diffused(p)
    coarse, fine = (error(score, p, X, STARTS[p], method=method, grid="log_snr", steps=n) for n in (steps, 2 * steps))
    assert abs(math.log2(coarse / fine) - order) < 0.2
    assert fine < {"euler": 0.2, "heun": 0.02, "rk4": 1e-4}[method]


@pytest.mark.parametrize("p", [RVE_, VE_], ids=repr)
@pytest.mark.parametrize("method, order, steps", [("euler", 1, 200), ("heun", 2, 80), ("rk4", 4, 40)])
def test_orders_of_samples(p, method, order, steps):
    """One standard deviation from the mean at the end goes to one at the start."""
    score, t0, errors = gaussian(p), STARTS[p], []
    start, end = (p.alpha(t) * 0.2 + (p.alpha(t) ** 2 * 0.7 + p.sigma(t) ** 2).sqrt() for t in (t0, p.T))
    for n in (steps, 2 * steps):
        times = grids.log_snr(p, t0, p.T, n).flip(0)
        found = last(ode(score, p, end.reshape(1, 1), times, method=method, variable="log_snr")).x
        errors.append(float((found - start).abs()))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2


def test_scipy_with_the_equation_written_out():
    """dx/dlog sigma = -sigma^2 score, and its divergence, by another integrator; alpha is 1."""
    p, law, t0 = RVE(), LINE.diffused(RVE()), 2e-5

    def flat(u, y):
        t, var = float(p.eps * math.log(5e4) / (math.log(50.0) - u)), math.exp(2 * u)
        x = torch.tensor(y[None, :1])
        return [-var * float(law.score(x, t)), -var * float(law.divergence(x, t))]

    found = log_likelihood(law, p, X, t0=t0, steps=200, grid="log_snr")
    for x, end, change in zip(X, found.x_T, found.change, strict=True):
        ends = [math.log(50.0) - math.log(5e4) * p.eps / t for t in (t0, 1.0)]
        ref = solve_ivp(flat, ends, np.append(x.numpy(), 0.0), "DOP853", rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(float(end), ref.y[0, -1], rtol=1e-5)
        assert float(change) == pytest.approx(ref.y[1, -1], abs=2e-6)


# the two variables


class Held(Score):
    """The exact score held in each block at the block's own time, as DPSM's networks are; asked within its block."""

    def __init__(self, exact, partition, block=None):
        self.exact, self.partition, self.block = exact, partition, block
        self.process, self.native = exact.process, exact.native

    def on_block(self, t):
        return Held(self.exact, self.partition, int(self.partition.block_of(t)))

    def coefficient_time(self, t):
        low, high = self.partition.bounds(self.block)
        assert t <= self.partition.T
        assert low * (1 - 1e-9) <= t <= high * (1 + 1e-9)
        return high if self.partition.discrete else t

    def predict(self, x, t):
        return self.exact.predict(x, self.coefficient_time(t))

    def predict_jvp(self, x, t, u):
        return self.exact.predict_jvp(x, self.coefficient_time(t), u)


@pytest.mark.parametrize("p", [PSM, SubVP(), VE_, Shortened(OTFlow(), 0.9), Retimed(VP(), 2.0)], ids=repr)
@pytest.mark.parametrize("discrete", [None, False, True])
def test_both_variables_agree_in_the_limit(p, discrete):
    score, edges = gaussian(p), [0, 0.1 * p.T, 0.3 * p.T, p.T]
    if discrete is not None:
        score = Held(score, Partition(edges, discrete=discrete))
    how = dict(t0=0.02 * p.T, steps=40, grid="log_snr")
    found = {v: log_likelihood(score, p, X, variable=v, **how) for v in ("t", "log_snr")}
    for name in ("x_T", "change"):
        torch.testing.assert_close(*(getattr(f, name) for f in found.values()), rtol=1e-4, atol=1e-5)
    if discrete:  # the solution is another one, and not by little
        assert float((found["t"].change - log_likelihood(gaussian(p), p, X, **how).change).abs().max()) > 1e-3


def test_a_process_of_log_snr_holds_what_is_smooth():
    """The velocity in t, held over the last block, would miss the noise by a factor of hundreds."""
    p, law, errors = RVE(), LINE.diffused(RVE()), []
    for n in (50, 100, 200):
        partition = Partition.points(grids.log_snr(p, 1e-5, 1.0, n)[1:].tolist())
        errors.append(error(Held(law, partition), p, X, 1e-5, law, steps=n, grid="blocks"))
    assert errors[-1] < 0.05 and abs(np.polyfit(np.log([50, 100, 200]), np.log(errors), 1)[0] + 1) < 0.2


def test_steps_in_log_snr_keep_to_their_block():
    p, partition = RVE(), Partition([0, 2e-5, 1e-4, 0.4, 1])
    score = Held(gaussian(p), partition)
    for method in ("rk4", "adaptive"):
        assert error(score, p, X, 1e-5, score.exact, method=method, grid="log_snr", steps=80) < 1e-3
    times = grids.with_borders(grids.log_snr(p, 1e-5, 1.0, 60), partition)
    states = list(probability_flow(score, X, times))
    assert [s.t for s in states] == times[1:].tolist()


def test_the_whole_solve_is_for_t_alone():
    class Solved(GaussianScore):
        def whole_solve(self, x, times, method, divergence):
            return 2 * x, x[:, 0], 7

    score = Solved(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64), PSM)
    by_hand = [
        log_likelihood(score, PSM, X, t0=0.1, steps=9, **how)
        for how in (dict(grid="log_snr"), dict(variable="log_snr"))
    ]
    assert [found.nfe for found in by_hand] == [36, 36]
    assert log_likelihood(score, PSM, X, t0=0.1, steps=9).nfe == 7
    assert log_likelihood(score, PSM, X, t0=0.1, steps=9, grid="log_snr", variable="t").nfe == 7


def test_single_precision_stays_single():
    score, x = gaussian(RVE()), X.float()
    found = log_likelihood(score, RVE(), x, t0=1e-5, steps=100, grid="log_snr")
    assert found.log_prob.dtype == found.x_T.dtype == torch.float32
    torch.testing.assert_close(
        found.change.double(),
        log_likelihood(score, RVE(), X, t0=1e-5, steps=100, grid="log_snr").change,
        rtol=0,
        atol=1e-4,
    )


# what is refused


def test_few_steps_are_allowed_where_they_are_no_worse_than_in_t():
    assert error(gaussian(PSM), PSM, X, 1e-3, grid="log_snr", steps=3) < 0.2
    assert points(VE(), [1.0, 1e-3], "log_snr", 2.0)


def test_the_default_variable():
    assert [variable_of(p) for p in (PSM, VE(), EDM(), OTFlow(), RVE())] == ["t"] * 4 + ["log_snr"]
    assert (
        variable_of(Shortened(RVE(), 0.5))
        == variable_of(Retimed(RVE(), 2))
        == variable_of(Retimed(VP(), 0.5))
        == "log_snr"
    )
    assert variable_of(PSM, grid="log_snr") == "log_snr" and variable_of(PSM, "t", "log_snr") == "t"
    assert variable_of(PSM, grid=torch.tensor([0.1, 1.0])) == "t"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: variable_of(RVE(), "t"), r'RVE\(.*\) is not smooth in t: use variable="log_snr"'),
        (lambda: variable_of(PSM, "sigma"), "unknown variable 'sigma': use one of t, log_snr"),
        (lambda: points(OTFlow(), [0.5, 1.0], "log_snr"), "log SNR of .* is infinite at t = 1"),
        (lambda: points(PSM, [0.5, 0.0], "log_snr"), "infinite at t = 0: keep clear of it, or step in t"),
        (lambda: points(RVE(), [1e-8, 1.0], "log_snr", math.inf), "infinite at t = 1e-08: keep clear of it$"),
        (lambda: points(RVE(), [1e-5, 1.0], "log_snr"), "the step from t = 1e-05 to 1 spans 21.6 of log SNR"),
        (lambda: log_likelihood(gaussian(RVE()), RVE(), X, t0=1e-5), "take more"),
        (lambda: log_likelihood(gaussian(RVE()), RVE(), X, t0=1e-5, grid="log_snr", variable="t"), "not smooth in t"),
        (lambda: last(ode(gaussian(RVE()), RVE(), X, [1.0, 1e-5], variable="t")), "not smooth in t"),
        (lambda: last(ode(gaussian(RVE()), RVE(), X, [1.0, 0.0], method="adaptive")), "infinite at t = 0"),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_running_out_of_evaluations_names_the_variable():
    with pytest.raises(RuntimeError, match="stopped at log_snr = .*after"):
        log_likelihood(gaussian(RVE()), RVE(), X, t0=1e-5, method="adaptive", rtol=1e-10, atol=1e-10, max_nfe=50)
