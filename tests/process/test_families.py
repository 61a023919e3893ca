"""Processes: rates, coefficients of the equation, and times of noise levels."""

import math

import pytest
import torch

from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PROCESSES = [
    VP(0.0, 10.0),
    VP(0.1, 20.0),
    VP(3.0, 3.0),
    SubVP(0.0, 10.0),
    SubVP(0.1, 20.0),
    VE(),
    VE(0.1, 5.0),
    RVE(),
    RVE(0.01, 5.0, 0.1),
    OTFlow(),
    EDM(),
    EDM(2.0),
]
INNER = torch.tensor([0.003, 0.05, 0.3, 0.5, 0.77, 0.98], dtype=F64)
each = pytest.mark.parametrize("p", PROCESSES, ids=repr)


def slope(f, t):
    t = t.clone().requires_grad_()
    value = f(t).sum()
    return torch.autograd.grad(value, t)[0] if value.requires_grad else torch.zeros_like(t)


def draw(n=64, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=F64), torch.randn(n, d, generator=g, dtype=F64)


@each
def test_rates_are_the_derivatives(p):
    t = INNER * p.T
    torch.testing.assert_close(p.alpha_rate(t), slope(p.alpha, t), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(p.sigma_rate(t), slope(p.sigma, t), rtol=1e-10, atol=1e-13)


@each
def test_drift_and_diffusion_carry_mean_and_variance(p):
    # dx = f x dt + g dw gives m' = f m and v' = 2 f v + g^2
    t = INNER * p.T
    alpha, var = p.alpha(t), p.sigma(t) ** 2
    torch.testing.assert_close(slope(p.alpha, t), p.drift(t) * alpha, rtol=1e-10, atol=1e-13)
    rate = slope(lambda s: p.sigma(s) ** 2, t)
    torch.testing.assert_close(rate, 2 * p.drift(t) * var + p.diffusion2(t), rtol=1e-9, atol=1e-12)
    assert (p.diffusion2(t) >= 0).all()


def test_diffusion_of_each_process_in_closed_form():
    t = INNER
    vp, sub, ve, rve = VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.02, 30.0), RVE(0.01, 5.0, 0.1)
    beta, B = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
    close = dict(rtol=1e-11, atol=0)
    torch.testing.assert_close(vp.diffusion2(t), beta, **close)
    torch.testing.assert_close(sub.diffusion2(t), beta * (1 - torch.exp(-2 * B)), rtol=1e-9, atol=0)
    ratio = math.log(30.0 / 0.02)
    torch.testing.assert_close(ve.diffusion2(t), 2 * 0.02**2 * ratio * (30.0 / 0.02) ** (2 * t), **close)
    var = (5.0 * (0.01 / 5.0) ** (0.1 / t)) ** 2
    torch.testing.assert_close(rve.diffusion2(t), 2 * math.log(500) * 0.1 * var / t**2, **close)
    torch.testing.assert_close(OTFlow().diffusion2(t), 2 * t / (1 - t), **close)
    torch.testing.assert_close(EDM().diffusion2(80 * t), 160 * t, **close)


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_start_is_the_data(p):
    zero = torch.zeros((), dtype=F64)
    assert float(p.alpha(zero)) == 1 and float(p.sigma(zero)) == 0
    assert float(p.log_snr(zero)) == math.inf
    assert math.isfinite(float(p.diffusion2(zero))) and math.isfinite(float(p.drift(zero)))
    # the noise rate is right-continuous there
    assert float(p.diffusion2(1e-9 * p.T)) == pytest.approx(float(p.diffusion2(zero)), rel=1e-6, abs=1e-6)


def test_sigma_rate_starts_at_its_limit():
    assert float(VP(0.0, 10.0).sigma_rate(0.0)) == pytest.approx(math.sqrt(5), rel=1e-14)
    assert float(VP(0.0, 10.0).sigma_rate(1e-6)) == pytest.approx(math.sqrt(5), rel=1e-10)
    assert float(VP(0.1, 20.0).sigma_rate(0.0)) == math.inf
    assert float(RVE().sigma_rate(0.0)) == 0


