"""The exact law of a diffused toy against convolution, differentiation, Monte Carlo and the Fokker-Planck equation."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from psmlib import exact as module
from psmlib.data.toys import HG, TY, Mixture
from psmlib.exact import component_average, gaussian_axis, irreducible_loss, nll_floor, uniform_axis
from psmlib.process import EDM, PREDICTIONS, RVE, VE, VP, OTFlow, SubVP
from psmlib.score import Score

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)
BOX = Mixture(boxes=[(1, [0.3, -0.2], [0.05, 0.4], 0.0)])
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)


def points(n=40, scale=1.0, seed=0, dim=2):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def axis_at(u, half, alpha, sigma):
    return uniform_axis(*(torch.tensor(v, dtype=F64) for v in (u, half, alpha, sigma)))


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# one axis of one component


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


# mixtures


def test_log_prob_against_monte_carlo():
    t, toy = 0.25, TY().centred()
    alpha, sigma = float(PSM.alpha(t)), float(PSM.sigma(t))
    x0 = toy.sample(100_000, torch.Generator().manual_seed(1))
    x = points(10, 0.6)
    kernel = torch.exp(-0.5 * torch.cdist(x, alpha * x0).square() / sigma**2) / (2 * math.pi * sigma**2)
    density, stderr = kernel.mean(1), kernel.std(1) / len(x0) ** 0.5
    assert ((toy.diffused(PSM).log_prob(x, t).exp() - density).abs() < 4 * stderr).all()
    assert (stderr / density < 0.02).all()


def test_log_prob_by_quadrature_over_turned_boxes():
    p, t = OTFlow(), 0.3
    law, x = SLANTED.diffused(p), points(4, 0.8)
    side, weight = (torch.tensor(v, dtype=F64) for v in np.polynomial.legendre.leggauss(40))
    grid, w2 = torch.cartesian_prod(side, side), torch.outer(weight, weight).flatten() / 4
    alpha, sigma = 1 - t, t
    total = torch.zeros(len(x), dtype=F64)
    for v, c, h, R in zip(SLANTED.box_weight, SLANTED.box_centre, SLANTED.box_half, SLANTED.box_rotation, strict=True):
        y = c + (grid * h) @ R.T
        total += v * (torch.exp(-0.5 * torch.cdist(x, alpha * y).square() / sigma**2) @ w2) / (2 * math.pi * sigma**2)
    cov = alpha**2 * SLANTED.gauss_cov[0] + sigma**2 * torch.eye(2, dtype=F64)
    normal = torch.distributions.MultivariateNormal(alpha * SLANTED.gauss_mean[0], cov)
    close(law.log_prob(x, t).exp(), total + SLANTED.gauss_weight[0] * normal.log_prob(x).exp(), rtol=1e-11, atol=0)


@each
@pytest.mark.parametrize("u", [0.02, 0.3, 0.9])
def test_score_and_jacobian_are_derivatives_of_the_log_density(p, u):
    law, t = SLANTED.diffused(p), u * p.T
    x = points(30, 1 + float(p.sigma(t))).requires_grad_()
    log_prob = law.log_prob(x, t)
    (grad,) = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
    rows = [torch.autograd.grad(grad[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    hessian, x = torch.stack(rows, 1), x.detach()
    score, jac = law.jacobian(x, t)
    scale = 1 / float(p.sigma(t))
    close(score, grad.detach(), rtol=1e-9, atol=1e-9 * scale)
    close(law.score(x, t), score, rtol=0, atol=1e-12 * scale)
    close(jac, hessian, rtol=1e-9, atol=1e-9 * scale**2)
    close(law.divergence(x, t), hessian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9, atol=1e-9 * scale**2)


def test_ty_score_against_central_differences():
    law, t, h = TY().centred().diffused(PSM), 0.05, 1e-5
    x = points(60, 0.7)
    for j in range(2):
        e = torch.zeros(2, dtype=F64)
        e[j] = h
        close((law.log_prob(x + e, t) - law.log_prob(x - e, t)) / (2 * h), law.score(x, t)[:, j], 1e-6, 1e-5)
        close((law.score(x + e, t) - law.score(x - e, t)) / (2 * h), law.jacobian(x, t)[1][:, :, j], 1e-5, 1e-3)


def test_posterior_against_monte_carlo():
    p, t, n = PSM, 0.4, 200_000
    x0 = SLANTED.sample(n, torch.Generator().manual_seed(2))
    law, x = SLANTED.diffused(p), points(6, 0.8, seed=3)
    mean, cov = law.posterior(x, t)
    weight = torch.exp(-0.5 * torch.cdist(x, float(p.alpha(t)) * x0).square() / float(p.sigma(t)) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    dev = x0 - mean[:, None]
    stderr = (weight[..., None] ** 2 * dev**2).sum(1).sqrt()
    assert ((weight @ x0 - mean).abs() < 4 * stderr).all()
    outer = dev[..., :, None] * dev[..., None, :]
    got = (weight[..., None, None] * outer).sum(1)
    stderr = (weight[..., None, None] ** 2 * (outer - cov[:, None]) ** 2).sum(1).sqrt()
    assert ((got - cov).abs() < 4 * stderr).all()
    close(law.denoised(x, t), mean)


@each
@pytest.mark.parametrize("u", [0.05, 0.5, 0.95])
def test_tweedie(p, u):
    # E[x0|x] = (x + sigma^2 s) / alpha, Cov[x0|x] = (sigma / alpha)^2 (I + sigma^2 ds/dx)
    law, t = SLANTED.diffused(p), u * p.T
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    x = points(30, 1 + sigma)
    score, jac = law.jacobian(x, t)
    mean, cov = law.posterior(x, t)
    loss = (1 + sigma) * sigma / alpha  # of digits, where the two sides cancel
    close(mean, (x + sigma**2 * score) / alpha, rtol=1e-10, atol=1e-11 * max(1, loss))
    close(cov, (sigma / alpha) ** 2 * (torch.eye(2, dtype=F64) + sigma**2 * jac), 1e-9, 1e-11 * max(1, loss) ** 2)
    close(law.eps(x, t), -sigma * score, rtol=1e-12, atol=1e-12)
    assert (torch.linalg.eigvalsh(cov) > 0).all()


@each
@pytest.mark.parametrize("u", [0.05, 0.5, 0.95])
def test_readings_agree_with_the_conversions_of_the_process(p, u):
    law, t = SLANTED.diffused(p), u * p.T
    x = points(30, 1 + float(p.sigma(t)))
    v = law.velocity(x, t)
    scale = float(v.abs().max() + x.abs().max())
    for kind in PREDICTIONS:
        reading = getattr(law, kind)(x, t)
        close(p.convert(x, t, reading, kind, "velocity"), v, rtol=1e-8, atol=1e-9 * scale)
    both = law.velocity_and_score(x, t)
    close(both[0], v)
    close(both[1], law.score(x, t))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_every_jacobian_is_a_derivative(kind):
    for p in (PSM, OTFlow(), VE(0.01, 5.0)):
        law, x, t, h = SLANTED.diffused(p), points(20), 0.35, 1e-5
        value, jac = law.jacobian(x, t, kind)
        close(value, getattr(law, kind)(x, t), rtol=1e-10, atol=1e-10)
        for j in range(2):
            e = h * torch.eye(2, dtype=F64)[j]
            rise = (getattr(law, kind)(x + e, t) - getattr(law, kind)(x - e, t)) / (2 * h)
            close(jac[:, :, j], rise, rtol=1e-6, atol=1e-6 * float(jac.abs().max()))


def test_directional_derivatives():
    law, x, u = SLANTED.diffused(PSM), points(10), points(10, seed=9)
    for value, tangent, kind in [(*law.predict_jvp(x, 0.3, u), "eps"), (*law.velocity_jvp(x, 0.3, u), "velocity")]:
        want, jac = law.jacobian(x, 0.3, kind)
        close(value, want)
        close(tangent, torch.einsum("nij,nj->ni", jac, u))


def test_base_class_differentiates_by_itself():
    class Bare(Score):
        """Knows only its prediction."""

        process, native = OTFlow(), "denoised"

        def predict(self, x, t):
            mean, cov = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=F64)
            total = (1 - t) ** 2 * cov + t**2 * torch.eye(2, dtype=F64)
            return mean + (1 - t) * (x - (1 - t) * mean) @ torch.linalg.solve(total, cov)

    exact = Mixture(gaussians=[(1, [0.3, -0.2], [[0.5, 0.2], [0.2, 0.4]])]).diffused(OTFlow())
    x, u, t = points(5), points(5, seed=2), 0.6
    for kind in PREDICTIONS:
        for got, want in zip(Bare().jacobian(x, t, kind), exact.jacobian(x, t, kind), strict=True):
            close(got, want)
    for got, want in zip(Bare().velocity_jvp(x, t, u), exact.velocity_jvp(x, t, u), strict=True):
        close(got, want)
    close(Bare().divergence(x, t), exact.divergence(x, t))
    assert Bare().on_block(0.3).clock(0.2) == 0.2
    with pytest.raises(TypeError, match="Score does not define predict"):
        Score().predict(x, t)


# extremes


@pytest.mark.parametrize("toy", [HG(), TY(), BOX], ids=["HG", "TY", "box"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@each
def test_far_out_is_finite_and_points_back(toy, dtype, p):
    angle = torch.arange(8, dtype=F64) * math.pi / 4 + 0.1
    out = torch.stack([angle.cos(), angle.sin()], 1)
    law, t = toy.diffused(p), 0.05 * p.T
    for distance in (50.0, 1e3):
        x = ((3 + distance * float(p.sigma(t))) * out).to(dtype)
        score, jac = law.jacobian(x, t)
        mean, cov = law.posterior(x, t)
        for y in (law.log_prob(x, t), score, jac, mean, cov, law.eps(x, t), law.velocity(x, t)):
            assert y.dtype == dtype and y.isfinite().all()
        assert ((score * out.to(dtype)).sum(1) < 0).all()
        # what pulls back is the distance to the posterior mean
        want = ((float(p.alpha(t)) * law.denoised(x.double(), t) - x) / float(p.sigma(t)) ** 2).to(dtype)
        rtol = 1e-9 if dtype == F64 else 1e-6
        close(score, want, rtol=0, atol=rtol * float(want.abs().max()))
        assert toy is not BOX or (mean.abs() <= torch.tensor([0.35, 0.6]) + 1e-6).all()  # no mass elsewhere


@each
def test_at_time_zero_the_limit_is_returned(p):
    law = SLANTED.diffused(p)
    x = SLANTED.sample(200, torch.Generator().manual_seed(4))
    x = torch.cat([x, 3 * points(100, seed=5)])
    close(law.log_prob(x, 0.0), SLANTED.log_prob(x), rtol=1e-7, atol=1e-7)
    close(law.denoised(x, 0.0), x, rtol=0, atol=1e-8)
    assert (law.eps(x, 0.0) == 0).all()
    # only the Gaussian has a slope; inside the boxes it is diluted
    normal = torch.distributions.MultivariateNormal(SLANTED.gauss_mean[0], SLANTED.gauss_cov[0])
    share = (SLANTED.gauss_weight[0].log() + normal.log_prob(x) - SLANTED.log_prob(x)).exp()
    score = -share[:, None] * torch.linalg.solve(SLANTED.gauss_cov[0], (x - SLANTED.gauss_mean[0]).T).T
    close(law.score(x, 0.0), score, rtol=1e-7, atol=1e-7)
    velocity = p.drift(0.0) * x - 0.5 * p.diffusion2(0.0) * score
    close(law.velocity(x, 0.0), velocity, rtol=1e-7, atol=1e-7)
    for kind in PREDICTIONS:
        assert all(y.isfinite().all() for y in law.jacobian(x, 0.0, kind))
    assert law.divergence(x, 0.0).isfinite().all()


@pytest.mark.parametrize("toy", [HG(), TY()], ids=["HG", "TY"])
def test_at_time_zero_far_components_do_no_harm(toy):
    law, x = toy.diffused(PSM), 3 * points(400)
    for y in (*law.jacobian(x, 0.0), *law.jacobian(x, 0.0, "velocity"), *law.posterior(x, 0.0)):
        assert y.isfinite().all()
    close(law.log_prob(x, 0.0), toy.log_prob(x), rtol=1e-6, atol=1e-6)


@each
def test_continuous_at_time_zero(p):
    law, x = SLANTED.diffused(p), torch.tensor([[0.5, -0.2], [0.3, -0.4]], dtype=F64)  # away from the boxes' edges
    t = float(p.time_of_sigma(1e-8))
    close(law.log_prob(x, t), law.log_prob(x, 0.0), rtol=0, atol=1e-7)
    close(law.score(x, t), law.score(x, 0.0), rtol=1e-6, atol=1e-6)
    close(law.divergence(x, t), law.divergence(x, 0.0), rtol=1e-6, atol=1e-6)


def test_flow_matching_at_the_end():
    p, x = OTFlow(), points(20)
    law = SLANTED.diffused(p)
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), torch.ones((), dtype=F64))
    close(law.log_prob(x, 1.0), normal.log_prob(x).sum(1))
    v, jac = law.jacobian(x, 1.0, "velocity")
    close(v, x - SLANTED.mean)
    close(jac, torch.eye(2, dtype=F64).expand(20, 2, 2))  # d v / d x = I - alpha cov -> I
    mean, cov = law.posterior(x, 1.0)
    close(mean, SLANTED.mean.expand(20, 2))
    close(cov, SLANTED.cov.expand(20, 2, 2))  # noise tells nothing
    close(law.score(x, 1.0), -x)
    close(law.divergence(x, 1.0), torch.full((20,), -2.0, dtype=F64))


def test_flow_matching_is_continuous_up_to_the_end():
    p, x = OTFlow(), points(20)
    law = SLANTED.diffused(p)
    end = law.jacobian(x, 1.0, "velocity")
    for gap in (1e-4, 1.01e-6, 0.99e-6, 1e-9, 1e-12):
        for got, want in zip(law.jacobian(x, 1 - gap, "velocity"), end, strict=True):
            close(got, want, rtol=0, atol=20 * gap + 1e-9)
    # the two ways to the velocity meet where one takes over from the other
    two = [law.jacobian(x, 1 - gap, "velocity") for gap in (1.0001e-6, 0.9999e-6)]
    for a, b in zip(*two, strict=True):
        close(a, b, rtol=0, atol=2e-9)


# plumbing


@each
def test_single_precision_in_and_out(p):
    law, x, t = TY().centred().diffused(p), points(50), 0.1 * p.T
    for f in (law.log_prob, law.score, law.eps, law.denoised, law.velocity, law.divergence):
        got = f(x.float(), t)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, f(x.float().double(), t).float(), rtol=1e-6, atol=1e-7)


def test_times_in_single_precision_lose_nothing():
    law, x = TY().centred().diffused(PSM), points(50)
    t = torch.linspace(1e-4, 0.9, 50)
    for f in (law.log_prob, law.velocity, law.denoised, law.eps, law.score):
        assert torch.equal(f(x, t), f(x, t.double()))


@each
def test_a_time_for_each_sample(p):
    law, x = SLANTED.diffused(p), points(30)
    t = torch.linspace(0.0, p.T, 30, dtype=F64)
    for f in (law.log_prob, law.score, law.eps, law.denoised, law.velocity, law.divergence):
        together = f(x, t)
        apart = torch.cat([f(x[i : i + 1], float(t[i])) for i in range(30)])
        close(together[:-1], apart[:-1], rtol=1e-6, atol=1e-6)
        close(together[1:], apart[1:], rtol=1e-8, atol=1e-8)


def test_pieces_make_no_difference(monkeypatch):
    law, x, t = SLANTED.diffused(PSM), points(50), torch.linspace(0.01, 1, 50, dtype=F64)
    whole = [law.log_prob(x, t), *law.jacobian(x, t, "velocity"), *law.posterior(x, 0.3)]
    monkeypatch.setattr(module, "_CHUNK", 3)  # eight points a piece
    pieces = [law.log_prob(x, t), *law.jacobian(x, t, "velocity"), *law.posterior(x, 0.3)]
    for a, b in zip(whole, pieces, strict=True):
        assert torch.equal(a, b)
    assert law.score(x[:0], 0.5).shape == (0, 2)


@pytest.mark.parametrize("shape", [(2,), (5, 3), (5, 1, 2)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\) for slanted, got") as caught:
        SLANTED.diffused(PSM).score(torch.zeros(shape), 0.5)
    assert "\n" not in str(caught.value)


def test_unknown_readings_are_named():
    with pytest.raises(ValueError, match="'noise'.*eps, score"):
        SLANTED.diffused(PSM).jacobian(points(2), 0.5, "noise")
    with pytest.raises(ValueError, match="'noise'.*eps, score"):
        irreducible_loss(SLANTED, PSM, 0.5, "noise")


def test_one_dimension():
    line = Mixture(gaussians=[(1, [-1.0], 0.04), (3, [1.0], 0.09)])
    law, x, t = line.diffused(PSM), torch.linspace(-2, 2, 9, dtype=F64)[:, None], 0.3
    alpha, sigma = float(PSM.alpha(t)), float(PSM.sigma(t))
    q = 0.25 * stats.norm.pdf(x, -alpha, math.sqrt(0.04 * alpha**2 + sigma**2))
    q += 0.75 * stats.norm.pdf(x, alpha, math.sqrt(0.09 * alpha**2 + sigma**2))
    np.testing.assert_allclose(law.log_prob(x, t).exp().numpy(), q[:, 0], rtol=1e-12)
    assert law.jacobian(x, t)[1].shape == (9, 1, 1)


# the law in time


@each
@pytest.mark.parametrize("u", [0.15, 0.6])
def test_fokker_planck(p, u):
    # d log p / dt = -div v - v . s with v = f x - g^2 s / 2
    law, t, h = SLANTED.diffused(p), u * p.T, 1e-3 * u * p.T
    x = points(30, float(p.alpha(t)) * 0.7 + float(p.sigma(t)))
    lp = [law.log_prob(x, t + k * h) for k in (-2, -1, 1, 2)]
    rate = (lp[0] - 8 * lp[1] + 8 * lp[2] - lp[3]) / (12 * h)
    f, g2 = float(p.drift(t)), float(p.diffusion2(t))
    score, div = law.score(x, t), law.divergence(x, t)
    velocity = f * x - 0.5 * g2 * score
    right = -(2 * f - 0.5 * g2 * div) - (velocity * score).sum(1)
    close(rate, right, rtol=1e-6, atol=1e-6 * float(right.abs().max()))
    close(law.jacobian(x, t, "velocity")[1].diagonal(dim1=1, dim2=2).sum(1), 2 * f - 0.5 * g2 * div, 1e-9, 1e-8)


@each
def test_moments_of_the_diffused_law(p):
    t = 0.3 * p.T
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    for j in range(2):
        mean, stderr = component_average(SLANTED, lambda x, j=j: x[:, j], process=p, t=t)
        assert abs(mean - alpha * float(SLANTED.mean[j])) < 5 * stderr + 1e-6
        square, stderr = component_average(SLANTED, lambda x, j=j: x[:, j] ** 2, process=p, t=t)
        want = alpha**2 * float(SLANTED.cov[j, j] + SLANTED.mean[j] ** 2) + sigma**2
        assert abs(square - want) < 5 * stderr + 1e-6
    # the score has mean zero, and E[x . s] = -d, for every density
    law = SLANTED.diffused(p)
    zero, stderr = component_average(SLANTED, lambda x: law.score(x, t)[:, 0], process=p, t=t, m=8)
    assert abs(zero) < 5 * stderr + 1e-6
    dim, stderr = component_average(SLANTED, lambda x: (x * law.score(x, t)).sum(1), process=p, t=t, m=8)
    assert abs(dim + 2) < 5 * stderr + 1e-6


FLOORS = [  # c, t0, TY, HG: recorded with 200k samples, standard error .002
    (6, 0.01, 0.586, 1.049),
    (5, 1e-4, 0.477, 0.954),
    (5, 0.01, 0.573, 1.041),
    (5, 1e-3, 0.485, 0.962),
    (6, 0.005, 0.523, 1.001),
]


@pytest.mark.parametrize("c, t0, ty, hg", FLOORS)
def test_recorded_floors(c, t0, ty, hg):
    for toy, want, m in ((TY(), ty, 8), (HG(), hg, 10)):
        floor, stderr = nll_floor(toy, VP(0.0, 2.0 * c), t0, m=m, repeats=2)
        assert stderr < 0.003
        assert abs(floor - want) < 0.006
        assert floor > toy.entropy - 0.001  # Gibbs: no law codes the data better than their own


def test_a_floor_is_a_plain_average():
    toy, x = SLANTED, SLANTED.sample(20_000, torch.Generator().manual_seed(0))
    values = -toy.diffused(PSM).log_prob(x, 0.05)
    floor, stderr = nll_floor(toy, PSM, 0.05)
    assert abs(floor - float(values.mean())) < 4 * float(values.std()) / len(x) ** 0.5 + 4 * stderr
    again = nll_floor(toy, PSM, 0.05)
    assert again == (floor, stderr)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("p", [PSM, OTFlow()], ids=["VP", "OTFlow"])
def test_irreducible_loss_against_monte_carlo(p, kind):
    t, n, g = 0.3, 20_000, torch.Generator().manual_seed(7)
    x0, eps = SLANTED.sample(n, g), torch.randn(n, 2, generator=g, dtype=F64)
    x = p.perturb(x0, t, eps)
    target = {
        "eps": eps,
        "denoised": x0,
        "score": -eps / p.sigma(t),
        "velocity": p.alpha_rate(t) * x0 + p.sigma_rate(t) * eps,
    }[kind]
    error = (target - getattr(SLANTED.diffused(p), kind)(x, t)).square().mean(1)
    loss, stderr = irreducible_loss(SLANTED, p, t, kind)
    assert abs(float(error.mean()) - loss) < 4 * float(error.std()) / n**0.5 + 4 * stderr
    assert loss > 10 * stderr


def test_irreducible_loss_of_a_gaussian():
    # eps given x has variance alpha^2 v / (alpha^2 v + sigma^2)
    one, t = Mixture(gaussians=[(1, [0.4, 0.1], 0.3)]), 0.3
    signal = float(PSM.alpha(t)) ** 2 * 0.3
    loss, stderr = irreducible_loss(one, PSM, t)
    assert loss == pytest.approx(signal / (signal + float(PSM.sigma(t)) ** 2), rel=1e-10) and stderr < 1e-12
    v, _ = irreducible_loss(one, OTFlow(), 1.0, "velocity")
    assert v == pytest.approx(0.3, rel=1e-10)  # at the end the velocity x - x0 hides all of x0
