"""The diffused Gaussian as a Score: differentiation, mixtures, flows."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from psmlib.data.images import load
from psmlib.data.toys import Mixture
from psmlib.evaluation.reference_densities import Gaussian
from psmlib.exact.gaussian import GaussianScore
from psmlib.likelihood import log_likelihood
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
TIMES = [0.05, 0.3, 0.9]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=rtol, atol=atol)


def law(p, d=6, shape=(1, 2, 3), seed=1):
    root = normal(d, d, seed=seed)
    return GaussianScore(normal(*shape, seed=seed + 1), root @ root.T / d + 0.01 * torch.eye(d, dtype=F64), p)


@each
@pytest.mark.parametrize("u", TIMES)
def test_score_is_the_gradient_of_the_log_density(p, u):
    score, t = law(p), u * p.T
    x = normal(8, 1, 2, 3).requires_grad_()
    (want,) = torch.autograd.grad(score.log_prob(x, t).sum(), x)
    rows = torch.func.vmap(torch.func.hessian(lambda y: score.log_prob(y[None], t)[0]))(x.detach()).reshape(8, 6, 6)
    x = x.detach()
    m = multivariate_normal(
        float(p.alpha(t)) * score.mean.flatten().numpy(),
        float(p.alpha(t)) ** 2 * (score.vectors * score.values @ score.vectors.T).numpy()
        + float(p.sigma(t)) ** 2 * np.eye(6),
    )
    close(score.log_prob(x, t), m.logpdf(x.flatten(1).numpy()))
    close(score.score(x, t), want)
    close(score.eps(x, t), -float(p.sigma(t)) * want)
    close(score.divergence(x, t), rows.diagonal(dim1=1, dim2=2).sum(1), 1e-9, 1e-9)
    for kind in ("denoised", "velocity"):  # by the general conversion
        close(getattr(score, kind)(x, t), p.convert(x, t, want, "score", kind), 1e-8, 1e-8)
    along = normal(8, 1, 2, 3, seed=4)
    for name, jvp in (("eps", score.predict_jvp), ("velocity", score.velocity_jvp)):
        value, slope = torch.func.jvp(lambda y, name=name: getattr(score, name)(y, t), (x,), (along,))
        for got, expected in zip(jvp(x, t, along), (value, slope), strict=True):
            close(got, expected)
    jac = torch.func.vmap(torch.func.jacrev(lambda y: score.velocity(y[None], t)[0]))(x).reshape(8, 6, 6)
    velocity, change = score.velocity_and_divergence(x, t)
    close(change, jac.diagonal(dim1=1, dim2=2).sum(1))
    close(velocity, score.velocity(x, t))
    close(score.velocity_and_score(x, t)[1], want)


@each
def test_it_is_the_mixture_of_one_gaussian(p):
    cov = [[0.2, 0.05], [0.05, 0.1]]
    mixture = Mixture(gaussians=[(1, [0.5, -0.3], cov)]).diffused(p)
    score, x, t = (
        GaussianScore(torch.tensor([0.5, -0.3], dtype=F64), torch.tensor(cov, dtype=F64), p),
        normal(9, 2),
        0.4,
    )
    close(score.log_prob(x, t), mixture.log_prob(x, t))
    close(score.velocity(x, t), mixture.velocity(x, t), 1e-9, 1e-9)
    close(score.time_derivative(x, t), mixture.time_derivative(x, t), 1e-8, 1e-8)
    times = torch.linspace(0.05, 1, 9, dtype=F64) * p.T
    close(score.velocity(x, times), torch.cat([score.velocity(x[i : i + 1], float(times[i])) for i in range(9)]))
    close(score.velocity_and_divergence(x, times)[1], mixture.velocity_and_divergence(x, times)[1], 1e-8, 1e-8)


@pytest.mark.parametrize("p", [PSM, OTFlow()], ids=["VP", "OTFlow"])
def test_the_flow_carries_the_density(p):
    images = load("digits")
    score, t0 = Gaussian(images).diffused(p, -images.centre), 0.01
    x = images.dequantise(images.test[:20], torch.Generator().manual_seed(0), centred=True)
    prior = None if isinstance(p, OTFlow) else lambda y: score.log_prob(y, p.T)  # only flow matching ends in its prior
    found = log_likelihood(score, p, x, t0=t0, steps=150, grid="warped", prior=prior)
    close(found.log_prob, score.log_prob(x, t0), 0, 1e-5)
    close(score.log_prob(x, 1e-7), Gaussian(images).log_prob(x + images.centre), 1e-6, 0)  # to data, less the centring


@each
def test_single_precision_of_the_score(p):
    double = law(p)
    single = GaussianScore(double.mean.float(), (double.vectors * double.values @ double.vectors.T).float(), p)
    assert single.tensor_options["dtype"] == torch.float32 and double.tensor_options["dtype"] == F64
    x = normal(8, 1, 2, 3)
    for t in (0.02 * p.T, 0.7 * p.T):
        for name in ("eps", "score", "denoised", "velocity", "divergence", "log_prob"):
            got, want = getattr(single, name)(x.float(), t), getattr(double, name)(x, t)
            assert got.dtype == torch.float32
            close(got.double(), want, 1e-3, 1e-4 * float(want.abs().max()))
            close(getattr(double, name)(x.float(), t).double(), want, 1e-4, 1e-4 * float(want.abs().max()))


def test_bad_covariances_and_points():
    mean = torch.zeros(2, dtype=F64)
    for bad in ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]], [[1.0]], [[1.0, 0.0], [0.0, math.nan]]):
        with pytest.raises(ValueError, match="covariance must be symmetric, positive definite and of shape") as caught:
            GaussianScore(mean, torch.tensor(bad, dtype=F64), PSM)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\), got \(3, 4\)"):
        GaussianScore(mean, torch.eye(2, dtype=F64), PSM).eps(torch.zeros(3, 4), 0.1)
