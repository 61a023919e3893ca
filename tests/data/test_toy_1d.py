"""The toy of Appendix K.1 against the formulas of the paper."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from psmlib.data.toys import exponential_ve, two_gaussians

F64 = torch.float64


def test_density_is_the_papers():
    x = torch.linspace(-1, 6, 50, dtype=F64)
    wanted = 0.3 * norm.pdf(x.numpy(), 1, 0.1) + 0.7 * norm.pdf(x.numpy(), 3, 0.5)
    torch.testing.assert_close(two_gaussians().log_prob(x[:, None]).exp(), torch.as_tensor(wanted))


@pytest.mark.parametrize("base", [2.0, 25.0])
def test_process_is_the_papers(base):
    p, t = exponential_ve(base), torch.tensor([0.0, 0.1, 0.6, 1.0], dtype=F64)
    torch.testing.assert_close(p.diffusion2(t), base ** (2 * t))
    torch.testing.assert_close(p.sigma(t) ** 2, (base ** (2 * t) - 1) / (2 * math.log(base)))
    for s in t[1:].tolist():  # the variance is the integral of g^2
        assert float(p.sigma(s)) ** 2 == pytest.approx(quad(lambda u: base ** (2 * u), 0, s)[0], rel=1e-9)
    assert float(p.drift(0.3)) == 0 and p.prior_std == float(p.sigma(1.0))


@pytest.mark.parametrize("base", [1.0, 0.5, math.nan])
def test_noise_must_grow(base):
    with pytest.raises(ValueError, match="base above 1, got"):
        exponential_ve(base)
