"""Euler-Maruyama: its steps one by one, its weak order without Monte Carlo noise, its strong order, its samples."""

import math

import numpy as np
import pytest
import torch

from psmlib.data.toys import HG, Mixture
from psmlib.process import EDM, RVE, VE, VP, OTFlow
from psmlib.sampling import last, ode, sde
from psmlib.sampling.grids import log_snr, quadratic, uniform

F64 = torch.float64
PSM = VP(0.0, 10.0)
VAR = 0.3
LINE = Mixture(gaussians=[(1, [0.0], VAR)])
SMALL = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]]), (1, [-0.7, -0.9], 0.05)],
    boxes=[(4, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.2, 0.6], -15.0)],
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def second_moment(p, times, **how):
    """E x^2 at the end for N(0, VAR) data, from the sampler's own steps x' = a x + b xi and the exact start.

    Two runs that share their noise differ by the product of the a; a run from 0 then shows each b xi, and the
    xi are the generator's.
    """
    law, steps = LINE.diffused(p), len(times) - 1
    one, zero = (
        [s.x.item() for s in sde(law, p, torch.full((1, 1), start, dtype=F64), times, generator=gen(1), **how)]
        for start in (1.0, 0.0)
    )
    g = gen(1)
    xi = [torch.randn(1, 1, generator=g, dtype=F64).item() for _ in range(steps)]
    moment = float(p.alpha(times[0])) ** 2 * VAR + float(p.sigma(times[0])) ** 2
    before = (1.0, 0.0)
    for a_one, a_zero, z in zip(one, zero, xi, strict=True):
        a = (a_one - a_zero) / (before[0] - before[1])
        b = (a_zero - a * before[1]) / z
        moment, before = a**2 * moment + b**2, (a_one, a_zero)
    return moment


def truth(p, t):
    return float(p.alpha(t)) ** 2 * VAR + float(p.sigma(t)) ** 2


@pytest.mark.parametrize(
    "p, noise, t1",
    [
        (PSM, None, 1.0),
        (VE(0.5, 4.0), None, 1.0),
        (EDM(3.0), None, 3.0),
        (OTFlow(), None, 0.9),
        (OTFlow(), lambda t: t, 1.0),
        (PSM, lambda t: 3.0, 1.0),
    ],
    ids=["VP", "VE", "EDM", "OTFlow-short", "OTFlow-t", "VP-constant"],
)
def test_weak_order_is_one(p, noise, t1):
    errors, counts = [], [40, 80, 160]
    for n in counts:
        times = uniform(0.3 * t1, t1, n).flip(0)
        errors.append(abs(second_moment(p, times, noise=noise) - truth(p, 0.3 * t1)))
    assert abs(np.polyfit(np.log(counts), np.log(errors), 1)[0] + 1) < 0.25
    assert errors[-1] < 0.03 * truth(p, 0.3 * t1)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("p", [RVE(0.01, 5.0), VE(0.05, 8.0), PSM], ids=repr)
def test_weak_order_is_at_least_one_in_log_snr(p, share):
    t0, errors, counts = 2e-5 if isinstance(p, RVE) else 0.02, [], [50, 100, 200]
    for n in counts:
        times, noise = log_snr(p, t0, 1.0, n).flip(0), lambda t: share * float(p.diffusion2(t))
        errors.append(abs(second_moment(p, times, noise=noise, variable="log_snr") / truth(p, t0) - 1))
    # without drift and with all of its noise the leading error nearly cancels
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] < -0.8
    assert errors[-1] < 0.02


def path_by_hand(law, p, x, times, xi, noise):
    """The equation dx = [f x - (g^2 + gamma) s / 2] dt + sqrt(gamma) dw in small steps, from its definition."""
    for t, s, z in zip(times.tolist(), times[1:].tolist(), xi, strict=False):
        gamma = float(p.diffusion2(t) if noise is None else noise(t))
        slope = float(p.drift(t)) * x - 0.5 * (float(p.diffusion2(t)) + gamma) * law.score(x, t)
        x = x - (t - s) * slope + math.sqrt(gamma * (t - s)) * z
    return x


@pytest.mark.parametrize(
    "p, noise, t1",
    [(PSM, None, 1.0), (PSM, lambda t: 3.0, 1.0), (VE(0.5, 4.0), None, 1.0), (OTFlow(), lambda t: t, 0.9)],
    ids=["VP", "VP-constant", "VE", "OTFlow-t"],
)
def test_strong_order_is_one(p, noise, t1, monkeypatch):
    # the noise does not depend on x, so paths converge as fast as means do (Kloeden and Platen, 1992, Section 10.3)
    law, g, t0, finest, counts = HG().diffused(p), gen(4), 0.2 * t1, 1280, [20, 40, 80]
    x = p.perturb(HG().sample(60, g), t1, torch.randn(60, 2, generator=g, dtype=F64))
    xi = torch.randn(finest, 60, 2, generator=g, dtype=F64)
    wanted, errors = path_by_hand(law, p, x, uniform(t0, t1, finest).flip(0), xi, noise), []
    for n in counts:
        together = finest // n
        coarse = iter(xi.reshape(n, together, 60, 2).sum(1) / math.sqrt(together))  # one Brownian path for all
        monkeypatch.setattr(torch, "randn", lambda *_, increments=coarse, **__: next(increments))
        got = last(sde(law, p, x, uniform(t0, t1, n).flip(0), noise=noise)).x
        errors.append(float((got - wanted).norm(dim=1).mean()))
        assert next(coarse, None) is None  # the sampler took one increment a step
    assert abs(np.polyfit(np.log(counts), np.log(errors), 1)[0] + 1) < 0.25
    assert errors[-1] < 0.05 * t1 * p.prior_std


