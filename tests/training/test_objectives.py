"""Targets against the definitions, and their conditional means against the exact fields."""

import pytest
import torch

from psmlib.data.toys import Mixture
from psmlib.process import VE, VP, OTFlow, SubVP
from psmlib.training.objectives import Denoising, FlowMatching

F64 = torch.float64


def draws(n: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(n, 2, dtype=F64, generator=g) for _ in range(2))
    return x0, 0.05 + 0.9 * torch.rand(n, dtype=F64, generator=g), eps


def test_each_objective_says_what_the_network_is_read_as():
    assert (Denoising().native, FlowMatching().native) == ("eps", "velocity")


def test_denoising_asks_for_the_noise():
    x0, t, eps = draws(5)
    assert Denoising().target(VP(), x0, t, eps) is eps


@pytest.mark.parametrize("process", [VP(0.0, 10.0), SubVP(), VE(), OTFlow()], ids=str)
def test_flow_matching_asks_for_the_time_derivative_of_the_path(process):
    x0, t, eps = draws(50)
    h = 1e-6
    rate = (process.perturb(x0, t + h, eps) - process.perturb(x0, t - h, eps)) / (2 * h)
    target = FlowMatching().target(process, x0, t, eps)
    assert torch.allclose(target, rate, rtol=1e-6, atol=1e-7)
    singly = torch.cat([FlowMatching().target(process, x0[i : i + 1], float(t[i]), eps[i : i + 1]) for i in range(50)])
    assert torch.allclose(target, singly, rtol=1e-13)


def test_flow_matching_along_straight_lines_is_noise_minus_data():
    x0, t, eps = draws(5)
    assert torch.equal(FlowMatching().target(OTFlow(), x0, t, eps), eps - x0)


def test_targets_carry_image_axes():
    x0, eps, t = torch.ones(3, 1, 4, 4), torch.zeros(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    target = FlowMatching().target(OTFlow(), x0, t, eps)
    assert target.shape == x0.shape and target.dtype == x0.dtype and bool((target == -1).all())


def z_scores(products: torch.Tensor) -> torch.Tensor:
    """How many standard errors the column means are from zero."""
    return products.mean(0).abs() / (products.std(0) / len(products) ** 0.5)


@pytest.mark.parametrize("objective", [Denoising(), FlowMatching()], ids=str)
@pytest.mark.parametrize("process", [VP(0.0, 10.0), OTFlow()], ids=str)
def test_the_exact_field_is_the_conditional_mean_of_the_target(process, objective):
    """Residuals of the exact field are uncorrelated with any function of x_t: here 1, x, x^2, sin 3x and itself."""
    data = Mixture(gaussians=[(0.3, [-1.0, 0.5], 0.1), (0.7, [0.8, 0.0], 0.3)])
    n, t = 40000, 0.35
    g = torch.Generator().manual_seed(1)
    x0, eps = data.sample(n, g), torch.randn(n, 2, dtype=F64, generator=g)
    x = process.perturb(x0, t, eps)
    exact = process.convert(x, t, data.diffused(process).eps(x, t), "eps", objective.native)
    residual = objective.target(process, x0, torch.full((n,), t, dtype=F64), eps) - exact
    tests = (torch.ones_like(x), x, x**2, (3 * x).sin(), exact)
    assert all(float(z_scores(residual * f).max()) < 4.5 for f in tests)
    assert float(z_scores((residual + 0.1 * exact) * exact).min()) > 6, "an error of a tenth would be seen"
