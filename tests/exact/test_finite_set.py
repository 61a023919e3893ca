"""A diffused data set against its density written out, derivatives of that, and integration along the flow."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.datasets import load_digits

from psmlib.data.toys import Mixture
from psmlib.exact.finite_set import DiffusedData
from psmlib.likelihood import log_likelihood
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
TIMES = [0.05, 0.3, 0.9]


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


DATA = normal(12, 3, seed=9)


def points(p, t, n=20, seed=1):
    """Draws of x_t, so that weights are neither all nor nothing."""
    g = torch.Generator().manual_seed(seed)
    return p.perturb(DATA[torch.randint(12, (n,), generator=g)], t, torch.randn(n, 3, generator=g, dtype=F64))


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, float(b.abs().max())))


def log_density(x, p, t, data=DATA):
    """The mixture of N normal densities as it stands in the books; of shape (n,), differentiable in x and t."""
    alpha, sigma = p.alpha(t).reshape(-1, 1, 1), p.sigma(t).reshape(-1, 1, 1)
    each = torch.distributions.Normal(alpha * data, sigma).log_prob(x[:, None]).sum(-1)
    return torch.logsumexp(each, 1) - math.log(len(data))


def as_tensor(t):
    return torch.as_tensor(t, dtype=F64)


def gradient(x, p, t):
    return torch.func.grad(lambda y: log_density(y, p, as_tensor(t)).sum())(x)


def jacobian(f, x):
    """Of one row at a time. Shape: (n, d, d)."""
    return torch.stack([torch.func.jacrev(lambda y: f(y[None])[0])(row) for row in x])


def trace(jac):
    return jac.diagonal(dim1=1, dim2=2).sum(1)


# the law


@each
@pytest.mark.parametrize("u", TIMES)
def test_log_density_by_scipy(p, u):
    t = u * p.T
    x = points(p, t)
    logs = norm.logpdf(x.numpy()[:, None], float(p.alpha(t)) * DATA.numpy(), float(p.sigma(t))).sum(-1)
    want = logsumexp(logs, axis=1) - np.log(12)
    np.testing.assert_allclose(DiffusedData(DATA, p).log_prob(x, t).numpy(), want, rtol=1e-11, atol=1e-11)


@each
@pytest.mark.parametrize("u", TIMES)
def test_derivatives_of_the_log_density(p, u):
    t = u * p.T
    x, score = points(p, t), DiffusedData(DATA, p)
    want, hessian = gradient(x, p, t), jacobian(lambda y: gradient(y, p, t), x)
    close(score.score(x, t), want)
    close(score.eps(x, t), -float(p.sigma(t)) * want)
    close(score.divergence(x, t), trace(hessian), 1e-8)
    for got, expected in zip(score.jacobian(x, t), (want, hessian), strict=True):
        close(got, expected, 1e-8)
    along = normal(20, 3, seed=4)
    value, slope = score.predict_jvp(x, t, along)
    close(value, score.eps(x, t))
    close(slope, -float(p.sigma(t)) * (hessian @ along[..., None])[..., 0], 1e-8)
    close(torch.func.jvp(lambda y: score.eps(y, t), (x,), (along,))[1], slope)  # the kernel's own derivatives
    (back,) = torch.func.vjp(lambda y: score.eps(y, t), x)[1](along)
    close(back, slope)  # the Jacobian is symmetric


@each
@pytest.mark.parametrize("u", TIMES)
def test_the_flow(p, u):
    t = u * p.T
    x, score = points(p, t), DiffusedData(DATA, p)
    f, g2 = float(p.drift(t)), float(p.diffusion2(t))
    want = f * x - 0.5 * g2 * gradient(x, p, t)
    jac = jacobian(lambda y: f * y - 0.5 * g2 * gradient(y, p, t), x)
    velocity, divergence = score.velocity_and_divergence(x, t)
    close(velocity, want, 1e-8)
    close(divergence, trace(jac), 1e-8)
    close(score.velocity(x, t), want, 1e-8)
    for got, expected in zip(score.velocity_and_score(x, t), (want, gradient(x, p, t)), strict=True):
        close(got, expected, 1e-8)
    along = normal(20, 3, seed=4)
    close(score.velocity_jvp(x, t, along)[1], (jac @ along[..., None])[..., 0], 1e-8)


def test_the_flow_where_no_signal_is_left():
    # at the end of flow matching alpha is 0: the velocity is the noise less the mean of the data
    x, score = normal(5, 3), DiffusedData(DATA, OTFlow())
    velocity, divergence = score.velocity_and_divergence(x, 1.0)
    close(velocity, x - DATA.mean(0))
    close(divergence, torch.full((5,), 3.0, dtype=F64))
    close(score.velocity(x, 1.0), velocity)
    close(score.score(x, 1.0), -x)
    close(score.velocity_and_divergence(x, 1 - 1e-7)[1], divergence, atol=1e-5)
    assert score.velocity_and_divergence(x[:0], 1.0)[0].shape == score.eps(x[:0], 1.0).shape == (0, 3)


@each
@pytest.mark.parametrize("u", TIMES)
def test_the_posterior_by_bayes(p, u):
    t = u * p.T
    x, score = points(p, t), DiffusedData(DATA, p)
    weight = torch.softmax(-torch.cdist(x, p.alpha(t) * DATA).square() / (2 * p.sigma(t) ** 2), 1)
    mean = weight @ DATA
    close(score.denoised(x, t), mean)
    spread = (weight * (DATA - mean[:, None]).square().sum(-1)).sum(1)
    close(score.posterior(x, t).variance, spread, 1e-8)
    top, index = score.top_weights(x, t, 3)
    values, order = weight.sort(1, descending=True)
    close(top, values[:, :3], 1e-8)
    sure = values[:, :3] - values[:, 1:4] > 1e-6
    assert bool(((index == order[:, :3]) | ~sure).all())


@pytest.mark.parametrize("t", [0.02, 0.4, 2.0])
def test_a_mixture_of_narrow_gaussians_is_a_data_set_a_little_later(t):
    # variances add: components of variance v under EDM's path are the bare points at sqrt(t^2 + v)
    v, p = 0.03, EDM(3.0)
    narrow = Mixture(gaussians=[(1, row.tolist(), v) for row in DATA]).diffused(p)
    score, later, x = DiffusedData(DATA, p), math.sqrt(t**2 + v), points(p, t)
    close(score.log_prob(x, later), narrow.log_prob(x, t))
    close(score.score(x, later), narrow.score(x, t))
    close(score.divergence(x, later), narrow.divergence(x, t), 1e-8)
    close(score.trace_gradient(x, later), narrow.trace_gradient(x, t), 1e-8)


# derivatives in time, and of the trace


@each
@pytest.mark.parametrize("u", TIMES)
def test_derivatives_of_the_score(p, u):
    t = u * p.T
    h = 2e-4 * min(t, float(p.sigma(t) / p.sigma_rate(t)))
    x, score = points(p, t, n=6), DiffusedData(DATA, p)
    s = [score.score(x, t + k * h) for k in (-2, -1, 1, 2)]
    close(score.time_derivative(x, t), (s[0] - 8 * s[1] + 8 * s[2] - s[3]) / (12 * h), 1e-6, 1e-6)
    step = 1e-3 * float(p.sigma(t))
    slopes = []
    for j in range(3):
        e = step * torch.eye(3, dtype=F64)[j]
        d = [score.divergence(x + k * e, t) for k in (-2, -1, 1, 2)]
        slopes.append((d[0] - 8 * d[1] + 8 * d[2] - d[3]) / (12 * step))
    scale = float(p.sigma(t)) ** 3
    close(score.trace_gradient(x, t) * scale, torch.stack(slopes, 1) * scale, 1e-6)


# images, dtypes, times


def test_images_are_points():
    p, t = VP(0.1, 20.0), torch.tensor([0.05, 0.2, 0.6, 1.0], dtype=F64)
    digits = torch.tensor(load_digits().data[:300], dtype=F64)[:, :16] / 16
    flat, image = DiffusedData(digits, p), DiffusedData(digits.reshape(-1, 1, 4, 4), p)
    x, u = p.perturb(digits[:4], t, normal(4, 16)), normal(4, 16, seed=2)
    y, w = x.reshape(-1, 1, 4, 4), u.reshape(-1, 1, 4, 4)
    for name in ("eps", "score", "denoised", "velocity", "log_prob", "divergence", "time_derivative"):
        one, two = getattr(flat, name)(x, t), getattr(image, name)(y, t)
        assert two.shape == (y.shape if one.dim() == 2 else (4,))
        close(two.reshape(one.shape), one)
    for one, two in zip(flat.predict_jvp(x, t, u), image.predict_jvp(y, t, w), strict=True):
        close(two.flatten(1), one)
    for one, two in zip(flat.velocity_and_divergence(x, t), image.velocity_and_divergence(y, t), strict=True):
        close(two.reshape(one.shape), one)


@each
def test_a_time_for_each_point(p):
    score, t = DiffusedData(DATA, p), torch.linspace(0.02, 1, 20, dtype=F64) * p.T
    x, u = p.perturb(DATA[torch.arange(20) % 12], t, normal(20, 3)), normal(20, 3, seed=2)

    def everything(rows, t):
        parts = [
            getattr(score, name)(x[rows], t) for name in ("score", "denoised", "velocity", "divergence", "log_prob")
        ]
        return *parts, *score.predict_jvp(x[rows], t, u[rows]), *score.velocity_and_divergence(x[rows], t)

    together = everything(slice(0, 20), t)
    apart = [everything(slice(i, i + 1), float(t[i])) for i in range(20)]
    for whole, pieces in zip(together, zip(*apart, strict=True), strict=True):
        close(whole, torch.cat(pieces), 1e-8)


@each
def test_single_precision(p):
    single, double = DiffusedData(DATA.float(), p), DiffusedData(DATA.float().double(), p)
    assert (
        single.tensor_options == {"dtype": torch.float32, "device": torch.device("cpu")}
        and double.tensor_options["dtype"] == F64
    )
    for u in TIMES:
        t = u * p.T
        x = points(p, t).float()
        for name in ("eps", "denoised", "velocity", "score", "log_prob", "divergence"):
            got, want = getattr(single, name)(x, t), getattr(double, name)(x.double(), t)
            assert got.dtype == torch.float32
            close(got.double(), want, 1e-4, 2e-5)
        assert single.velocity_and_divergence(x, t)[1].dtype == torch.float32
    t32 = torch.full((20,), 0.02 * p.T)  # times in single precision are as good as they are
    x = p.perturb(DATA[torch.arange(20) % 12], t32.double(), normal(20, 3))
    for f in (double.eps, double.velocity, double.divergence):
        assert torch.equal(f(x, t32), f(x, t32.double()))


def test_what_a_noisy_image_remembers():
    p, digits = VP(0.1, 20.0), torch.tensor(load_digits().data, dtype=torch.float32) / 16
    score, rows = DiffusedData(digits, p), torch.arange(0, 1797, 36)
    x = p.perturb(digits[rows], 0.02, normal(len(rows), 64).float())
    weight, index = score.top_weights(x, 0.02, 3)
    assert torch.equal(index[:, 0], rows) and bool((weight[:, 0] > 0.999).all())
    close(score.denoised(x, 0.02), digits[rows], atol=1e-3)
    late = p.perturb(digits[rows], 0.9, normal(len(rows), 64).float())
    weight, _ = score.top_weights(late, 0.9, 50)
    assert bool((weight.sum(1) <= 1 + 1e-5).all()) and bool((weight.diff(dim=1) <= 0).all())
    assert float(weight[:, 0].max()) < 0.02  # nothing in particular


@each
def test_all_is_finite_as_the_noise_goes(p):
    score = DiffusedData(DATA, p)
    for t in (1e-3 * p.T, 1e-8 * p.T) if not isinstance(p, RVE) else (0.02,):
        x = p.perturb(DATA, t, normal(12, 3))
        close(score.denoised(x, t), DATA)
        sigma = float(p.sigma(t))
        close(score.divergence(x, t), torch.full((12,), -3 / sigma**2, dtype=F64))
        close(score.log_prob(x, t), -0.5 * score.eps(x, t).square().sum(1) - 3 * math.log(sigma)
              - 1.5 * math.log(2 * math.pi) - math.log(12))  # fmt: skip
        assert bool(score.velocity_and_divergence(x, t)[1].isfinite().all())


# likelihoods


@pytest.mark.parametrize("p", [PSM, OTFlow(), EDM(3.0)], ids=["VP", "OTFlow", "EDM"])
def test_the_flow_carries_the_density(p):
    data = normal(6, 2, seed=5)
    score, t0 = DiffusedData(data, p), 0.1 * p.T
    x = p.perturb(data, t0, normal(6, 2))
    # only flow matching ends in its prior exactly
    prior = None if isinstance(p, OTFlow) else lambda y: score.log_prob(y, p.T)
    found = log_likelihood(score, p, x, t0=t0, steps=150, grid="warped", prior=prior)
    close(found.log_prob, score.log_prob(x, t0), rtol=0, atol=1e-6)


@given(n=st.integers(1, 30), d=st.integers(1, 12), t=st.floats(0.01, 1), seed=st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_any_size(n, d, t, seed):
    data = normal(n, d, seed=seed)
    x, score = PSM.perturb(data[:5], t, normal(min(n, 5), d, seed=seed + 1)), DiffusedData(data, PSM)
    close(score.log_prob(x, t), log_density(x, PSM, as_tensor(t), data), 1e-9)
    want = torch.func.grad(lambda y: log_density(y, PSM, as_tensor(t), data).sum())(x)
    close(score.score(x, t), want, 1e-8)
    low, high = data.amin(0) - 1e-9, data.amax(0) + 1e-9
    mean = score.denoised(x, t)
    assert bool(((mean >= low) & (mean <= high)).all())
    weight, _ = score.top_weights(x, t, n)
    close(weight.sum(1), torch.ones(len(x), dtype=F64))


@pytest.mark.parametrize(
    "data",
    [torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.uint8), torch.ones(0, 2), torch.ones(3, 0),
     torch.tensor(1.0), torch.tensor([[1.0, math.nan]]), torch.tensor([[math.inf, 1.0]])],
)  # fmt: skip
def test_bad_data(data):
    with pytest.raises(ValueError, match="data must be finite floating-point numbers, one point or more") as caught:
        DiffusedData(data, PSM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["eps", "score", "denoised", "velocity", "log_prob", "divergence"])
def test_bad_points_and_times(name):
    read = getattr(DiffusedData(DATA, PSM), name)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\), got \(2, 4\)"):
        read(normal(2, 4), 0.5)
    with pytest.raises(ValueError, match="x has dtype torch.float32 but data have torch.float64"):
        read(normal(2, 3).float(), 0.5)
    with pytest.raises(ValueError, match="sigma must be positive"):
        read(DATA, 0.0)