def test_one_step_by_hand():
    law, x, t, s = SMALL.diffused(PSM), torch.randn(7, 2, generator=gen(), dtype=F64), 0.8, 0.75
    z = torch.randn(7, 2, generator=gen(3), dtype=F64)
    got = next(sde(law, PSM, x, [t, s], generator=gen(3)))
    beta, h = 10 * t, t - s
    want = x + h * (0.5 * beta * x + beta * law.score(x, t)) + math.sqrt(beta * h) * z
    torch.testing.assert_close(got.x, want, rtol=1e-12, atol=1e-12)
    assert (got.t, got.nfe) == (s, 1)
    gamma = 2.0
    got = next(sde(law, PSM, x, [t, s], generator=gen(3), noise=lambda u: gamma))
    velocity, score = law.velocity(x, t), law.score(x, t)
    want = x - h * (velocity - 0.5 * gamma * score) + math.sqrt(gamma * h) * z
    torch.testing.assert_close(got.x, want, rtol=1e-12, atol=1e-12)


def test_without_noise_it_is_eulers_method():
    law, x, times = SMALL.diffused(PSM), torch.randn(5, 2, generator=gen(), dtype=F64), uniform(0.1, 1.0, 9).flip(0)
    quiet = last(sde(law, PSM, x, times, noise=lambda t: 0.0)).x
    torch.testing.assert_close(quiet, last(ode(law, PSM, x, times, method="euler")).x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "p, t0, noise",
    [(PSM, 0.02, None), (OTFlow(), 0.02, lambda t: t), (VE(0.05, 4.0), 0.02, None), (RVE(0.01, 5.0), 1e-5, None)],
    ids=["VP", "OTFlow", "VE", "RVE"],
)
def test_moments_of_samples(p, t0, noise):
    n, t1, g = 1500, 1.0, gen(2)
    x = p.perturb(SMALL.sample(n, g), t1, torch.randn(n, 2, generator=g, dtype=F64))
    times = (log_snr(p, t0, t1, 200) if isinstance(p, RVE) else quadratic(t0, t1, 200)).flip(0)
    x = last(sde(SMALL.diffused(p), p, x, times, generator=g, noise=noise)).x
    alpha, sigma = float(p.alpha(t0)), float(p.sigma(t0))
    dev = x - alpha * SMALL.mean
    bias = 0.02  # of the steps: order one in their length
    assert (dev.mean(0).abs() < 4 * dev.std(0) / n**0.5 + bias).all()
    outer = dev[:, :, None] * dev[:, None, :]
    want = alpha**2 * SMALL.cov + sigma**2 * torch.eye(2, dtype=F64)
    assert ((outer.mean(0) - want).abs() < 4 * outer.std(0) / n**0.5 + bias).all()


def test_samples_follow_their_generator():
    law, x, times = SMALL.diffused(PSM), torch.randn(5, 2, generator=gen(), dtype=F64), uniform(0.1, 1.0, 5).flip(0)
    a, b, c = (last(sde(law, PSM, x, times, generator=gen(s))).x for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    steps = list(sde(law, PSM, x, times, generator=gen(1)))
    assert torch.equal(steps[-1].x, a)
    assert [s.t for s in steps] == times[1:].tolist() and [s.nfe for s in steps] == [1, 2, 3, 4, 5]


def test_the_start_is_left_alone():
    x = torch.ones(4, 2, dtype=F64)
    last(sde(SMALL.diffused(PSM), PSM, x, [1.0, 0.5, 0.2], generator=gen()))
    assert torch.equal(x, torch.ones(4, 2, dtype=F64))


def test_denoising_the_last_state():
    law, x, times = SMALL.diffused(PSM), torch.randn(5, 2, generator=gen(), dtype=F64), [1.0, 0.6, 0.3, 0.1]
    plain = list(sde(law, PSM, x, times, generator=gen(1)))
    clean = list(sde(law, PSM, x, times, generator=gen(1), denoise=True))
    torch.testing.assert_close(clean[-1].x, law.denoised(plain[-1].x, 0.1))
    assert torch.equal(clean[1].x, plain[1].x)
    assert [s.nfe for s in clean] == [1, 2, 4]


def test_flow_matching_has_no_noise_rate_at_the_end():
    p, x = OTFlow(), torch.randn(5, 2, generator=gen(), dtype=F64)
    law = SMALL.diffused(p)
    with pytest.raises(ValueError, match="noise rate at t = 1 is inf: give noise=") as caught:
        last(sde(law, p, x, [1.0, 0.5], generator=gen()))
    assert "\n" not in str(caught.value)
    assert last(sde(law, p, x, [1.0, 0.5, 0.1], generator=gen(), noise=lambda t: t)).x.isfinite().all()
    assert last(sde(law, p, x, [0.99, 0.5, 0.1], generator=gen())).x.isfinite().all()


@pytest.mark.parametrize("rate", [math.nan, -1.0, math.inf])
def test_bad_noise_rates_are_named(rate):
    with pytest.raises(ValueError, match=f"noise rate at t = 0.7 is {rate}") as caught:
        last(sde(SMALL.diffused(PSM), PSM, torch.ones(1, 2), [0.7, 0.5], noise=lambda t: rate))
    assert "\n" not in str(caught.value)


def test_times_must_descend():
    with pytest.raises(ValueError, match="times must descend from noise to data"):
        last(sde(SMALL.diffused(PSM), PSM, torch.ones(1, 2), [0.1, 0.5]))


def test_single_precision_and_gradients():
    x = torch.ones(2, 2, requires_grad=True)
    got = last(sde(SMALL.diffused(PSM), PSM, x, [1.0, 0.9, 0.8], generator=gen())).x
    assert got.dtype == torch.float32 and not got.requires_grad
