"""Divergence of the law of x_T from noise: its rate, and the entropy's, by differences."""

import pytest

from psmlib.data.toys import HG, Mixture
from psmlib.diffusion_time.prior_kl import mean_log_density, prior_kl, prior_kl_rate
from psmlib.exact.expectations import Quadrature, expectation
from psmlib.process import VE, VP, SubVP

LINE = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)], name="line")
PROCESSES = [VP(), VP(0.0, 10.0), SubVP(), VE(0.01, 50.0), VE(0.05, 10.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=repr)


@pytest.mark.parametrize("toy", [LINE, HG().centred()], ids=lambda toy: toy.name)
@each
def test_de_bruijn(p, toy):
    t, h = 0.35, 1e-4
    growth = -(mean_log_density(toy, p, t + h)[0] - mean_log_density(toy, p, t - h)[0]) / (2 * h)
    rule = Quadrature(toy)
    J = float(expectation(rule, p, t, lambda x: rule.law(p).score(x, t).square().sum(1)).mean())
    wanted = 0.5 * float(p.diffusion2(t)) * J + toy.dim * float(p.drift(t))
    assert growth == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("toy", [LINE, HG().centred()], ids=lambda toy: toy.name)
@each
def test_rate_of_the_divergence(p, toy):
    T, h = 0.4, 1e-4
    slope = (prior_kl(toy, p, T + h)[0] - prior_kl(toy, p, T - h)[0]) / (2 * h)
    assert prior_kl_rate(toy, p, T)[0] == pytest.approx(slope, rel=1e-4)
    assert slope < 0
