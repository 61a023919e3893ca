"""Processes that stop early or run at another pace: coefficients, priors, identity, and what is refused."""

import math

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, Mixture
from psmlib.likelihood import log_likelihood
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import EDM, RVE, VE, VP, Lengthened, OTFlow, Retimed, Shortened, SubVP
from psmlib.training import fit

F64 = torch.float64
PROCESSES = [VP(), VP(0.0, 10.0), SubVP(), VE(), RVE(0.01, 5.0, 0.1), EDM(3.0)]


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_coefficients_are_those_of_the_process(p):
    short, t = Shortened(p, 0.4 * p.T), 0.4 * p.T * torch.linspace(0.05, 1, 7, dtype=F64)
    for name in ("alpha", "sigma", "alpha_rate", "sigma_rate", "drift", "diffusion2", "log_snr"):
        assert torch.equal(getattr(short, name)(t), getattr(p, name)(t)), name
    assert short.T == 0.4 * p.T
    assert float(short.time_of_sigma(short.sigma(t)).sub(t).abs().max()) < 1e-9 * p.T
    assert torch.equal(short.time_of_log_snr(p.log_snr(t)), p.time_of_log_snr(p.log_snr(t)))
    assert short.variable == p.variable == ("log_snr" if isinstance(p, RVE) else "t")


def test_priors_are_those_of_table_1():
    ve = VE(0.01, 50.0)
    wanted = math.sqrt(0.01**2 * 5000 ** (2 * 0.3) - 0.01**2)  # sigma^2(T) - sigma^2(0)
    assert Shortened(ve, 0.3).prior_std == pytest.approx(wanted, rel=1e-12)
    assert Shortened(ve, 1.0).prior_std == ve.prior_std
    assert Shortened(VP(), 0.1).prior_std == Shortened(SubVP(), 0.1).prior_std == 1
    assert Shortened(EDM(80.0), 7.0).prior_std == 7
    x = torch.tensor([[0.3, -2.0]], dtype=F64)
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), wanted)
    assert float(Shortened(ve, 0.3).prior_log_prob(x)) == pytest.approx(float(normal.log_prob(x).sum()), rel=1e-12)


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_rate_of_the_prior_is_its_derivative(p):
    T, h = 0.4 * p.T, 1e-5 * p.T
    slope = (Shortened(p, T + h).prior_std - Shortened(p, T - h).prior_std) / (2 * h)
    assert Shortened(p, T).prior_std_rate == pytest.approx(slope, rel=1e-7, abs=1e-12)


def test_different_ends_are_kept_apart():
    a, b = Shortened(VP(), 0.4), Shortened(VP(), 0.6)
    assert a == Shortened(VP(), 0.4) and a != b and a != VP() and Shortened(VE(), 0.4) != a
    assert len({repr(p) for p in (a, b, VP(), Shortened(VP(0.0, 10.0), 0.4))}) == 4
    assert len({a, b, Shortened(VP(), 0.4)}) == 2
    assert Shortened(VP(), T=0.4) == a
    # 4e-10 apart: a rounded repr would let a checkpoint of one resume the other
    assert repr(Shortened(VP(), 0.4)) != repr(Shortened(VP(), 0.4 + 4e-10))


def test_shortening_twice_is_shortening_once():
    assert Shortened(Shortened(VP(), 0.6), 0.4) == Shortened(VP(), 0.4)
    with pytest.raises(ValueError, match=r"T = 0.8 lies outside \(0, 0.6\]"):
        Shortened(Shortened(VP(), 0.6), 0.8)


@pytest.mark.parametrize("T", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_ends_outside_the_process_are_refused(T):
    with pytest.raises(ValueError, match=r"lies outside \(0, 1\].*give a time within it") as caught:
        Shortened(VP(), T)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="T = nan"):
        Shortened(VP())


