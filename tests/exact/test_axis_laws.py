"""One axis of one component against quadrature, Bayes' rule and expansions, on both sides of every branch."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from psmlib.exact.axis_laws import gaussian_axis, gaussian_third, uniform_axis, uniform_third

F64 = torch.float64


def axis_at(u, half, alpha, sigma):
    return uniform_axis(*(torch.tensor(v, dtype=F64) for v in (u, half, alpha, sigma)))


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("half, alpha", [(0.05, 0.1), (0.05, 1.0), (1.25, 0.7), (0.4, 0.01)])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 5.0])
def test_a_uniform_axis_against_quadrature(half, alpha, sigma):
    reach = alpha * half + 6 * sigma
    for u in np.linspace(-reach, reach, 7) + 0.01:
        peak = float(np.clip(u / alpha, -half, half))

        def moment(k, u=u, peak=peak):
            def f(y):
                return y**k * stats.norm.pdf(u, alpha * y, sigma) / (2 * half)

            cuts = sorted(
                {-half, max(-half, peak - 9 * sigma / alpha), peak, min(half, peak + 9 * sigma / alpha), half}
            )
            parts = zip(cuts, cuts[1:], strict=False)
            return sum(integrate.fixed_quad(f, a, b, n=80)[0] for a, b in parts)

        mass, mean, square = (moment(k) for k in range(3))
        mean, square = mean / mass, square / mass
        var = square - mean**2
        got = axis_at(u, half, alpha, sigma)
        assert float(got.log_density) == pytest.approx(math.log(mass), abs=1e-10)
        assert float(got.mean) == pytest.approx(mean, abs=1e-9 * half)
        assert float(got.variance) == pytest.approx(var, abs=1e-8 * half**2)
        assert float(got.score) == pytest.approx((alpha * mean - u) / sigma**2, rel=1e-9, abs=1e-9 / sigma)
        assert float(got.curvature) == pytest.approx((alpha**2 * var / sigma**2 - 1) / sigma**2, abs=1e-8 / sigma**2)


def test_a_gaussian_axis_is_conjugate():
    u, v, alpha, sigma = (torch.tensor(c, dtype=F64) for c in (0.7, 0.3, 0.6, 0.4))
    got = gaussian_axis(u, v, alpha, sigma)
    precision = 1 / v + alpha**2 / sigma**2  # Bayes, the other way round
    close(got.variance, 1 / precision)
    close(got.mean, alpha * u / sigma**2 / precision)
    total = alpha**2 * v + sigma**2
    close(got.log_density, torch.distributions.Normal(0 * u, total.sqrt()).log_prob(u))
    close(got.score, -u / total)
    close(got.curvature, -1 / total)


@pytest.mark.parametrize("z", [0.0, 0.5, 3.0, 9.9, -2.0])
def test_branches_meet_where_the_box_becomes_narrow(z):
    check_meeting((z, 0.03 - 1e-13), (z, 0.03 + 1e-13), variance=1e-8)


@pytest.mark.parametrize("delta", [0.004, 0.02, 1e-4])
def test_branches_meet_far_from_a_narrow_box(delta):
    z = 0.3 / delta
    # the variance is known to rounding errors of (distance / half width)^2
    check_meeting((z - 1e-10, delta), (z + 1e-10, delta), variance=1e-9 + 1e-15 * (z / delta) ** 2)


@pytest.mark.parametrize("delta", [0.5, 4.0])
def test_branches_meet_far_from_a_wide_box(delta):
    check_meeting((600 + delta - 1e-9, delta), (600 + delta + 1e-9, delta), variance=1e-7)


def check_meeting(before, after, variance):
    half, (a, b) = 0.05, (axis_at(z, 0.05, delta / 0.05, 1.0) for z, delta in (before, after))
    step = abs(after[0] - before[0]) * (1 + abs(after[0]))  # what the functions themselves move by
    tilt = [q.log_density + z**2 / 2 for q, (z, _) in ((a, before), (b, after))]  # without its large part
    close(*tilt, rtol=0, atol=2e-11 + 1e-15 * before[0] ** 2 + before[1] * abs(after[0] - before[0]))
    close(a.score, b.score, rtol=1e-9, atol=1e-9 + 2 * step)
    close(a.curvature, b.curvature, rtol=1e-9, atol=1e-9)
    close(a.mean / half, b.mean / half, rtol=0, atol=1e-9 + 1e-14 * before[0] / before[1] + 4 * step)
    close(a.variance / half**2, b.variance / half**2, rtol=0, atol=variance)


@pytest.mark.parametrize("delta", [0.004, 0.1, 3.0])
@pytest.mark.parametrize("z", [50.0, 1e3, 1e5, -1e3])
def test_far_from_a_box(delta, z):
    # there y is exponential on the box: E[y] = h (coth c - 1/c) at c = z delta, and log q = -z^2/2 + log(sinh(c)/c)
    half = 0.05
    got = axis_at(z, half, delta / half, 1.0)
    c = abs(z) * delta
    mean = half * (1 / math.tanh(c) - 1 / c) * math.copysign(1, z)
    slack = max(3 / abs(z) ** 2, delta**2)  # next order, in units of the answer
    assert float(got.mean) == pytest.approx(mean, rel=2 * slack / (c if c < 1 else 1) + 1e-9)
    assert abs(float(got.mean)) <= half and float(got.mean) * z > 0
    assert 0 < float(got.variance) <= half**2 / 3 * (1 + 1e-12)
    assert math.isfinite(float(got.log_density)) and float(got.score) * z < 0
    # Tweedie holds to the last digit that the mean has
    assert float(got.score) == pytest.approx(-(z - delta * float(got.mean) / half), rel=1e-12)
    log_sinh = c + math.log1p(-math.exp(-2 * c)) - math.log(2)
    log_q = -0.5 * z**2 + log_sinh - math.log(c) - 0.5 * math.log(2 * math.pi)
    assert float(got.log_density) == pytest.approx(log_q, rel=1e-12, abs=delta**2)


def test_far_variance():
    # Var[y] of the exponential on the box, h^2 (1/c^2 - 1/sinh(c)^2)
    for z, delta in [(800.0, 0.01), (800.0, 0.5), (5e3, 2.0), (5e4, 0.001)]:
        c = z * delta
        want = 1 / c**2 - (1 / math.sinh(c) ** 2 if c < 300 else 0)
        assert float(axis_at(z, 1.0, delta, 1.0).variance) == pytest.approx(want, rel=2e-3 + 2 * delta / z)
    near, delta = 1000.0, 2.0  # one end only: 1 / near^2
    assert float(axis_at(near + delta, 1.0, delta, 1.0).variance) * delta**2 * near**2 == pytest.approx(1, rel=1e-4)


# the third moment


def third_at(z, delta):
    """K / h^3 for a box of half width one in units of its own."""
    one = torch.ones((), dtype=F64)
    return float(uniform_third(torch.tensor(z, dtype=F64), one, torch.tensor(delta, dtype=F64), one))


def third_by_recursion(z, delta):
    """The same from raw moments of exp(-n s - s^2/2) on [0, 2 delta] in 120 digits; s from the near end."""
    with mpmath.workdps(120):
        n, width = abs(mpmath.mpf(z)) - mpmath.mpf(delta), 2 * mpmath.mpf(delta)
        end, root = mpmath.exp(-n * width - width**2 / 2), mpmath.sqrt(2)
        m0 = mpmath.sqrt(mpmath.pi / 2) * mpmath.exp(n**2 / 2)
        m0 *= mpmath.erfc(n / root) - mpmath.erfc((n + width) / root)
        m1 = 1 - end - n * m0  # by parts: M_j+1 = j M_j-1 - n M_j - width^j end
        m2 = m0 - n * m1 - width * end
        m3 = 2 * m1 - n * m2 - width**2 * end
        a, b, c = m1 / m0, m2 / m0, m3 / m0
        return float(-mpmath.sign(z) * (c - 3 * a * b + 2 * a**3) / mpmath.mpf(delta) ** 3)


@pytest.mark.parametrize("delta", [1e-6, 1e-4, 0.003, 0.03, 0.3, 0.499, 0.501, 1.0, 2.5, 8.0, 40.0, 1e3])
def test_third_moment_to_twelve_digits(delta):
    around = [0.001, 0.2, 0.499, 0.501, 1.0, 3.0, 9.0, 15.0]
    for z in [*around, *(delta + v for v in around), *(delta - v for v in around), 30.0, 100.0, 199.0, -7.0]:
        want, near = third_by_recursion(z, delta), min(0.0, abs(z) - delta)
        noise = 3e-15 * math.exp(-0.5 * near**2)  # falls inside, with the moment
        assert third_at(z, delta) == pytest.approx(want, rel=2e-13, abs=noise + 1e-100)
        assert third_at(-z, delta) == -third_at(z, delta)


@pytest.mark.parametrize(
    "half, alpha, sigma", [(0.05, 0.7, 0.02), (1.25, 0.4, 0.1), (0.4, 0.01, 0.9), (1.25, 1.0, 0.5)]
)
def test_third_moment_is_the_slope_of_the_variance(half, alpha, sigma):
    u = torch.linspace(-2, 2, 41, dtype=F64) * (alpha * half + 2 * sigma) + 1e-3
    size = [torch.tensor(v, dtype=F64) for v in (half, alpha, sigma)]
    third = uniform_third(u, *size)

    def slope(field):
        return torch.func.jvp(lambda v: getattr(uniform_axis(v, *size), field), (u,), (torch.ones_like(u),))[1]

    close(third, slope("variance") * sigma**2 / alpha, rtol=1e-9, atol=1e-8 * half**3)
    close(third * alpha**3 / sigma**6, slope("curvature"), rtol=1e-8, atol=1e-8 / sigma**3)
    assert float(third.abs().max()) > 5e-4 * half**3  # not by being small
    close(gaussian_third(u, *size), torch.zeros_like(u), rtol=0, atol=0)


def test_third_moment_without_signal_and_without_noise():
    u, half = torch.tensor([-3.0, 0.0, 0.4], dtype=F64), torch.tensor(0.7, dtype=F64)
    one, nothing, faint = (torch.tensor(v, dtype=F64) for v in (1.0, 0.0, 1e-5))
    assert (uniform_third(u, half, nothing, one).abs() < 1e-15).all()
    want = -2 / 15 * faint * half**4 * u  # the box's fourth cumulant, -2/15 h^4, times the tilt alpha u / sigma^2
    close(uniform_third(u, half, faint, one), want, rtol=1e-8, atol=1e-15)
    inside = torch.tensor([0.0, 0.5, 0.699], dtype=F64)
    assert (uniform_third(inside, half, one, torch.tensor(1e-9, dtype=F64)) == 0).all()