def test_parallel_score_matching_path():
    p, t = VP(0.0, 10.0), torch.linspace(0, 1, 21, dtype=F64)
    torch.testing.assert_close(p.beta(t), 10 * t, rtol=1e-14, atol=0)
    torch.testing.assert_close(p.alpha(t), torch.exp(-5 * t**2 / 2), rtol=1e-14, atol=0)
    torch.testing.assert_close(p.sigma(t) ** 2, 1 - torch.exp(-5 * t**2), rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(p.alpha(t) ** 2 + p.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


def test_small_noise_keeps_its_digits():
    # 1 - exp(-B) would leave five digits here
    assert float(VP(0.0, 10.0).sigma(1e-6)) == pytest.approx(math.sqrt(5) * 1e-6, rel=1e-11)
    assert float(VE(0.01, 50.0).sigma(1e-12)) == pytest.approx(0.01 * math.sqrt(2e-12 * math.log(5000)), rel=1e-10)


def test_exploding_paths():
    ve = VE(0.01, 50.0)
    t = torch.tensor([0.2, 1.0], dtype=F64)
    torch.testing.assert_close(ve.sigma(t) ** 2, 1e-4 * (5000 ** (2 * t) - 1), rtol=1e-11, atol=0)
    rve = RVE()
    assert float(rve.sigma(rve.eps)) == pytest.approx(1e-3, rel=1e-12)
    assert rve.prior_std / 50 == pytest.approx(0.99989, abs=5e-6)  # the paper's sigma_max is not quite reached
    assert ve.prior_std == pytest.approx(50, rel=1e-7) and ve.prior_std < 50
    assert EDM(7.0).T == EDM(7.0).prior_std == 7
    assert VP().prior_std == OTFlow().prior_std == OTFlow().T == 1


@each
def test_time_of_sigma_inverts_sigma(p):
    t = INNER * p.T
    torch.testing.assert_close(p.time_of_sigma(p.sigma(t)), t, rtol=1e-9, atol=0)
    assert float(p.time_of_sigma(0.0)) == 0
    s = 0.4 * float(p.sigma(p.T))
    assert float(p.sigma(p.time_of_sigma(s))) == pytest.approx(s, rel=1e-10)


@each
def test_time_of_log_snr_inverts_log_snr(p):
    for t in (INNER * p.T, torch.tensor([1e-5, 1e-3, 0.02, 0.9999], dtype=F64) * p.T):
        t = t[p.log_snr(t).isfinite()]
        back = p.time_of_log_snr(p.log_snr(t))
        # near T a reciprocal VE path hardly changes: there it is sigma that keeps its digits
        torch.testing.assert_close(back, t, rtol=1e-8 if isinstance(p, RVE) else 1e-9, atol=0)
        torch.testing.assert_close(p.sigma(back), p.sigma(t), rtol=1e-12, atol=0)
    assert p.time_of_log_snr(0.0).dtype == F64


@each
def test_rate_of_log_snr(p):
    t = INNER * p.T
    torch.testing.assert_close(p.log_snr_rate(t), slope(p.log_snr, t), rtol=1e-9, atol=0)
    torch.testing.assert_close(p.log_snr_rate(t), -p.diffusion2(t) / p.sigma(t) ** 2, rtol=1e-9, atol=0)


def test_flow_matching_stays_finite_at_the_end():
    p = OTFlow()
    x, v = draw()
    x0 = p.convert(x, 1.0, v, "velocity", "denoised")
    assert torch.equal(x0, x - v)
    torch.testing.assert_close(p.convert(x, 1.0, x0, "denoised", "velocity"), v)
    torch.testing.assert_close(p.convert(x, 1.0, v, "velocity", "score"), -x)  # x_1 is pure noise
    assert float(p.diffusion2(1.0)) == math.inf


def test_processes_compare_by_value():
    assert VP(0.0, 10.0) == VP(0.0, 10.0) != VP(0.1, 10.0)
    assert VP(0.1, 20.0) != SubVP(0.1, 20.0)
    assert len({OTFlow(), OTFlow(), EDM()}) == 2


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: VP(-1.0, 2.0), ValueError, "beta_min"),
        (lambda: VP(3.0, 2.0), ValueError, "got 3.0, 2.0"),
        (lambda: SubVP(0.0, 0.0), ValueError, "beta_max"),
        (lambda: VP(math.nan, 1.0), ValueError, "beta_min"),
        (lambda: VE(1.0, 0.5), ValueError, "VE needs 0 < sigma_min < sigma_max"),
        (lambda: RVE(0.0, 0.5), ValueError, "RVE needs"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_one_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
