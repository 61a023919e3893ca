"""The optimal denoiser against plain torch in float64, at every noise level, and at the limits of its formula."""

import math

import pytest
import torch
from torch import Tensor

from psmlib.kernels.optimal_denoiser import (
    optimal_denoiser,
    optimal_denoiser_ref,
    posterior,
    score_divergence,
    top_weights,
)
from psmlib.kernels.squared_distances import SIZES

F32, F64 = torch.float32, torch.float64
ATOL = {F32: 1e-5, F64: 2e-14}
"""A hundred roundings of numbers of order one: logits of a few hundred nats are known to no more."""
SHAPES = [(B, N) for B in (1, 17, 1023) for N in (1, 17, 1023) if B * N < 1e6]


def rounded(value) -> Tensor:
    """A coefficient that is the same in float32 and float64."""
    return torch.as_tensor(value, dtype=F32).double()


def make(B: int, N: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, data, and a time of its own for every point; float64 but exact in float32."""
    g = torch.Generator().manual_seed(seed)
    data = torch.randn(N, d, generator=g)
    alpha = torch.rand(B, generator=g)
    sigma = 10 ** (4 * torch.rand(B, generator=g) - 3)
    x = alpha[:, None] * data[torch.randint(N, (B,), generator=g)] + sigma[:, None] * torch.randn(B, d, generator=g)
    return x.double(), data.double(), alpha.double(), sigma.double()


def cast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [x.to(dtype) for x in tensors]


def in_pieces(f, x: Tensor, data: Tensor, alpha: Tensor, sigma: Tensor, size: int = 64) -> Tensor:
    """A reference that needs (B, N, d) numbers, a few points at a time."""
    alpha, sigma = alpha.expand(len(x)), sigma.expand(len(x))
    return torch.cat(
        [f(x[i : i + size], data, alpha[i : i + size], sigma[i : i + size]) for i in range(0, len(x), size)]
    )


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def check(found: Tensor, plain: Tensor, exact: Tensor, doubt: float = 0.0) -> None:
    """The three-way tolerance: the kernel may err twice as much as plain torch in its own dtype.

    ``doubt`` is the error of the reference itself, for comparisons in its own dtype.
    """
    assert found.shape == exact.shape and found.dtype == plain.dtype
    atol = ATOL[plain.dtype] * max(1.0, float(exact.abs().max())) + (doubt if plain.dtype == F64 else 0)
    assert error(found, exact) <= 2 * error(plain, exact) + atol


def law(x: Tensor, data: Tensor, alpha: float, sigma: float) -> Tensor:
    """Log density of x, (B,), and nothing clever."""
    y = data.reshape(len(data), -1)
    apart = (x.reshape(len(x), 1, -1) - alpha * y).square().sum(2)
    norm = math.log(len(y)) + y.shape[1] / 2 * math.log(2 * math.pi * sigma**2)
    return torch.logsumexp(-apart / (2 * sigma**2), 1) - norm


# Accuracy


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("d", [2, 3, 64, 300])
@pytest.mark.parametrize("B, N", SHAPES)
def test_errs_no_more_than_plain_torch(B, N, d, dtype):
    x, data, alpha, sigma = make(B, N, d)
    low = cast(dtype, x, data, alpha, sigma)
    exact, plain = (in_pieces(optimal_denoiser_ref, *given) for given in ((x, data, alpha, sigma), low))
    check(optimal_denoiser(*low), plain, exact)


def two_of_each(data: Tensor, apart: float) -> Tensor:
    """Every point twice, ``apart`` from itself: what only direct differences can tell."""
    g = torch.Generator().manual_seed(7)
    return torch.cat([data, data + apart * torch.randn(*data.shape, generator=g)])


KINDS = {
    "scattered": lambda data: data,
    "close pairs": lambda data: two_of_each(data, 1e-4),
    "twice": lambda data: two_of_each(data, 0.0),
    "far from 0": lambda data: data + 100,
    "an outlier": lambda data: torch.cat([data, torch.full_like(data[:1], 1e3)]),
}


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_at_every_noise_level(kind, d, dtype, monkeypatch):
    monkeypatch.setitem(SIZES, "cpu", (16, 23))
    g = torch.Generator().manual_seed(1)
    data = KINDS[kind](torch.randn(150, d, generator=g)).double()
    for sigma in rounded([1e-20, 1e-8, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 10.0, 1e3]):
        x = data[:40].float() + sigma.float() * torch.randn(40, d, generator=g)  # alpha = 1: no rounding of alpha y
        x, one = x.double(), torch.tensor(1.0, dtype=F64)
        low = cast(dtype, x, data, one, sigma)
        found = posterior(*low)
        exact, plain = optimal_denoiser_ref(x, data, one, sigma), optimal_denoiser_ref(*low)
        doubt = float(16 * torch.finfo(F64).eps * data.abs().max() / sigma)
        check(found.eps, plain, exact, doubt)
        check(optimal_denoiser(*low), plain, exact, doubt)
        if sigma > 1e-10:  # the reference in float64 is exact
            check(found.log_density / d, law(*low) / d, law(x, data, 1.0, float(sigma)) / d)


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("d", [2, 64, 300])
def test_one_point_that_takes_all_is_the_mean_bit_for_bit(d, dtype):
    g = torch.Generator().manual_seed(2)
    data = (torch.randn(900, d, generator=g) + 5).to(dtype)
    pick = torch.randint(900, (50,), generator=g)
    for sigma in (1e-5, 1e-6, 1e-12, 1e-20, 1e-30):
        x = data[pick] + (1e-6 if sigma < 1e-6 else sigma) * torch.randn(50, d, generator=g).to(dtype)
        u = torch.randn(50, d, generator=g).to(dtype)
        found = posterior(x, data, 1.0, sigma, tangent=u)
        assert torch.equal(found.mean, data[pick])
        assert torch.equal(found.eps, (x - data[pick]) / torch.tensor(sigma, dtype=dtype))
        assert torch.equal(found.jvp, u / torch.tensor(sigma, dtype=dtype))
        assert found.variance.count_nonzero() == 0
        peak = math.log(900) + d / 2 * math.log(2 * math.pi) + d * math.log(sigma)
        log_density = posterior(data[pick], data, 1.0, sigma).log_density
        torch.testing.assert_close(log_density, torch.full_like(log_density, -peak), rtol=1e-6, atol=1e-5)
        weights, indices = top_weights(x, data, 1.0, sigma, 2)
        assert torch.equal(indices[:, 0], pick) and weights[:, 0].eq(1).all() and weights[:, 1].eq(0).all()


@pytest.mark.parametrize("d", [2, 64])
def test_points_that_tie_share_the_weight(d):
    data = torch.zeros(2000, d)
    data[:, 0] = torch.arange(2000) / 2048
    data[[3, 700, 1999]] = torch.eye(d)[1] + 5  # equal points, in different blocks
    x = data[[3, 3]].clone()
    x[1, 0] += 0.25
    for sigma in (1e-2, 1e-8, 1e-20):
        found = posterior(x, data, 1.0, sigma)
        weights, indices = top_weights(x, data, 1.0, sigma, 4)
        torch.testing.assert_close(found.mean, data[[3, 3]])
        torch.testing.assert_close(weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]] * 2))
        assert {tuple(sorted(row)) for row in indices[:, :3].tolist()} == {(3, 700, 1999)}
    middle = torch.zeros(1, d)
    middle[0, 0] = 10.5 / 2048  # between two points: half and half, however little the noise
    found = posterior(middle, data, 1.0, 1e-20)
    torch.testing.assert_close(found.mean, middle, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.variance, torch.tensor([0.25 / 2048**2]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("d", [2, 64])
def test_without_signal_all_weigh_the_same(d):
    x, data, _, _ = make(17, 1023, d)
    for sigma in (1e-3, 1.0, 1e3):
        found = posterior(x, data, 0.0, sigma, tangent=x)
        torch.testing.assert_close(found.mean, data.mean(0).expand(17, d), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found.eps, x / sigma)
        torch.testing.assert_close(found.variance, data.var(0, correction=0).sum().expand(17), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.jvp, x / sigma)
    normal = -x.square().sum(1) / 2 - d / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(posterior(x, data, 0.0, 1.0).log_density, normal)


def test_variance_does_not_fade_with_the_signal():
    x, data, _, _ = make(17, 1023, 64)
    for alpha in (1e-2, 1e-4, 1e-8):
        found = posterior(x.float(), data.float(), alpha, 1.0).variance
        torch.testing.assert_close(found.double(), posterior(x, data, alpha, 1.0).variance, rtol=1e-5, atol=0)


# Derivatives


@pytest.mark.parametrize("d, sigma", [(2, 0.01), (2, 0.4), (2, 5.0), (12, 0.02), (12, 0.5), (12, 3.0), (12, 200.0)])
def test_all_that_posterior_gives_follows_from_the_log_density(d, sigma):
    g, alpha = torch.Generator().manual_seed(3), 0.8
    data = two_of_each(torch.randn(200, d, generator=g, dtype=F64), 0.02)
    x = alpha * data[:11] + sigma * torch.randn(11, d, generator=g, dtype=F64)
    u = torch.randn(11, d, generator=g, dtype=F64)
    found = posterior(x, data, alpha, sigma, tangent=u)
    x.requires_grad_()
    log_density = law(x, data, alpha, sigma)
    score = torch.autograd.grad(log_density.sum(), x, create_graph=True)[0]
    rows = [torch.autograd.grad(score[:, j].sum(), x, retain_graph=True)[0] for j in range(d)]
    hessian, x = torch.stack(rows, 1), x.detach()
    trace = hessian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(found.log_density, log_density.detach(), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(found.eps, -sigma * score.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.mean, (x + sigma**2 * score.detach()) / alpha, rtol=1e-9, atol=1e-10)
    assert error(sigma**2 * score_divergence(x, data, alpha, sigma), sigma**2 * trace) < 1e-9 * d
    variance = (trace * sigma**2 + d) * sigma**2 / alpha**2
    assert error((alpha / sigma) ** 2 * found.variance, (alpha / sigma) ** 2 * variance) < 1e-9 * d
    assert error(found.jvp * sigma, -(sigma**2) * (hessian @ u[..., None])[..., 0]) < 1e-8
    plain = torch.func.jvp(lambda z: optimal_denoiser_ref(z, data, alpha, sigma), (x,), (u,))[1]
    torch.testing.assert_close(found.jvp * sigma, plain * sigma, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_in_single_precision(kind, d):
    """Relative to one axis of the Jacobian, 1/sigma. The variance is known to the rounding of a mean as large as y."""
    g = torch.Generator().manual_seed(4)
    data = KINDS[kind](torch.randn(150, d, generator=g)).double()
    for sigma in rounded([1e-8, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3]):
        x = (data[:40].float() + sigma.float() * torch.randn(40, d, generator=g)).double()
        u = torch.randn(40, d, generator=g).double()
        one = torch.tensor(1.0, dtype=F64)
        x32, data32, u32, one32, sigma32 = cast(F32, x, data, u, one, sigma)
        found = posterior(x32, data32, one32, sigma32, tangent=u32)
        exact = posterior(x, data, one, sigma, tangent=u)
        plain, in_double = (
            torch.func.jvp(lambda z, y=y, a=a, s=s: optimal_denoiser_ref(z, y, a, s), (p,), (v,))[1] * s
            for p, y, a, s, v in ((x32, data32, one32, sigma32, u32), (x, data, one, sigma, u))
        )
        torch.testing.assert_close(exact.jvp * sigma, in_double, rtol=1e-7, atol=1e-7)
        check(found.jvp * sigma32, plain, in_double)
        rounding = float(torch.finfo(F32).eps * data.norm(dim=1).median() / sigma)
        assert error(found.variance / sigma32**2, exact.variance / sigma**2) <= d * (8 * rounding + 1e-5)


def test_the_kernel_may_be_differentiated_once_either_way():
    x, data, alpha, sigma = make(17, 100, 3)
    x, data, sigma = x.reshape(17, 1, 3), data.reshape(100, 1, 3), sigma.clamp_min(0.05)
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=F64)

    def ours(z):
        return optimal_denoiser(z, data, alpha, sigma)

    def plain(z):
        return optimal_denoiser_ref(z, data, alpha, sigma)

    torch.testing.assert_close(torch.func.jvp(ours, (x,), (u,)), torch.func.jvp(plain, (x,), (u,)))
    torch.testing.assert_close(torch.func.vjp(ours, x)[1](u), torch.func.vjp(plain, x)[1](u))
    leaf = x.clone().requires_grad_()
    back = torch.autograd.grad((ours(leaf) * u).sum(), leaf, create_graph=True)[0]
    torch.testing.assert_close(back, torch.func.vjp(plain, x)[1](u)[0])
    with pytest.raises(ValueError, match="first derivatives only: use optimal_denoiser_ref"):
        back.sum().backward()
    with pytest.raises(ValueError, match="must not require gradients: detach them"):
        optimal_denoiser(x, data.requires_grad_(), alpha, sigma)


# What is remembered


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("N, k", [(1, 1), (17, 17), (1023, 1), (1023, 5), (1023, 700)])
def test_top_weights_are_those_of_the_whole_softmax(N, k, d):
    x, data, alpha, sigma = make(60, N, d, seed=6)
    logits = -(x[:, None] - alpha[:, None, None] * data).square().sum(2) / (2 * sigma[:, None] ** 2)
    full = torch.softmax(logits, 1)
    weights, indices = top_weights(x, data, alpha, sigma, k)
    assert weights.shape == indices.shape == (60, k) and not indices.dtype.is_floating_point
    torch.testing.assert_close(weights, full.topk(k).values, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(weights, full.gather(1, indices), rtol=1e-9, atol=1e-14)
    assert (weights[:, 1:] <= weights[:, :-1]).all()
    assert all(len(set(row)) == k for row in indices.tolist())
    low = top_weights(*cast(F32, x, data, alpha, sigma), k)[0]
    assert error(low, weights) < 1e-3  # each point is as far as a float32 x allows
