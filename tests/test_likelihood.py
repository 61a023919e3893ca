"""Likelihoods by the probability-flow ODE, compared with exact densities and two other integrators."""

import math

import numpy as np
import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp

from psmlib.data.toys import HG, Mixture
from psmlib.exact.cross_entropy import cross_entropy
from psmlib.likelihood import GRIDS, log_likelihood, time_grid
from psmlib.partition import Partition
from psmlib.process import EDM, VE, VP, OTFlow
from psmlib.sampling import grids
from psmlib.score import Score

F64 = torch.float64
PSM = VP(0.0, 10.0)
MEAN, COV = torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
GAUSSIAN = Mixture(gaussians=[(1, MEAN.tolist(), COV.tolist())])
SMALL = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]]), (1, [-0.7, -0.9], 0.05)],
    boxes=[(4, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.2, 0.6], -15.0)],
)
LINE = Mixture(gaussians=[(1, [-0.8], 0.1), (2, [0.7], 0.2)])


def data(toy, n=12, seed=0):
    return toy.sample(n, torch.Generator().manual_seed(seed))


def exact_prior(law, t):
    """In place of N(0, I), which the exact law of x_T only approaches."""
    return lambda x: law.log_prob(x, t)


def close(a, b, atol, rtol=0.0):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


class Recorder(Score):
    """Counts evaluations and notes the times asked about."""

    def __init__(self, inner, partition=None):
        self.inner, self.process, self.native = inner, inner.process, inner.native
        self.calls, self.mids = [], []
        if partition is not None:
            self.partition = partition

    def on_block(self, t):
        self.mids.append(t)
        return self

    def jacobian(self, x, t, kind="score"):
        self.calls.append(t)
        return self.inner.jacobian(x, t, kind)

    def velocity_jvp(self, x, t, u):
        self.calls.append(t)
        return self.inner.velocity_jvp(x, t, u)


class Linear(Score):
    """Velocity c x with a rate c for each block: the simplest bank."""

    native = "velocity"

    def __init__(self, rates, partition, block=None):
        self.rates, self.partition, self.process, self.block = rates, partition, VP(0.0, 10.0), block

    def on_block(self, t):
        return Linear(self.rates, self.partition, int(self.partition.block_of(t)))

    def predict(self, x, t):
        k = int(self.partition.block_of(t)) if self.block is None else self.block
        return self.rates[k] * x

    def predict_jvp(self, x, t, u):
        return self.predict(x, t), self.predict(u, t)


# closed forms


@pytest.mark.parametrize("p, t0", [(PSM, 0.01), (VP(0.1, 20.0), 1e-3), (OTFlow(), 0.02), (OTFlow(), 0.0)])
def test_gaussian_data_in_closed_form(p, t0):
    x, law = data(GAUSSIAN), GAUSSIAN.diffused(p)
    alpha, sigma = p.alpha(t0), p.sigma(t0)
    eye = torch.eye(2, dtype=F64)
    start = torch.distributions.MultivariateNormal(alpha * MEAN, alpha**2 * COV + sigma**2 * eye)
    got = log_likelihood(law, p, x, t0=t0, steps=100, grid="warped", prior=exact_prior(law, p.T))
    close(got.log_prob, start.log_prob(x), atol=1e-6)
    # the flow is an affine map: it keeps standardised coordinates along each principal axis
    values, axes = torch.linalg.eigh(COV)
    end_alpha, end_sigma = p.alpha(p.T), p.sigma(p.T)
    gain = ((end_alpha**2 * values + end_sigma**2) / (alpha**2 * values + sigma**2)).sqrt()
    close(got.x_T, end_alpha * MEAN + ((x - alpha * MEAN) @ axes * gain) @ axes.T, atol=1e-6)
    close(got.change, gain.log().sum().expand(len(x)), atol=1e-6)
    close(got.log_prob, got.prior + got.change, atol=1e-12)


