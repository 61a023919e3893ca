"""A score with a known error: its price in closed form and by quadrature, and its derivatives."""

import math

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, Mixture
from psmlib.diffusion_time.elbo import gap
from psmlib.exact.known_error import ScoreWithError
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VE, VP, SubVP
from psmlib.score import Score

F64 = torch.float64
LINE = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)])
EPS, T = 1e-4, 0.7


@pytest.mark.parametrize("p", [VP(), SubVP(), VE(0.05, 10.0)], ids=repr)
def test_price_of_a_constant_error_is_its_share_of_log_snr(p):
    off = ScoreWithError(LINE.diffused(p), 0.2)
    wanted = 0.02 * float(p.log_snr(EPS) - p.log_snr(T))
    assert off.gap(T, eps=EPS) == pytest.approx(wanted, rel=1e-7)
    assert gap(off, LINE, p, T, eps=EPS)[0] == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("p", [VP(), VE(0.05, 10.0)], ids=repr)
def test_price_of_a_constant_error_in_the_score(p):
    off = ScoreWithError(LINE.diffused(p), lambda t: 0.3 * p.sigma(t))
    # the integral of g^2: of beta for VP, the variance gained for VE
    total = p.integral(T) - p.integral(EPS) if isinstance(p, VP) else p.sigma(T) ** 2 - p.sigma(EPS) ** 2
    assert off.gap(T, eps=EPS) == pytest.approx(0.045 * float(total), rel=1e-7)
    assert gap(off, LINE, p, T, eps=EPS)[0] == pytest.approx(0.045 * float(total), rel=1e-7)


def test_price_of_a_power_of_the_noise():
    p, power = VE(0.05, 10.0), 0.5  # (1/2) int delta^2 sigma^(2p) 2 dlog sigma
    off = ScoreWithError(LINE.diffused(p), lambda t: 0.2 * p.sigma(t) ** power)
    wanted = 0.04 * float(p.sigma(T) ** (2 * power) - p.sigma(EPS) ** (2 * power)) / (2 * power)
    assert off.gap(T, eps=EPS) == pytest.approx(wanted, rel=1e-7)


def test_direction_matters_not_for_the_price():
    toy, p = Mixture(gaussians=[(1, [0.5, 0.2], 0.3), (2, [-0.5, 0.1], 0.1)]), VP()
    for way in ([3.0, -4.0], [0.0, 1.0], None):
        off = ScoreWithError(toy.diffused(p), 0.2, way)
        found = gap(off, toy, p, 0.4, eps=0.2)[0]
        assert found == pytest.approx(0.02 * float(p.log_snr(0.2) - p.log_snr(0.4)), rel=1e-6)
    x = torch.zeros(2, 2, dtype=F64)
    moved = ScoreWithError(toy.diffused(p), 0.5, [3.0, -4.0]).error(x, torch.tensor([0.1, 0.9], dtype=F64))
    torch.testing.assert_close(moved, torch.tensor([[0.3, -0.4]] * 2, dtype=F64))


def test_derivatives_are_those_of_the_score_below():
    p, toy = VP(), HG().centred()
    off = ScoreWithError(toy.diffused(p), lambda t: 0.1 + t)
    x = torch.randn(5, 2, dtype=F64, generator=torch.manual_seed(0))
    value, jac = off.predict_jacobian(x, 0.3)
    torch.testing.assert_close(value, off.predict(x, 0.3))
    slow = Score.predict_jacobian(off, x, 0.3)[1]
    torch.testing.assert_close(jac, slow)
    u = torch.ones_like(x)
    torch.testing.assert_close(off.predict_jvp(x, 0.3, u)[1], (jac @ u[..., None])[..., 0])
    assert float((off.eps(x, 0.3) - toy.diffused(p).eps(x, 0.3)).norm(dim=1).sub(0.4).abs().max()) < 1e-12
    h = 1e-5
    fast = (off.score(x, 0.3 + h) - off.score(x, 0.3 - h)) / (2 * h)
    torch.testing.assert_close(off.time_derivative(x, 0.3), fast, rtol=1e-6, atol=1e-6)


def test_a_bank_can_be_perturbed():
    bank = Bank(Plain(hidden=(8,)), 2, seed=0).score(Partition([0, 0.1, 1]), VP())
    off, x = ScoreWithError(bank, 0.3), torch.ones(3, 2)
    assert off.partition == bank.partition and off.tensor_options == bank.tensor_options
    assert off.on_block(0.5).exact.block == 1
    assert float((off.on_block(0.5).eps(x, 0.5) - bank.eps(x, 0.5)).norm(dim=1)[0]) == pytest.approx(0.3, rel=1e-5)


def test_bad_input_is_named():
    exact = LINE.diffused(VP())
    with pytest.raises(ValueError, match="direction must have a length"):
        ScoreWithError(exact, 0.1, [0.0])
    with pytest.raises(ValueError, match="predicts velocity"):
        ScoreWithError(Bank(Plain(), 1, native="velocity").score(Partition([0, 1]), VP()), 0.1)
    for eps, end in ((0.5, 0.4), (0.0, 0.4), (0.1, 1.5), (0.1, math.nan)):
        with pytest.raises(ValueError, match="0 < eps < T <= 1"):
            ScoreWithError(exact, 0.1).gap(end, eps=eps)
