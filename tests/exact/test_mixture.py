"""The exact law of a diffused toy against convolution, differentiation, Monte Carlo and the Fokker-Planck equation."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from psmlib.data.toys import TY, Mixture
from psmlib.exact import mixture as module
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
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)


def points(n=40, scale=1.0, seed=0, dim=2):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


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
    assert Bare().on_block(0.3).coefficient_time(0.2) == 0.2
    with pytest.raises(TypeError, match="Score does not define predict"):
        Score().predict(x, t)


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
    for a, b in zip(whole, pieces, strict=True):  # products of other sizes may add up in another order
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert law.score(x[:0], 0.5).shape == (0, 2)


@pytest.mark.parametrize("shape", [(2,), (5, 3), (5, 1, 2)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\) for slanted, got") as caught:
        SLANTED.diffused(PSM).score(torch.zeros(shape), 0.5)
    assert "\n" not in str(caught.value)


def test_a_component_in_two_halves_is_the_same_law():
    # far out, where the log density is -1e7: weights that add up to 1 + 1e-9 would show
    part = ([0.1, 0.2], [0.5, 0.3], 20.0)
    one, two = (Mixture(boxes=n * [(1, *part)]).diffused(PSM) for n in (1, 2))
    x = points(20, 10.0)
    for f in ("score", "velocity", "denoised", "divergence"):
        close(getattr(two, f)(x, 1e-3), getattr(one, f)(x, 1e-3), rtol=1e-13, atol=1e-9 if f == "divergence" else 0)


def test_unknown_readings_are_named():
    with pytest.raises(ValueError, match="'noise'.*eps, score"):
        SLANTED.diffused(PSM).jacobian(points(2), 0.5, "noise")


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