def test_a_longer_process_goes_on_along_its_path():
    # linear beta on [0, 2]: the same as twice the rates, and four times the slope, on [0, 1]
    t = torch.linspace(0.1, 2, 9, dtype=F64)
    for long, same in (
        (Lengthened(VP(0.1, 20.0), 2.0), VP(0.2, 0.2 + 4 * 19.9)),
        (Lengthened(VE(0.01, 1.0), 2.0), VE(0.01, 100.0)),
    ):
        torch.testing.assert_close(long.alpha(t), same.alpha(t / 2))
        torch.testing.assert_close(long.sigma(t), same.sigma(t / 2))
        torch.testing.assert_close(long.diffusion2(t), same.diffusion2(t / 2) / 2)
        torch.testing.assert_close(long.time_of_log_snr(long.log_snr(t)), t)
        assert long.T == 2 and long.prior_std == pytest.approx(same.prior_std, rel=1e-12)
        short = Shortened(long, 1.5)
        assert short.T == 1.5 and short.prior_std == pytest.approx(Shortened(same, 0.75).prior_std, rel=1e-12)


@pytest.mark.parametrize("T", [0.5, 1.0, math.nan, math.inf])
def test_a_longer_process_is_longer(T):
    with pytest.raises(ValueError, match="not beyond 1.*or use Shortened"):
        Lengthened(VP(), T)


def test_a_process_without_signal_does_not_go_on():
    with pytest.raises(ValueError, match="no signal left before T = 1.5"):
        Lengthened(OTFlow(), 1.5)


def test_checkpoints_of_another_end_are_refused(tmp_path):
    toy, budget = HG().centred(), dict(updates=2, batch_size=4, path=tmp_path / "bank")
    list(fit(Bank(Plain(hidden=(4,)), 1), toy, Shortened(VP(), 0.4), Partition([0, 0.4]), **budget))
    with pytest.raises(ValueError, match=r"T=0.4.*T=0.6"):
        list(fit(Bank(Plain(hidden=(4,)), 1), toy, Shortened(VP(), 0.6), Partition([0, 0.6]), resume=True, **budget))


def test_likelihood_ends_at_T():
    toy = Mixture(gaussians=[(1, [0.5, -0.2], 0.3)])
    short, x = Shortened(VP(), 0.3), torch.tensor([[0.4, 0.0], [1.0, -1.0]], dtype=F64)
    exact = toy.diffused(short)
    found = log_likelihood(exact, short, x, t0=1e-3, steps=200, prior=lambda y: exact.log_prob(y, 0.3))
    torch.testing.assert_close(found.log_prob, exact.log_prob(x, 1e-3), rtol=0, atol=1e-6)
    plain = log_likelihood(exact, short, x, t0=1e-3, steps=200)
    torch.testing.assert_close(plain.prior, short.prior_log_prob(found.x_T))


@pytest.mark.parametrize("p", [VP(), VE(0.05, 10.0)], ids=repr)
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_retimed_process_is_a_process(p, power):
    other = Retimed(p, power)
    t = torch.tensor([0.05, 0.4, 0.9], dtype=F64, requires_grad=True)
    for name in ("alpha", "sigma"):
        value = getattr(other, name)(t)
        rate = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(getattr(other, f"{name}_rate")(t), rate)
    inner = t.detach()
    torch.testing.assert_close(other.time_of_sigma(other.sigma(inner)), inner)
    torch.testing.assert_close(other.time_of_log_snr(other.log_snr(inner)), inner)
    assert other.variable == ("t" if power >= 1 else "log_snr")
    growth = 2 * other.sigma(inner) * other.sigma_rate(inner) - 2 * other.drift(inner) * other.sigma(inner) ** 2
    torch.testing.assert_close(other.diffusion2(inner), growth)
    assert other.T == p.T and other.prior_std == p.prior_std and repr(other) != repr(Retimed(p, 3.0))


def test_powers_must_be_positive():
    with pytest.raises(ValueError, match="positive power, got 0"):
        Retimed(VP(), 0)
