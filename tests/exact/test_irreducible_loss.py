"""Irreducible losses against Monte Carlo and closed forms."""

import pytest
import torch

from psmlib.data.toys import Mixture
from psmlib.exact.irreducible_loss import irreducible_loss
from psmlib.process import PREDICTIONS, VP, OTFlow

F64 = torch.float64
PSM = VP(0.0, 10.0)
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)


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
