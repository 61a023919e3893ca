"""Averages under the exact law, floors of the NLL and irreducible losses against Monte Carlo and closed forms."""

import pytest
import torch

from psmlib.data.toys import HG, TY, Mixture
from psmlib.exact.expectations import component_average
from psmlib.exact.floors import irreducible_loss, nll_floor
from psmlib.process import EDM, PREDICTIONS, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)


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


def test_unknown_kinds_of_loss_are_named():
    with pytest.raises(ValueError, match="'noise'.*eps, score"):
        irreducible_loss(SLANTED, PSM, 0.5, "noise")
