"""Gaussian paths: noise added to data, the four readings of a prediction, and the prior."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psmlib.process import EDM, PREDICTIONS, RVE, VE, VP, OTFlow, Process, SubVP, as_time, expand

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


def draw(n=64, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=F64), torch.randn(n, d, generator=g, dtype=F64)


def readings(p, x0, eps, t):
    """The four targets by their definitions, for one (x_0, eps)."""
    return {
        "eps": eps,
        "score": -eps / expand(p.sigma(t), eps),
        "denoised": x0,
        "velocity": expand(p.alpha_rate(t), x0) * x0 + expand(p.sigma_rate(t), x0) * eps,
    }


@each
def test_log_snr_falls(p):
    t = torch.linspace(0.002, 0.999, 400, dtype=F64) * p.T
    lam = p.log_snr(t)
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(lam.exp(), (p.alpha(t) / p.sigma(t)) ** 2, rtol=1e-10, atol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    p=st.sampled_from(PROCESSES),
    u=st.floats(0.01, 0.98),
    src=st.sampled_from(PREDICTIONS),
    dst=st.sampled_from(PREDICTIONS),
    seed=st.integers(0, 1000),
)
def test_conversions_agree_with_the_definitions_and_go_back(p, u, src, dst, seed):
    x0, eps = draw(8, 2, seed)
    t = as_time(u * p.T)
    x, values = p.perturb(x0, t, eps), readings(p, x0, eps, t)
    got = p.convert(x, t, values[src], src, dst)
    scale = float(values[dst].abs().max() + x.abs().max())
    torch.testing.assert_close(got, values[dst], rtol=1e-9, atol=1e-10 * scale)
    back = p.convert(x, t, got, dst, src)
    torch.testing.assert_close(back, values[src], rtol=1e-8, atol=1e-9 * float(values[src].abs().max()))


@each
def test_a_time_for_each_sample(p):
    x0, eps = draw(len(INNER), 4)
    t = INNER * p.T
    x = p.perturb(x0, t, eps)
    for src in PREDICTIONS:
        for dst in PREDICTIONS:
            together = p.convert(x, t, eps, src, dst)
            apart = [p.convert(x[i : i + 1], float(t[i]), eps[i : i + 1], src, dst) for i in range(len(t))]
            torch.testing.assert_close(together, torch.cat(apart), rtol=1e-12, atol=1e-12)


def test_velocity_is_the_probability_flow():
    # v = f x - g^2 s / 2 (Song et al., 2021, Eq. 13), here for an arbitrary score
    x, s = draw(5)
    for p in PROCESSES:
        for t in (0.1 * p.T, 0.8 * p.T):
            want = p.drift(t) * x - 0.5 * p.diffusion2(t) * s
            torch.testing.assert_close(p.convert(x, t, s, "score", "velocity"), want, rtol=1e-9, atol=1e-9)


@each
def test_perturb_is_linear_and_has_the_right_moments(p):
    x0, eps = draw(4000, 2)
    t = 0.4 * p.T
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    plus, minus = p.perturb(x0, t, eps), p.perturb(x0, t, -eps)
    torch.testing.assert_close((plus + minus) / 2, alpha * x0)
    torch.testing.assert_close((plus - minus) / 2, sigma * eps)
    one = p.perturb(torch.full_like(x0, 3.0), torch.full((4000,), t, dtype=F64), eps).flatten()
    n = len(one)
    assert abs(float(one.mean()) - 3 * alpha) < 4 * sigma / n**0.5
    assert abs(float(one.var()) - sigma**2) < 4 * sigma**2 * (2 / n) ** 0.5


def test_shapes_and_dtypes():
    x0 = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.rand(5, generator=torch.Generator().manual_seed(1), dtype=F64)
    for time in (0.3, as_time(0.3), t, t.float()):
        x = VP().perturb(x0, time, x0)
        assert x.dtype == torch.float32 and x.shape == x0.shape
        assert VP().convert(x, time, x0, "eps", "velocity").dtype == torch.float32
    assert VP().alpha(0.3).dtype == F64 and VP().alpha(t.float()).dtype == torch.float32
    assert expand(t, x0).shape == (5, 1, 1, 1) and expand(t, x0).dtype == torch.float32
    assert VP().perturb(x0.double(), 0.3, x0.double()).dtype == F64


@each
def test_prior_log_prob(p):
    x = p.prior_std * draw(7, 6)[0]
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), as_time(p.prior_std))
    torch.testing.assert_close(p.prior_log_prob(x), normal.log_prob(x).sum(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.prior_log_prob(x.reshape(7, 1, 2, 3)), normal.log_prob(x).sum(1))


def test_prior_sample():
    p = EDM(80.0)
    x = p.prior_sample(2000, (2, 3), torch.Generator().manual_seed(0), dtype=F64)
    assert x.shape == (2000, 2, 3)
    assert abs(float(x.std()) - 80) < 4 * 80 / (2 * x.numel()) ** 0.5
    assert torch.equal(x, p.prior_sample(2000, (2, 3), torch.Generator().manual_seed(0), dtype=F64))
    assert not torch.equal(x, p.prior_sample(2000, (2, 3), torch.Generator().manual_seed(1), dtype=F64))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: VP().convert(torch.ones(1, 1), 0.5, torch.ones(1, 1), "noise", "eps"), ValueError, "'noise'.*eps"),
        (lambda: VP().conversion(0.5, "eps", "x0"), ValueError, "'x0'.*denoised"),
        (lambda: Process().alpha(0.5), TypeError, "alpha.*use VP"),
        (lambda: Process().sigma(0.5), TypeError, "sigma.*use VP"),
        (lambda: Process().sigma_rate(0.5), TypeError, "sigma_rate"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_one_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
