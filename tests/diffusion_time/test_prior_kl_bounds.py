"""Lemma 1's bounds and the rates at which the noise forgets: closed forms, recorded figures, measured exponents."""

import math

import pytest
import torch

from psmlib.data.toys import HG, TY, Mixture
from psmlib.diffusion_time.prior_kl import prior_kl
from psmlib.diffusion_time.prior_kl_bounds import (
    convexity_bound,
    hermite_moment,
    leading_term,
    lemma_bound,
    lemma_constant,
    local_rate,
    second_moment,
    signal_share,
)
from psmlib.exact.expectations import Quadrature, expectation
from psmlib.process import EDM, VE, VP, Retimed, SubVP

F64 = torch.float64
LINE = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)], name="line")
PLANE = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
)
VP20, TIMES = VP(0.1, 20.0), [0.2, 0.4, 0.6, 0.8, 1.0]
q = 0.2
SKEWED = Mixture(gaussians=[(q, [0.9 * math.sqrt((1 - q) / q)], 0.19), (1 - q, [-0.9 * math.sqrt(q / (1 - q))], 0.19)])
SYMMETRIC = Mixture(gaussians=[(1, [0.8], 0.36), (1, [-0.8], 0.36)])
CUBE = Mixture(boxes=[(1, [0.0, 0.0], [math.sqrt(3), math.sqrt(3)], 20.0)])


def time_of_share(p, share):
    """When VP has that share of signal left."""
    return float(p.time_of_sigma(math.sqrt(1 - share)))


def test_recorded_bounds():
    # FACTS: usable bound 2.44, .674, .089, .0054, .00015
    for T, bound in zip(TIMES, (2.44, 0.674, 0.089, 0.0054, 0.00015), strict=True):
        assert convexity_bound(second_moment(LINE), 1, VP20, T) == pytest.approx(bound, rel=0.03)


@pytest.mark.parametrize("toy", [LINE, SKEWED, PLANE, HG()], ids=lambda toy: toy.name)
@pytest.mark.parametrize("p", [VP20, VE(0.01, 50.0)], ids=repr)
def test_bounds_hold(p, toy):
    rule = Quadrature(toy, m=4, limit=1 << 12)
    constant = lemma_constant(toy, p)
    for T in (0.3, 0.6, 0.9):
        measured, error = prior_kl(toy, p, T, rule=rule)
        slack = 1 + 1e-9
        assert measured - 4 * error <= lemma_bound(toy, p, T, constant) * slack + 1e-9
        assert measured - 4 * error <= convexity_bound(second_moment(toy), toy.dim, p, T) * slack + 1e-9


def test_bounds_in_closed_form():
    # a Gaussian that differs in its mean alone meets Lemma 1 exactly
    one, ve = Mixture(gaussians=[(1, [1.5], 1.0)]), VE(0.1, 5.0)
    for T in TIMES:
        assert lemma_bound(one, VP20, T) == pytest.approx(prior_kl(one, VP20, T)[0], rel=1e-6)
        share = math.exp(-float(VP20.integral(T)))
        assert signal_share(VP20, T) == pytest.approx(share, rel=1e-12)
        usable = 0.5 * (share * (3.25 - 1) - math.log(1 - share))
        assert convexity_bound(3.25, 1, VP20, T) == pytest.approx(usable, rel=1e-9)
        gained = 0.1**2 * (50 ** (2 * T) - 1)
        assert lemma_bound(one, ve, T) == pytest.approx(0.5 * 3.25 / gained, rel=1e-9)
        assert convexity_bound(3.25, 1, ve, T) == pytest.approx(0.5 * 3.25 / gained, rel=1e-9)
    assert lemma_constant(one, VP20) == pytest.approx(1.125, rel=1e-9)


