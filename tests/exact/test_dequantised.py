"""The optimal denoiser of dequantised images by quadrature, differentiation and Bayes' rule."""

import math

import numpy as np
import pytest
import torch

from psmlib.data.images import Images, load
from psmlib.data.toys import Mixture
from psmlib.exact import dequantised as module
from psmlib.exact.finite_set import DiffusedData
from psmlib.likelihood import log_likelihood
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
TIMES = [0.05, 0.3, 0.9]


def toy(shape=(1, 1, 2), levels=5, n=7, flip=False, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"train": n, "validation": 3, "test": 4}
    arrays = {split: rng.integers(levels, size=(m, *shape)).astype(np.uint8) for split, m in sizes.items()}
    return Images("toy", arrays, levels=levels, flip=flip)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def noisy(images, p, t, n=12, centred=False):
    g = torch.Generator().manual_seed(3)
    x0 = images.dequantise(images.train[torch.arange(n) % len(images.train)], g, centred=centred)
    return p.perturb(x0, t, torch.randn(x0.shape, generator=g, dtype=F64))


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, float(b.abs().max())))


def quadrature(images, nodes=200):
    """Points of all boxes and their weights: the law of x_0 as a big data set. Shapes: (N m, 2), (N m,)."""
    side, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(nodes))
    grid, w = torch.cartesian_prod(side, side), torch.outer(weight, weight).flatten() / 4
    y = (images.train.flatten(1).double()[:, None] + 0.5 + grid / 2) / images.levels
    return y.flatten(0, 1), (w / len(images.train)).repeat(len(images.train))


