"""The optimal diffusion time: slopes against differences, estimates against quadrature, searches against optima."""

import math

import pytest
import torch
from scipy.optimize import brentq

from psmlib.data.toys import HG, Mixture, exponential_ve, two_gaussians
from psmlib.diffusion_time.elbo import elbo, elbo_curve
from psmlib.diffusion_time.optimal_time import ascend_elbo, elbo_slope, elbo_slope_estimate, maximise_elbo
from psmlib.exact.gaussian import GaussianScore
from psmlib.exact.known_error import ScoreWithError
from psmlib.process import VE, VP, Lengthened, Retimed, SubVP

F64 = torch.float64
LINE = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)], name="line")
MOVED = Mixture(gaussians=[(1.0, [1.0], 1.0)])
PROCESSES = [VP(), SubVP(), VE(0.05, 10.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=repr)


def constant(toy, p, c):
    """The exact score with an error of length c at all times."""
    return ScoreWithError(toy.diffused(p), lambda t: c * p.sigma(t))


@each
@pytest.mark.parametrize("toy, T, c", [(LINE, 0.2, None), (LINE, 0.5, 0.3), (HG().centred(), 0.4, 0.2)])
def test_slope_against_differences(p, toy, T, c):
    score, h = None if c is None else constant(toy, p, c), 1e-4
    # the parts that do not change with T drop out, so a late start serves
    high, low = (elbo(toy, p, T + e, score=score, eps=0.9 * T).decomposed for e in (h, -h))
    assert elbo_slope(toy, p, T, score=score)[0] == pytest.approx((high - low) / (2 * h), rel=1e-4, abs=1e-6)


@each
@pytest.mark.parametrize("T", [0.1, 0.4, 0.8])
def test_estimates_from_samples_are_unbiased(p, T):
    g = torch.Generator().manual_seed(3)
    score = constant(LINE, p, 0.3)
    mean, error = elbo_slope_estimate(score, p, LINE.sample(200_000, g), T, g)
    wanted = elbo_slope(LINE, p, T, score=score)[0]
    assert abs(mean - wanted) < 4 * error
    assert error < 0.1 * abs(wanted)  # or the test could not fail


def test_standard_errors_are_those_of_repeats():
    p, g = VP(), torch.Generator().manual_seed(0)
    runs = [elbo_slope_estimate(LINE.diffused(p), p, LINE.sample(500, g), 0.3, g) for _ in range(200)]
    means = torch.tensor([m for m, _ in runs], dtype=F64)
    claimed = float(torch.tensor([e for _, e in runs], dtype=F64).square().mean().sqrt())
    assert float(means.std()) == pytest.approx(claimed, rel=0.2)


def test_images_are_points():
    p, g = VP(), torch.Generator().manual_seed(0)
    cov = torch.diag(torch.tensor([0.5, 0.2, 0.3, 0.4], dtype=F64))
    x0 = torch.randn(4000, 1, 2, 2, generator=g, dtype=F64) * cov.diagonal().sqrt().reshape(1, 2, 2)
    image = GaussianScore(torch.zeros(1, 2, 2, dtype=F64), cov, p)
    flat = GaussianScore(torch.zeros(4, dtype=F64), cov, p)
    a, b = (torch.Generator().manual_seed(1) for _ in "ab")
    wanted = elbo_slope_estimate(flat, p, x0.flatten(1), 0.3, b)
    assert elbo_slope_estimate(image, p, x0, 0.3, a) == pytest.approx(wanted)
    toy = Mixture(gaussians=[(1, [0.0] * 4, cov.tolist())])
    mean, error = elbo_slope_estimate(image, p, x0, 0.3, a)
    wanted, noise = elbo_slope(toy, p, 0.3)
    assert abs(mean - wanted) < 4 * (error + noise)


@pytest.mark.parametrize("c", [0.03, 0.1, 0.3])
def test_optimum_in_closed_form(c):
    # KL = exp(-B) / 2 and G = c^2 B / 2: B* = -2 log c
    vp = VP()
    best = maximise_elbo(MOVED, vp, score=constant(MOVED, vp, c))
    assert best.inner and float(vp.integral(best.T)) == pytest.approx(-2 * math.log(c), rel=1e-8)
    assert best.bound.T == best.T and pytest.approx(-(c**2) * math.log(c), rel=1e-3) == best.bound.G


@pytest.mark.parametrize("toy", [LINE, MOVED], ids=["line", "moved"])
@each
def test_the_exact_score_wants_all_the_time_there_is(p, toy):
    best = maximise_elbo(toy, p, times=[0.2, 0.5, 0.8], eps=0.1)
    assert best.T == 0.8 and not best.inner


@each
def test_an_imperfect_score_wants_less(p):
    how = dict(times=[0.1, 0.4, 1.0], eps=0.02)
    few, many = (maximise_elbo(LINE, p, score=constant(LINE, p, c), **how) for c in (0.3, 1.0))
    assert many.inner and many.T < few.T <= 1
    assert abs(elbo_slope(LINE, p, many.T, score=constant(LINE, p, 1.0))[0]) < 1e-5
    # better than its neighbours
    near = [elbo(LINE, p, many.T * u, score=constant(LINE, p, 1.0), eps=0.02).decomposed for u in (0.97, 1.03)]
    assert max(near) < many.bound.decomposed


def test_an_optimum_beyond_the_customary_end():
    # N(1, 1) under VE with s = sigma^2(T): KL = (2/s - log(1 + 1/s)) / 2 and G = c^2 log(s) / 2 + a constant
    c, root = 0.1, brentq(lambda s: 2 / s - 1 / (1 + s) - 0.1**2, 1.0, 1e4)
    longer = Lengthened(VE(0.05, 5.0), 2.0)
    best = maximise_elbo(MOVED, longer, score=ScoreWithError(MOVED.diffused(longer), c), eps=0.01)
    assert best.inner and 1 < best.T < 2
    assert float(longer.sigma(best.T)) ** 2 == pytest.approx(root, rel=1e-7)
    ends = maximise_elbo(MOVED, VE(0.05, 5.0), score=ScoreWithError(MOVED.diffused(longer), c), eps=0.01)
    assert ends.T == 1 and not ends.inner  # a search that stops at 1 finds its end


def test_the_optimum_of_the_papers_toy_with_a_small_error():
    # leading terms: KL = |E x|^2 / (2 s), G = c^2 log(s) / 2 + a constant, so s* = |E x|^2 / c^2 = 576, T* = 1.277
    line, longer = two_gaussians(), Lengthened(exponential_ve(), 2.0)
    score = ScoreWithError(line.diffused(longer), 0.1)
    best = maximise_elbo(line, longer, score=score, times=[0.5, 1.0, 1.5, 2.0], eps=1e-3)
    assert best.inner and pytest.approx(1.2766, abs=1e-3) == best.T
    costs = [b.G + b.KL for b in elbo_curve(line, longer, [1.0, best.T, 1.5], score=score, eps=1e-3)]
    assert costs == pytest.approx([0.0871, 0.0713, 0.0746], abs=1e-4)
    assert maximise_elbo(line, longer, times=[1.0, 2.0], eps=0.5).T == 2  # the true score wants all the time there is


def test_an_optimum_beside_the_first_time_of_the_grid():
    vp = VP()
    best = maximise_elbo(MOVED, vp, score=constant(MOVED, vp, 0.9), times=[0.3, 0.6])
    assert best.T == 0.3 and best.inner  # the slope at 0.3 is negative already


def test_bounds_do_not_depend_on_the_schedule():
    fast, other = VP(), VP(0.0, 12.0)
    level = 0.7
    ends = [float(p.time_of_sigma(level)) for p in (fast, other)]
    starts = [float(p.time_of_sigma(1e-3)) for p in (fast, other)]
    scores = [ScoreWithError(LINE.diffused(p), lambda t, p=p: 0.2 * p.sigma(t) ** 0.5) for p in (fast, other)]
    a, b = (elbo(LINE, *v[:2], score=v[2], eps=v[3]) for v in zip((fast, other), ends, scores, starts, strict=True))
    assert pytest.approx(b.T, rel=0.05) != a.T
    for name in ("I", "K", "R", "G", "KL", "elbo"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-7, abs=1e-9), name


@pytest.mark.parametrize("p", [VP(), VE(0.05, 10.0)], ids=repr)
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_retiming_moves_the_optimum_along(p, power):
    other = Retimed(p, power)
    here = maximise_elbo(LINE, p, score=constant(LINE, p, 1.0), eps=0.02)
    there = maximise_elbo(LINE, other, score=constant(LINE, other, 1.0), eps=0.02)
    assert float(other.clock(there.T)) == pytest.approx(here.T, rel=1e-7)
    assert pytest.approx(here.bound.KL, rel=1e-7) == there.bound.KL


@pytest.mark.parametrize("start", [0.15, 0.9])
def test_ascent_finds_the_optimum(start):
    vp = VP()
    score = constant(MOVED, vp, 0.3)
    best = float(vp.time_of_sigma(math.sqrt(1 - 0.09)))
    found = ascend_elbo(score, vp, MOVED, start=start, updates=100, batch_size=2000, lr=0.15)
    assert pytest.approx(best, rel=0.06) == found.T
    assert len(found.times) == 101 and len(found.slopes) == len(found.stderrs) == 100
    again = ascend_elbo(score, vp, MOVED, start=start, updates=3, batch_size=2000, lr=0.15)
    assert again.times[1] == found.times[1] and again.slopes[0] == found.slopes[0]  # of the seed alone


def test_ascent_stays_within_bounds():
    ve = VE(0.05, 10.0)
    up = ascend_elbo(LINE.diffused(ve), ve, LINE, start=0.9, updates=30, batch_size=2000, lr=0.1)
    assert up.T > 0.95 and max(up.times) <= 1 and up.times[-1] == pytest.approx(1, abs=0.02)
    bad = constant(LINE, VP(), 20.0)
    down = ascend_elbo(bad, VP(), LINE, start=0.3, updates=30, batch_size=200, lr=0.2, shortest=0.05)
    assert min(down.times) == pytest.approx(0.05, rel=1e-12) and down.times[-1] < 0.06
    for start in (0.0, 1.2, math.nan):
        with pytest.raises(ValueError, match="start within it"):
            ascend_elbo(bad, VP(), LINE, start=start)