def test_flow_matching_ends_in_its_prior_exactly():
    p, x = OTFlow(), data(SMALL)
    law = SMALL.diffused(p)
    got = log_likelihood(law, p, x, t0=0.05, steps=100, grid="warped")
    close(got.log_prob, law.log_prob(x, 0.05), atol=1e-5)


# mixtures


@pytest.mark.parametrize("p, t0", [(PSM, 0.02), (OTFlow(), 0.05), (VE(0.05, 8.0), 0.02), (EDM(6.0), 0.05)])
@pytest.mark.parametrize("method, order, steps", [("euler", 1, 80), ("heun", 2, 80), ("rk4", 4, 80)])
def test_mixture_against_its_density(p, t0, method, order, steps):
    x, law = data(SMALL), SMALL.diffused(p)
    kw = dict(t0=t0, method=method, grid="warped" if p == OTFlow() else "log_snr", prior=exact_prior(law, p.T))
    coarse, fine = (log_likelihood(law, p, x, steps=n, **kw) for n in (steps, 2 * steps))
    errors = [float((r.log_prob - law.log_prob(x, t0)).abs().max()) for r in (coarse, fine)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25
    assert errors[1] < {"euler": 0.8, "heun": 7e-3, "rk4": 1e-6}[method]
    assert fine.nfe == {"euler": 1, "heun": 2, "rk4": 4}[method] * 2 * steps


def test_adaptive_mixture():
    x, law = data(SMALL), SMALL.diffused(PSM)
    prior = exact_prior(law, 1.0)
    loose, tight = (
        log_likelihood(law, PSM, x, t0=0.02, method="adaptive", rtol=tol, atol=tol, prior=prior) for tol in (1e-4, 1e-8)
    )
    close(tight.log_prob, law.log_prob(x, 0.02), atol=1e-6)
    close(loose.log_prob, law.log_prob(x, 0.02), atol=2e-2)
    assert loose.nfe < tight.nfe


def test_the_default_prior_misses_the_law_of_the_end_and_nothing_else():
    x, law = data(SMALL, 200), SMALL.diffused(PSM)
    ours = log_likelihood(law, PSM, x, t0=0.02, steps=60, grid="warped")
    true = log_likelihood(law, PSM, x, t0=0.02, steps=60, grid="warped", prior=exact_prior(law, 1.0))
    close(ours.change, true.change, atol=0)
    close(ours.log_prob - true.log_prob, PSM.prior_log_prob(ours.x_T) - law.log_prob(ours.x_T, 1.0), atol=1e-12)
    # an average of log ratios, alpha(1)^2 = exp(-5) of which remains
    gap = (ours.log_prob - true.log_prob).mean()
    assert 0 < abs(float(gap)) < 0.02


def test_the_hash_sign_reports_its_cross_entropy():
    x, law, t0 = data(HG(), 400), HG().diffused(PSM), 1e-3
    got = log_likelihood(law, PSM, x, t0=t0, steps=60, grid="warped")
    nll = -got.log_prob
    assert abs(float(nll.mean()) - cross_entropy(HG(), PSM, t0)[0]) < 4 * float(nll.std()) / 20
    close(got.log_prob, law.log_prob(x, t0), atol=0.1)
    assert float((got.log_prob - law.log_prob(x, t0)).abs().median()) < 1e-3


def test_part_of_the_way():
    # p_{.3} carried to p_{.6}: t1 need not be T
    x, law = data(SMALL), SMALL.diffused(PSM)
    got = log_likelihood(law, PSM, x, t0=0.3, t1=0.6, steps=40, prior=exact_prior(law, 0.6))
    close(got.log_prob, law.log_prob(x, 0.3), atol=1e-7)


# other people's integrators


def reference(law, p):
    """(velocity, divergence) written out from the score, for integrators that know nothing of this library."""

    def f(t, state):
        x = state[0]
        score, div = law.score(x, t), law.divergence(x, t)
        drift, g2 = p.drift(t), p.diffusion2(t)
        return drift * x - 0.5 * g2 * score, x.shape[1] * drift - 0.5 * g2 * div

    return f


@pytest.mark.parametrize("method, theirs", [("euler", "euler"), ("heun", "heun2"), ("rk4", "rk4")])
def test_torchdiffeq_on_the_same_grid(method, theirs):
    p, x, law = PSM, data(SMALL, 6), SMALL.diffused(PSM)
    # torchdiffeq's rk4 is Kutta's 3/8 rule: it shares the order with the classical one, not the rounding
    t0, steps = (0.6, 80) if method == "rk4" else (0.1, 25)
    times = grids.uniform(t0, 1.0, steps)
    y, change = torchdiffeq.odeint(reference(law, p), (x, torch.zeros(6, dtype=F64)), times, method=theirs)
    got = log_likelihood(law, p, x, t0=t0, steps=steps, method=method)
    close(got.x_T, y[-1], atol=1e-10)
    close(got.change, change[-1], atol=1e-10)


@pytest.mark.parametrize("p, t0", [(PSM, 0.05), (OTFlow(), 0.1)])
def test_scipy_on_its_own_grid(p, t0):
    x, law, t1 = data(SMALL, 2), SMALL.diffused(p), 0.95
    f = reference(law, p)
    got = log_likelihood(law, p, x, t0=t0, t1=t1, steps=150, grid="warped")
    for i, row in enumerate(x):

        def flat(t, y):
            v, d = f(torch.tensor(t, dtype=F64), (torch.tensor(y[None, :2]),))
            return np.append(v[0].numpy(), float(d))

        ref = solve_ivp(flat, (t0, t1), np.append(row.numpy(), 0.0), "DOP853", rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(got.x_T[i].numpy(), ref.y[:2, -1], atol=1e-6)
        assert float(got.change[i]) == pytest.approx(ref.y[2, -1], abs=1e-5)


# Hutchinson's estimate


def test_hutchinson_takes_two_values_whose_mean_is_exact():
    # In the plane z'Jz = tr J + z1 z2 (J12 + J21): with one probe for the whole solve the estimate depends on the
    # sign of z1 z2 alone. A probe redrawn within a solve would give many more values.
    x, law = data(SMALL, 8), SMALL.diffused(PSM)
    kw = dict(t0=0.05, steps=6, prior=exact_prior(law, 1.0))
    exact = log_likelihood(law, PSM, x, **kw)
    runs = [log_likelihood(law, PSM, x, divergence="hutchinson", seed=s, **kw) for s in range(16)]
    values = torch.stack([r.log_prob for r in runs])
    for column, want in zip(values.T, exact.log_prob, strict=True):
        levels = sorted(set(round(float(v), 9) for v in column))
        assert len(levels) == 2
        assert sum(levels) / 2 == pytest.approx(float(want), abs=2e-9)
    for r in runs:
        close(r.x_T, exact.x_T, atol=1e-12)
        assert r.nfe == exact.nfe == 24


def test_hutchinson_averages_to_the_trace():
    x, law = data(SMALL, 400), SMALL.diffused(PSM)
    kw = dict(t0=0.05, steps=10)
    exact = log_likelihood(law, PSM, x, **kw)
    total = torch.stack([log_likelihood(law, PSM, x, divergence="hutchinson", seed=s, **kw).change for s in range(8)])
    error = (total - exact.change).flatten()
    assert float(error.abs().max()) > 0.1
    assert abs(float(error.mean())) < 4 * float(error.std()) / len(error) ** 0.5


def test_hutchinson_follows_its_seed():
    x, law = data(SMALL, 30), SMALL.diffused(PSM)
    kw = dict(t0=0.1, steps=5, divergence="hutchinson")
    a, b, c = (log_likelihood(law, PSM, x, seed=s, **kw).log_prob for s in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_fresh_probes_are_drawn_at_every_evaluation():
    """In the plane a form has two values, so the sum over evaluations has many; the path of the points has one."""
    x, law = data(SMALL, 3), SMALL.diffused(PSM)
    kw = dict(t0=0.05, steps=6, divergence="hutchinson")
    for method, calls in (("euler", 6), ("rk4", 24)):
        drawn = []

        class Listening(Recorder):
            def velocity_jvp(self, x, t, u, drawn=drawn):
                drawn.append(u)
                return super().velocity_jvp(x, t, u)

        runs = {f: log_likelihood(Listening(law), PSM, x, method=method, fresh_probes=f, **kw) for f in (False, True)}
        assert len(drawn) == 2 * calls and all(bool((u.abs() == 1).all()) for u in drawn)
        assert all(u is drawn[0] for u in drawn[:calls]) and len(torch.stack(drawn[calls:]).unique(dim=0)) > calls / 2
        close(runs[True].x_T, runs[False].x_T, atol=0)
        assert runs[True].nfe == runs[False].nfe == calls
    runs = [log_likelihood(law, PSM, x, fresh_probes=True, seed=s, **kw).change for s in range(40)]
    assert all(len(column.round(decimals=9).unique()) > 30 for column in torch.stack(runs).T)


def test_fresh_probes_average_to_the_trace_with_less_noise():
    x, law = data(SMALL, 400), SMALL.diffused(PSM)
    kw = dict(t0=0.05, steps=10)
    exact, spread = log_likelihood(law, PSM, x, **kw), {}
    for fresh in (False, True):
        runs = [
            log_likelihood(law, PSM, x, divergence="hutchinson", fresh_probes=fresh, seed=s, **kw) for s in range(4)
        ]
        error = (torch.stack([run.change for run in runs]) - exact.change).flatten()
        assert abs(float(error.mean())) < 4 * float(error.std()) / len(error) ** 0.5
        spread[fresh] = float(error.std())
    assert 0.05 < spread[True] < 0.8 * spread[False]


def test_fresh_probes_follow_their_seed():
    x, law = data(SMALL, 30), SMALL.diffused(PSM)
    kw = dict(t0=0.1, steps=5, divergence="hutchinson", fresh_probes=True)
    torch.manual_seed(1)
    first = log_likelihood(law, PSM, x, seed=3, **kw).log_prob
    torch.manual_seed(2)  # the global generator has no part in it
    again, other = (log_likelihood(law, PSM, x, seed=s, **kw).log_prob for s in (3, 4))
    fixed = log_likelihood(law, PSM, x, seed=3, **{**kw, "fresh_probes": False}).log_prob
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, fixed)


def test_images_go_through_hutchinson():
    score, x = (
        Linear([0.7], Partition([0, 1])),
        torch.randn(3, 1, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0)),
    )
    got = log_likelihood(score, PSM, x, t0=0.0, steps=20, divergence="hutchinson")
    assert got.log_prob.shape == got.prior.shape == (3,) and got.x_T.shape == x.shape
    close(got.change, torch.full((3,), 8 * 0.7, dtype=F64), atol=1e-6)
    close(got.x_T, math.exp(0.7) * x, atol=1e-6)
    close(got.prior, PSM.prior_log_prob(got.x_T), atol=1e-12)


# the change of volume of an Euler step


def euler_map(law, x, times):
    for t, s in zip(times.tolist(), times.tolist()[1:], strict=False):
        x = x + (s - t) * law.velocity(x, t)
    return x


def test_logdet_is_the_density_of_the_euler_map():
    law, x, p = SMALL.diffused(PSM), data(SMALL, 5), PSM
    times = grids.quadratic(0.05, 1.0, 8)
    got = log_likelihood(law, p, x, t0=0.05, grid=times, method="euler", divergence="logdet")
    for i in range(len(x)):
        jac = torch.autograd.functional.jacobian(lambda y: euler_map(law, y[None], times)[0], x[i])
        want = p.prior_log_prob(euler_map(law, x[i : i + 1], times))[0] + torch.linalg.slogdet(jac)[1]
        assert float(got.log_prob[i]) == pytest.approx(float(want), abs=1e-10)
    assert got.nfe == 8
    plain = log_likelihood(law, p, x, t0=0.05, grid=times, method="euler")
    close(plain.x_T, got.x_T, atol=1e-12)
    assert ((plain.log_prob - got.log_prob).abs() > 1e-3).all()


def test_logdet_gives_a_density_that_integrates_to_one_and_the_trace_does_not():
    law, side = LINE.diffused(PSM), torch.linspace(-5, 5, 4001, dtype=F64)
    kw = dict(t0=0.05, steps=20, method="euler")
    logdet = log_likelihood(law, PSM, side[:, None], divergence="logdet", **kw).log_prob
    trace = log_likelihood(law, PSM, side[:, None], divergence="exact", **kw).log_prob
    assert float(torch.trapezoid(logdet.exp(), side)) == pytest.approx(1, abs=1e-4)
    # log(1 + a) <= a: the sum of traces claims more probability than there is
    assert float(torch.trapezoid(trace.exp(), side)) > 1.01
    assert (trace >= logdet - 1e-12).all()


def test_logdet_and_trace_meet_at_small_steps():
    law, x = SMALL.diffused(PSM), data(SMALL)
    gaps = []
    for steps in (50, 100, 200):
        kw = dict(t0=0.05, steps=steps, method="euler", grid="warped")
        a, b = (log_likelihood(law, PSM, x, divergence=d, **kw).log_prob for d in ("logdet", "exact"))
        gaps.append(float((a - b).abs().mean()))
    assert abs(np.polyfit(np.log([50, 100, 200]), np.log(gaps), 1)[0] + 1) < 0.25


# grids and banks


@pytest.mark.parametrize("grid", GRIDS)
def test_borders_are_on_the_grid(grid):
    partition = Partition([0, 0.02, 0.1, 0.3, 1])
    score = Recorder(GAUSSIAN.diffused(PSM), partition)
    times = time_grid(score, PSM, 0.01, 1.0, 30, grid)
    assert times[0] == 0.01 and times[-1] == 1 and (times.diff() > 0).all()
    assert set(partition.edges[1:]) <= set(times.tolist())
    # four blocks share 30 steps, seven each; elsewhere points move to borders, and few are added
    assert len(times) - 1 == 28 if grid == "blocks" else 30 <= len(times) - 1 <= 32
    got = log_likelihood(score, PSM, data(GAUSSIAN), t0=0.01, steps=30, grid=grid)
    assert got.nfe == len(score.calls) == 4 * (len(times) - 1)
    ends = PSM.log_snr(times) if grid == "log_snr" else times
    middles = (ends[1:] + ends[:-1]) / 2
    middles = PSM.time_of_log_snr(middles) if grid == "log_snr" else middles
    assert score.mids == pytest.approx(middles.tolist(), rel=1e-12)


@pytest.mark.parametrize("method", ["heun", "rk4", "adaptive"])
def test_a_field_that_jumps_between_blocks(method):
    partition, rates = Partition([0, 0.13, 0.57, 1]), [2.0, -1.0, 0.5]
    total = 2.0 * 0.13 - 0.44 + 0.5 * 0.43
    x = data(GAUSSIAN)
    got = log_likelihood(Linear(rates, partition), PSM, x, t0=0.0, steps=40, method=method, rtol=1e-9, atol=1e-9)
    tolerance = 1e-3 if method == "heun" else 1e-7  # a step across a border would cost some 1e-2
    close(got.x_T, math.exp(total) * x, atol=tolerance)
    close(got.change, torch.full((len(x),), 2 * total, dtype=F64), atol=tolerance)


def test_every_step_keeps_to_one_block():
    partition = Partition([0, 0.13, 0.57, 1])
    score = Recorder(GAUSSIAN.diffused(PSM), partition)
    log_likelihood(score, PSM, data(GAUSSIAN), t0=0.01, steps=17)
    stages = np.array(score.calls).reshape(-1, 4)
    for mid, times in zip(score.mids, stages, strict=True):
        low, high = partition.bounds(int(partition.block_of(mid)))
        assert low - 1e-12 <= times.min() and times.max() <= high + 1e-12


def test_own_grid_is_taken_as_it_is():
    law, x = GAUSSIAN.diffused(PSM), data(GAUSSIAN)
    times = torch.tensor([0.05, 0.11, 0.4, 1.0], dtype=F64)
    score = Recorder(law, Partition([0, 0.2, 1]))
    log_likelihood(score, PSM, x, t0=0.05, grid=times, method="euler")
    assert score.calls == [0.05, 0.11, 0.4]


def test_named_grids():
    p = PSM
    close(time_grid(None, p, 0.1, 1.0, 9, "uniform"), torch.linspace(0.1, 1, 10, dtype=F64), atol=1e-15)
    close(time_grid(None, p, 0.1, 1.0, 9, "warped").pow(1 / 3).diff().diff(), torch.zeros(8, dtype=F64), atol=1e-14)
    close(time_grid(None, p, 0.1, 1.0, 9, "blocks"), torch.linspace(0.1, 1, 10, dtype=F64), atol=1e-15)
    close(p.log_snr(time_grid(None, p, 0.1, 1.0, 9, "log_snr")).diff().diff(), torch.zeros(8, dtype=F64), atol=1e-9)


@pytest.mark.parametrize("method", ["euler", "rk4", "adaptive"])
def test_nfe_is_the_number_of_evaluations(method):
    score = Recorder(SMALL.diffused(PSM))
    for divergence in ("exact", "hutchinson"):
        score.calls.clear()
        got = log_likelihood(score, PSM, data(SMALL, 3), t0=0.1, steps=7, method=method, divergence=divergence)
        assert got.nfe == len(score.calls) > 0


def test_single_precision_in_and_out():
    x, law = data(SMALL), SMALL.diffused(PSM)
    wide, short = (log_likelihood(law, PSM, y, t0=0.05, steps=30, grid="warped") for y in (x, x.float()))
    assert short.log_prob.dtype == short.x_T.dtype == short.change.dtype == torch.float32
    close(short.log_prob.double(), wide.log_prob, atol=1e-3)


def test_starting_at_zero_is_finite():
    x = data(GAUSSIAN)
    for p in (PSM, VP(0.1, 20.0), OTFlow(), VE(0.05, 8.0)):
        law = GAUSSIAN.diffused(p)
        got = log_likelihood(law, p, x, t0=0.0, steps=120, grid="warped", prior=exact_prior(law, 1.0))
        close(got.log_prob, GAUSSIAN.log_prob(x), atol=1e-4)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(t0=1.0), r"t0 must lie in \[0, 1\), got 1.0"),
        (dict(t0=-0.1), "t0 must lie"),
        (dict(t0=math.nan), "t0 must lie"),
        (dict(t0=0.5, t1=0.4), r"t0 must lie in \[0, 0.4\)"),
        (dict(steps=0), "steps must be a positive whole number, got 0"),
        (dict(steps=10.5), "steps must be a positive whole number, got 10.5"),
        (dict(method="rk5"), "unknown method 'rk5': use one of euler, heun, rk4, adaptive"),
        (dict(divergence="trace"), "unknown divergence 'trace': use one of exact, hutchinson, logdet"),
        (dict(grid="cubic"), "unknown grid 'cubic': use one of uniform, warped"),
        (dict(divergence="logdet"), "use method=\"euler\", not 'rk4'"),
        (dict(grid="log_snr", t0=0.0), "log_snr grids need t0 > 0"),
    ],
)
def test_bad_input_is_named_in_one_sentence(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        log_likelihood(GAUSSIAN.diffused(PSM), PSM, data(GAUSSIAN), **{"t0": 0.01, **change})
    assert "\n" not in str(caught.value)


def test_running_out_of_evaluations():
    with pytest.raises(RuntimeError, match="stopped at t = 0.*after"):
        log_likelihood(
            SMALL.diffused(PSM), PSM, data(SMALL), t0=0.01, method="adaptive", rtol=1e-9, atol=1e-9, max_nfe=50
        )
