"""Cubature against closed forms, other rules and the error that it states."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr

from psmlib.data.toys import HG, Mixture, two_gaussians
from psmlib.exact.cubature import cubature
from psmlib.process import VP

F64 = torch.float64
BOX = Mixture(boxes=[(1.0, (0.3, -0.2), (0.5, 0.1), 30.0)])
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0), (2, [0.7, 0.7], [0.4, 0.2], 0.0)],
    name="slanted",
)
PSM = VP(0.0, 10.0)


@pytest.mark.parametrize("toy", [BOX, SLANTED, HG(), two_gaussians()], ids=lambda toy: toy.name)
def test_mass_and_moments(toy):
    assert cubature(toy, lambda x: torch.ones(len(x), dtype=F64))[0] == pytest.approx(1, abs=1e-9)
    for i in range(toy.dim):
        mean, error = cubature(toy, lambda x, i=i: x[:, i])
        assert abs(mean - float(toy.mean[i])) <= error + 1e-12 and error < 1e-5
        for j in range(toy.dim):
            moment, error = cubature(toy, lambda x, i=i, j=j: x[:, i] * x[:, j])
            assert abs(moment - float(toy.cov[i, j] + toy.mean[i] * toy.mean[j])) <= error + 1e-12 and error < 1e-5


def test_entropies_with_closed_forms():
    assert -cubature(BOX, BOX.log_prob)[0] == pytest.approx(math.log(0.2), abs=1e-12)
    cov = torch.tensor([[0.2, 0.05], [0.05, 0.1]], dtype=F64)
    normal = Mixture(gaussians=[(1.0, (0.4, -1.0), cov.tolist())])
    value, error = cubature(normal, normal.log_prob)
    exact = math.log(2 * math.pi * math.e) + 0.5 * float(torch.logdet(cov))
    assert abs(-value - exact) <= error < 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_a_turned_square_within_another(seed):
    """Slanted edges at any angle: p has two heights, on areas that are known."""
    angle, half, *middle = np.random.default_rng(seed).uniform([0, 0.1, -0.05, -0.05], [90, 0.3, 0.05, 0.05])
    toy = Mixture(boxes=[(1.0, (0.0, 0.0), (0.5, 0.5), 0.0), (1.0, middle, (half, half), float(angle))])
    area = 4 * half**2
    inner = 0.5 + 0.5 / area
    exact = -(area * inner * math.log(inner) + (1 - area) * 0.5 * math.log(0.5))
    assert -cubature(toy, toy.log_prob)[0] == pytest.approx(exact, abs=1e-12)


def test_edges_that_cross():
    """A cross of two turned bars: p is doubled on their common square, and f has the same jumps."""
    bars = Mixture(boxes=[(1.0, (0.0, 0.0), (1.0, 0.2), 25.0), (1.0, (0.0, 0.0), (0.2, 1.0), 25.0)])
    single, common = 0.5 / 0.8, 0.16 / 0.8
    exact = -(common * math.log(2 * single) + (1 - common) * math.log(single))
    assert -cubature(bars, bars.log_prob)[0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("t0", [1e-3, 0.01, 0.1, 0.5])
def test_a_blurred_box_is_a_product_of_two_lines(t0):
    # -E log p_t0(x_0) is the sum over both axes of an integral that quad finds
    alpha, sigma = float(PSM.alpha(t0)), float(PSM.sigma(t0))
    mixture = Mixture(boxes=[(1.0, (0.0, 0.0), (0.5, 0.1), 30.0)])

    def along(half):
        def log_p(x):
            upper, lower = (x + alpha * half) / sigma, (x - alpha * half) / sigma
            return math.log((ndtr(upper) - ndtr(lower)) / (2 * alpha * half))

        cuts = [half - k * sigma for k in (1, 3, 9) if k * sigma < half]
        return quad(log_p, 0, half, points=cuts or None, epsabs=1e-12)[0] / half

    law = mixture.diffused(PSM)
    value, error = cubature(mixture, lambda x: law.log_prob(x, t0), blur=sigma)
    assert abs(value - along(0.5) - along(0.1)) <= error + 1e-9 and error < 1e-5


# by 10 nodes instead of 6; 8 agree within 4e-9
@pytest.mark.parametrize("t0, fine", [(1e-3, -0.6258266970), (0.02, -0.7287408296)])
def test_the_error_holds_where_slanted_edges_are_blurred(t0, fine):
    law, sigma = SLANTED.diffused(PSM), float(PSM.sigma(t0))
    value, error = cubature(SLANTED, lambda x: law.log_prob(x, t0), blur=sigma)
    assert abs(value - fine) <= error < 5e-7
    value, error = cubature(SLANTED, lambda x: law.log_prob(x, t0), blur=sigma, nodes=4)
    assert abs(value - fine) <= error < 1e-3


def test_blur_beside_a_corner_is_found():
    # f is sharp where the density is flat: noise from a small box shows in a wide one
    toy, sigma = Mixture(boxes=[(1.0, (0.0, 0.0), (1.0, 1.0), 0.0), (1.0, (0.1, 0.2), (0.1, 0.1), 45.0)]), 1e-3
    p = VP(0.0, 2 * sigma**2 / 1e-6)
    law, t0 = toy.diffused(p), float(p.time_of_sigma(sigma))
    value, error = cubature(toy, lambda x: law.log_prob(x, t0), blur=sigma)
    x = toy.sample(200_000, torch.Generator().manual_seed(0))
    logs = law.log_prob(x, t0)
    assert error < 1e-6 and abs(value - float(logs.mean())) < 4 * float(logs.std()) / len(x) ** 0.5


def test_space_is_refused():
    space = Mixture(gaussians=[(1, [0.0, 0.0, 0.0], 1.0)], name="space")
    with pytest.raises(ValueError, match="space has 3: use .*component_average"):
        cubature(space, space.log_prob)