@pytest.mark.parametrize("t", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("p", [PSM, OTFlow()], ids=["VP", "OTFlow"])
def test_density_and_posterior_by_quadrature(p, t):
    images = toy()
    score, (y, w) = images.draws().diffused(p), quadrature(images)
    x = noisy(images, p, t, 6)
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    logits = -0.5 * torch.cdist(x.flatten(1), alpha * y).square() / sigma**2 + w.log()
    found = score.posterior(x, t)
    close(score.log_prob(x, t), logits.logsumexp(1) - math.log(2 * math.pi * sigma**2), 1e-8)
    close(found.log_density, score.log_prob(x, t), 1e-12)
    weight = logits.softmax(1)
    mean = weight @ y
    close(score.denoised(x, t).flatten(1), mean, 1e-8)
    close(score.eps(x, t).flatten(1), (x.flatten(1) - alpha * mean) / sigma, 1e-7)
    spread = (weight * (y - mean[:, None]).square().sum(-1)).sum(1)
    close(found.variance, spread, 1e-7)
    own = weight.reshape(6, len(images.train), -1).sum(2)
    close(score.top_weights(x, t, 7)[0], own.sort(1, descending=True).values, 1e-7)
    close(own.gather(1, score.top_weights(x, t, 3)[1]), score.top_weights(x, t, 3)[0], 1e-7)


@each
@pytest.mark.parametrize("u", TIMES)
def test_it_is_a_mixture_of_boxes(p, u):
    images, t = toy(), u * p.T
    half = [1 / 10, 1 / 10]
    boxes = [(1, ((row + 0.5) / 5).tolist(), half, 0.0) for row in images.train.flatten(1).double()]
    mixture, score = Mixture(boxes=boxes).diffused(p), images.draws(flat=True).diffused(p)
    x, along = noisy(images, p, t).flatten(1), normal(12, 2, seed=5)
    for name in ("log_prob", "eps", "score", "denoised", "velocity", "divergence"):
        close(getattr(score, name)(x, t), getattr(mixture, name)(x, t))
    for got, want in zip(score.velocity_and_divergence(x, t), mixture.velocity_and_divergence(x, t), strict=True):
        close(got, want)
    for got, want in zip(score.jacobian(x, t), mixture.jacobian(x, t), strict=True):
        close(got, want)
    for got, want in zip(score.velocity_jvp(x, t, along), mixture.velocity_jvp(x, t, along), strict=True):
        close(got, want, 1e-8)


@each
def test_derivatives_of_images_with_a_time_for_each(p):
    images = toy((2, 2, 2))
    score, t = images.draws(centred=True).diffused(p), torch.linspace(0.05, 0.9, 12, dtype=F64) * p.T
    x = noisy(images, p, t, centred=True).requires_grad_()
    (want,) = torch.autograd.grad(score.log_prob(x, t).sum(), x)
    x = x.detach()
    close(score.score(x, t), want)
    along, h = normal(*x.shape, seed=4), 1e-3 * score.process.sigma(t).reshape(-1, 1, 1, 1)
    value, slope = score.predict_jvp(x, t, along)
    close(value, score.eps(x, t))
    s = [score.eps(x + k * h * along, t) for k in (-2, -1, 1, 2)]
    close(slope, (s[0] - 8 * s[1] + 8 * s[2] - s[3]) / (12 * h), 1e-6, 1e-6)
    trace = 0
    for j in range(8):
        e = torch.zeros(8, dtype=F64)
        e[j] = 1
        trace = trace + score.predict_jvp(x, t, e.reshape(2, 2, 2).expand_as(x))[1].flatten(1)[:, j]
    close(score.divergence(x, t), -trace / p.sigma(t))
    for i in (0, 7):  # each point stands alone
        close(score.velocity(x[i : i + 1], float(t[i])), score.velocity(x, t)[i : i + 1])
        close(score.velocity_and_divergence(x[i : i + 1], t[i])[1], score.velocity_and_divergence(x, t)[1][i : i + 1])


def test_far_above_the_cells_it_is_the_data_of_their_middles():
    """The law of the middles errs by the variance of the cell, (h / sigma)^2 / 3 of the noise's."""
    errors = []
    for levels in (16, 32, 64):
        images = toy((1, 2, 2), levels=levels, n=30, seed=1)
        images.train = images.train // 2 * 2  # so that images differ by cells, not by less
        exact = images.draws().diffused(PSM)
        points = DiffusedData(images.draws().middles(), PSM)
        x = noisy(images, PSM, 0.5)
        errors.append(float((exact.eps(x, 0.5) - points.eps(x, 0.5)).abs().max()))
    assert errors[0] < 1e-3 and errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 2.5
    # and below the cells it is not
    x = noisy(images, PSM, 1e-3)
    assert float((exact.eps(x, 1e-3) - points.eps(x, 1e-3)).abs().max()) > 2


def test_all_is_finite_as_the_noise_goes_and_far_away():
    images = toy((1, 1, 3), levels=3)
    score, inside = images.draws().diffused(EDM()), (images.train.double() + 0.5) / 3
    copies = (images.train.flatten(1)[:, None] == images.train.flatten(1)).all(-1).sum(1)
    for t in (1e-2, 1e-5, 1e-8):
        assert bool((score.eps(inside, t).abs() < 1e-9).all())
        close(score.log_prob(inside, t), (copies / 7 * 27).double().log(), 1e-6)
    for x in (inside + 50, inside - 1e4):
        for value in (*score.posterior(x, 1e-4, normal(7, 1, 1, 3)), *score.velocity_and_divergence(x, 1e-4)):
            assert bool(value.isfinite().all())
        # seen from far away the nearest edges are all there is, and x_0 falls off from them exponentially
        edges = (images.train.flatten(1).double() + (x.mean() > 0)) / 3
        gaps = (x.flatten(1)[:, None] - edges).square().sum(-1)
        nearest = edges[gaps.argmin(1)].reshape(x.shape)
        close(score.denoised(x, 1e-4), nearest + 1e-8 / (x - nearest), 1e-10)
        close(score.eps(x, 1e-4) * 1e-4, x - score.denoised(x, 1e-4), 1e-10)


def test_scales_centring_mirrors_and_shapes():
    images = toy((1, 2, 3), flip=True)
    g = torch.Generator().manual_seed(0)
    x = normal(5, 1, 2, 3)
    plain = images.draws().diffused(EDM())
    close(plain.log_prob(x.flip(-1), 0.1), plain.log_prob(x, 0.1))
    close(plain.eps(x.flip(-1), 0.1).flip(-1), plain.eps(x, 0.1))
    assert len(images.draws().middles()) == 14 and len(images.draws("test").middles()) == 4
    centred = images.draws(centred=True).diffused(EDM())
    close(centred.eps(x - images.centre, 0.1), plain.eps(x, 0.1))
    wide = images.draws(scale="symmetric").diffused(EDM())
    close(wide.eps(2 * x - 1, 0.2), plain.eps(x, 0.1))
    close(wide.log_prob(2 * x - 1, 0.2), plain.log_prob(x, 0.1) - 6 * math.log(2))
    flat = images.draws(flat=True).diffused(EDM())
    close(flat.eps(x.flatten(1), 0.1), plain.eps(x, 0.1).flatten(1))
    single = images.draws(dtype=torch.float32).diffused(EDM())
    assert single.tensor_options["dtype"] == torch.float32 and plain.tensor_options["dtype"] == F64
    assert single.eps(x.float(), 0.1).dtype == torch.float32
    close(single.eps(x.float(), 0.1).double(), plain.eps(x, 0.1), 1e-4, 1e-4)
    draw = images.draws(centred=True).sample(4, g)  # what training sees lies in the boxes
    assert bool((centred.log_prob(draw, 1e-6) > 6 * math.log(5) - 6 * math.log(2) - math.log(14) - 1e-6).all())


def test_memory_is_bounded_and_pieces_do_not_show(monkeypatch):
    images = toy((1, 2, 3), n=40)
    score, x, u = images.draws().diffused(PSM), normal(25, 1, 2, 3), normal(25, 1, 2, 3, seed=2)
    t = torch.linspace(0.1, 0.9, 25, dtype=F64)
    whole = [*score.posterior(x, t, u), *score.top_weights(x, t, 3)]
    monkeypatch.setattr(module, "_NUMBERS", 64)
    for a, b in zip(whole, [*score.posterior(x, t, u), *score.top_weights(x, t, 3)], strict=True):
        close(a, b, 1e-12)
    assert score.eps(x[:0], 0.3).shape == (0, 1, 2, 3) and score.log_prob(x[:0], 0.3).shape == (0,)


def test_the_flow_carries_the_density():
    images = toy()
    score, t0 = images.draws().diffused(PSM), 0.1
    x = noisy(images, PSM, t0, 6)
    found = log_likelihood(score, PSM, x, t0=t0, steps=80, grid="warped", prior=lambda y: score.log_prob(y, 1.0))
    close(found.log_prob, score.log_prob(x, t0), 0, 1e-6)


# losses


def test_the_optimum_is_a_projection():
    """E[(eps - eps*) eps*] = 0, and no other denoiser comes below it, at times with sigma above and below a cell."""
    images = load("digits")
    best = images.draws().diffused(PSM)
    g = torch.Generator().manual_seed(0)
    for t in (0.003, 0.02, 0.2):
        x0 = images.draws().sample(300, g)
        eps = torch.randn(x0.shape, generator=g, dtype=F64)
        found = best.eps(PSM.perturb(x0, t, eps), t)
        each = ((eps - found) * found).flatten(1).mean(1)
        assert abs(float(each.mean())) < 4 * float(each.std()) / 300**0.5
        for factor in (0.9, 1.1):
            worse = (eps - factor * found).square().flatten(1).mean(1) - (eps - found).square().flatten(1).mean(1)
            assert float(worse.mean()) > 0


def test_bad_points():
    score = toy().draws().diffused(PSM)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 1, 1, 2\), got \(3, 2\)"):
        score.eps(normal(3, 2), 0.5)
    with pytest.raises(ValueError, match="sigma must be positive, got 0: give a later time"):
        score.log_prob(normal(3, 1, 1, 2), 0.0)