def test_the_looser_rate_of_half_the_exponent_is_loose():
    for T in TIMES:
        kl = prior_kl(LINE, VP20, T)[0]
        assert kl < lemma_bound(LINE, VP20, T) < lemma_constant(LINE, VP20) * math.sqrt(signal_share(VP20, T))
    # measured KL / exp(-B) tends to half the squared mean
    assert kl / signal_share(VP20, 1.0) == pytest.approx(0.5 * 2.4**2, rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("toy", [LINE, SKEWED, PLANE], ids=["line", "skewed", "plane"])
def test_hermite_moments_against_quadrature(toy, n):
    d, I = toy.dim, torch.eye(toy.dim, dtype=F64)  # noqa: E741
    found, rule = hermite_moment(toy, n), Quadrature(toy, m=11)
    index = (0,) * n if d == 1 else (0, 1, 1, 0)[:n]

    def he(x):  # by the recursion He_n = x He_{n-1} - sum of contractions
        def value(ids):
            if not ids:
                return torch.ones(len(x), dtype=F64)
            first, rest = ids[0], ids[1:]
            total = x[:, first] * value(rest)
            for j, other in enumerate(rest):
                total = total - I[first, other] * value(rest[:j] + rest[j + 1 :])
            return total

        return value(index)

    values = expectation(rule, EDM(), 0.0, he)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    assert abs(float(values.mean()) - float(found[index])) < 5 * error + 1e-9
    torch.testing.assert_close(found, found.permute(*range(n - 1, -1, -1)))


LEADING = [(LINE, 1, 2.88), (Mixture(gaussians=[(1, [0.0], 0.5)]), 2, 0.0625), (SKEWED, 3, None), (SYMMETRIC, 4, None)]
LEADING += [(CUBE, 4, 2.88 / 48), (HG(), 2, None), (TY(), 1, None)]


@pytest.mark.parametrize("toy, n, c", LEADING, ids=["line", "narrow", "skewed", "symmetric", "cube", "HG", "TY"])
def test_measured_rates_of_vp(toy, n, c):
    exponent, coefficient = leading_term(toy, VP20)
    assert exponent == n
    if c is not None:
        assert coefficient == pytest.approx(c, rel=1e-9)
    share = {1: 1e-3, 2: 0.01, 3: 0.02, 4: 0.05}[n]
    T = time_of_share(VP20, share)
    kl = prior_kl(toy, VP20, T)[0]
    assert kl / share**n == pytest.approx(coefficient, rel=0.12)
    assert local_rate(toy, VP20, T) == pytest.approx(n, rel=0.06)


@pytest.mark.parametrize("share, tolerance", [(1e-2, 0.01), (1e-3, 0.002), (1e-4, 1e-3)])
def test_a_small_leading_term_takes_over_late(share, tolerance):
    # variance 1.018 is almost that of the noise, so that the skewness leads until exp(-B) is far below 1/100
    toy = LINE.centred()
    sizes = {n: float(hermite_moment(toy, n).square().sum()) / (2 * math.factorial(n)) * share**n for n in (2, 3, 4)}
    T = time_of_share(VP20, share)
    exponent = sum(n * size for n, size in sizes.items()) / sum(sizes.values())
    assert local_rate(toy, VP20, T) == pytest.approx(exponent, rel=tolerance)
    assert prior_kl(toy, VP20, T)[0] == pytest.approx(sum(sizes.values()), rel=2 * tolerance)
    if share == 1e-4:
        assert local_rate(toy, VP20, T) == pytest.approx(2, abs=0.02)


def test_measured_rates_of_ve():
    p = VE(0.01, 50.0)
    for toy, n, c in ((LINE, 1, 2.88), (LINE.centred(), 2, 0.25 * float(LINE.cov) ** 2), (SKEWED, 2, 0.25)):
        assert leading_term(toy, p) == (n, pytest.approx(c, rel=1e-9))  # a unit variance gains nothing here
        assert prior_kl(toy, p, 0.9)[0] / signal_share(p, 0.9) ** n == pytest.approx(c, rel=0.02)
        assert local_rate(toy, p, 0.9) == pytest.approx(n, rel=0.02)


def test_local_rate_is_a_slope_of_logarithms():
    for p in (VP20, VE(0.05, 10.0)):
        T, h = 0.35, 1e-4
        rise = math.log(prior_kl(LINE, p, T + h)[0] / prior_kl(LINE, p, T - h)[0])
        run = math.log(signal_share(p, T + h) / signal_share(p, T - h))
        assert local_rate(LINE, p, T) == pytest.approx(rise / run, rel=1e-5)


def test_rates_do_not_depend_on_the_schedule():
    slow = Retimed(VP20, 2.0)
    assert leading_term(LINE, slow) == leading_term(LINE, VP20)
    assert local_rate(LINE, slow, 0.5) == pytest.approx(local_rate(LINE, VP20, 0.25), rel=1e-10)
    assert lemma_bound(LINE, slow, 0.5) == pytest.approx(lemma_bound(LINE, VP20, 0.25), rel=1e-10)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="first four moments"):
        leading_term(Mixture(gaussians=[(1, [0.0], 1.0)]), VP20)
    for p in (SubVP(), SubVP(0.0, 100.0)):
        with pytest.raises(ValueError, match="use convexity_bound"):
            lemma_bound(LINE, p, 0.5)
    with pytest.raises(ValueError, match="n = 1 to 4, got 5"):
        hermite_moment(LINE, 5)
