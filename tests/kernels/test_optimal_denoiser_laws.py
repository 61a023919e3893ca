"""What must hold of the optimal denoiser whatever the data: its symmetries, its limits, and that it is optimal."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psmlib.kernels.optimal_denoiser import optimal_denoiser, posterior, score_divergence, top_weights

F64 = torch.float64
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def problems(draw) -> tuple[Tensor, Tensor, float, float, torch.Generator]:
    """Points near data of any size and place, at any noise."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    B, N, d = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 5, 9, 30]))
    alpha, sigma = draw(st.floats(0, 1)), 10 ** draw(st.floats(-3, 2))
    data = torch.randn(N, d, generator=g, dtype=F64) * draw(st.floats(0.01, 3)) + draw(st.floats(-3, 3))
    x = alpha * data[torch.randint(N, (B,), generator=g)] + sigma * torch.randn(B, d, generator=g, dtype=F64)
    return x, data, alpha, sigma, g


def close(a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * max(1.0, scale))


@SETTINGS
@given(problems())
def test_moving_data_and_points_together_changes_nothing(problem):
    x, data, alpha, sigma, g = problem
    c = torch.randn(data.shape[1], generator=g, dtype=F64)
    a, b = posterior(x, data, alpha, sigma), posterior(x + alpha * c, data + c, alpha, sigma)
    close(a.eps, b.eps, 1 / sigma)
    close(a.mean + c, b.mean, 1 / sigma)
    close(a.variance, b.variance, 1 / sigma)


@SETTINGS
@given(problems())
def test_the_order_of_the_data_does_not_matter(problem):
    x, data, alpha, sigma, g = problem
    order = torch.randperm(len(data), generator=g)
    a, b = (posterior(x, y, alpha, sigma, tangent=x) for y in (data, data[order]))
    for one, other in zip(a, b, strict=True):
        close(one, other, float(one.abs().max()) / sigma)
    weights, indices = top_weights(x, data, alpha, sigma, 1)
    again, moved = top_weights(x, data[order], alpha, sigma, 1)
    close(weights, again)
    sure = weights > 0.5 + 1e-6
    assert torch.equal(indices[sure], order[moved][sure])


@SETTINGS
@given(problems())
def test_it_turns_with_the_data(problem):
    x, data, alpha, sigma, g = problem
    turn = torch.linalg.qr(torch.randn(data.shape[1], data.shape[1], generator=g, dtype=F64))[0]
    a, b = posterior(x, data, alpha, sigma), posterior(x @ turn, data @ turn, alpha, sigma)
    close(a.eps @ turn, b.eps, 1 / sigma)
    close(a.log_density, b.log_density, 1 / sigma)
    close(a.variance, b.variance, 1 / sigma)


@SETTINGS
@given(problems(), st.floats(0.01, 100))
def test_it_has_no_scale_of_its_own(problem, c):
    x, data, alpha, sigma, _ = problem
    a, b, d = posterior(x, data, alpha, sigma), posterior(c * x, c * data, alpha, c * sigma), data.shape[1]
    close(a.eps, b.eps, 1 / sigma)
    close(a.variance, b.variance / c**2, 1 / sigma)
    close(a.log_density - d * math.log(c), b.log_density, 1 / sigma)
    close(a.eps, optimal_denoiser(x, alpha * data, 1.0, sigma), 1 / sigma)


@SETTINGS
@given(problems())
def test_repeating_the_data_changes_nothing_but_the_shares(problem):
    x, data, alpha, sigma, _ = problem
    a, b = (posterior(x, y, alpha, sigma, tangent=x) for y in (data, data.repeat(3, 1)))
    for one, other in zip(a, b, strict=True):
        close(one, other, float(one.abs().max()) / sigma)
    close(top_weights(x, data, alpha, sigma, 1)[0], 3 * top_weights(x, data.repeat(3, 1), alpha, sigma, 1)[0])


@SETTINGS
@given(problems())
def test_the_mean_lies_among_the_data_and_tweedie_joins_it_to_the_noise(problem):
    x, data, alpha, sigma, _ = problem
    found = posterior(x, data, alpha, sigma)
    assert (found.mean <= data.amax(0) + 1e-12).all() and (found.mean >= data.amin(0) - 1e-12).all()
    assert (found.variance >= 0).all() and (
        found.variance <= (data.amax(0) - data.amin(0)).square().sum() / 4 + 1e-9
    ).all()
    close(alpha * found.mean + sigma * found.eps, x, float(x.abs().max()))
    divergence = score_divergence(x, data, alpha, sigma)
    assert (divergence * sigma**2 >= -data.shape[1] * (1 + 1e-12)).all()


def test_one_data_point_leaves_nothing_to_guess():
    x, data = (
        torch.randn(6, 5, dtype=F64, generator=torch.Generator().manual_seed(0)),
        torch.full((1, 5), 2.0, dtype=F64),
    )
    found = posterior(x, data, 0.5, 0.1, tangent=x)
    normal = torch.distributions.Normal(0.5 * data, torch.tensor(0.1, dtype=F64))
    assert torch.equal(found.mean, data.expand(6, 5)) and found.variance.eq(0).all()
    torch.testing.assert_close(found.eps, (x - 1) / 0.1)
    torch.testing.assert_close(found.jvp, x / 0.1)
    torch.testing.assert_close(found.log_density, normal.log_prob(x).sum(1))
    torch.testing.assert_close(score_divergence(x, data, 0.5, 0.1), torch.full((6,), -5 / 0.01, dtype=F64))


# Proposition 1


@pytest.mark.parametrize("sigma", [0.3, 0.6, 2.0])
def test_nothing_else_denoises_better(sigma):
    """Proposition 1, on paired draws: the error of the best guess is uncorrelated with any function of x."""
    g, alpha, n = torch.Generator().manual_seed(0), 0.8, 40_000
    data = torch.randn(6, 2, generator=g, dtype=F64)
    noise = torch.randn(n, 2, generator=g, dtype=F64)
    x = alpha * data[torch.randint(6, (n,), generator=g)] + sigma * noise
    best = optimal_denoiser(x, data, alpha, sigma)
    loss = (best - noise).square().sum(1)
    others = {
        "more": 0.2 * best,
        "less": -0.2 * best,
        "shifted": torch.full_like(best, 0.2),
        "turned": 0.2 * best.flip(1),
        "waves": 0.2 * torch.sin(3 * x),
        "sharper": optimal_denoiser(x, data, alpha, 0.6 * sigma) * 0.6 - best,
        "nearest": (x - alpha * data[top_weights(x, data, alpha, sigma, 1)[1][:, 0]]) / sigma - best,
    }
    for name, change in others.items():
        dependence = ((best - noise) * change).sum(1)
        assert dependence.mean().abs() < 4 * dependence.std() / n**0.5, name
        rise = (best + change - noise).square().sum(1) - loss
        assert rise.mean() > 4 * rise.std() / n**0.5, name


@pytest.mark.parametrize("f", [posterior, score_divergence, lambda *a: top_weights(*a, 1)], ids=["all", "trace", "top"])
def test_no_silent_zero_for_a_gradient(f):
    data, x = torch.eye(3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="has no gradient: use optimal_denoiser"):
        f(x.clone().requires_grad_(), data, 1.0, 0.3)
    with pytest.raises(ValueError, match="has no gradient"):
        torch.func.vjp(lambda y: f(y, data, 1.0, 0.3)[0], x)
    with torch.no_grad():
        f(x.clone().requires_grad_(), data, 1.0, 0.3)
