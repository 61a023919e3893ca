"""Derivatives of the exact law in time and of its trace in space: by differentiation, differences and Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp

from psmlib.data.toys import HG, TY, Mixture
from psmlib.exact import mixture as module
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP
from psmlib.score import Score

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)
LINE = Mixture(gaussians=[(1, [-1.0], 0.04), (3, [1.0], 0.09)])
COV = [[0.3, 0.1, 0.0], [0.1, 0.2, -0.05], [0.0, -0.05, 0.1]]
SPACE = Mixture(gaussians=[(2, [0.5, -0.2, 0.1], COV), (1, [-0.4, 0.3, 0.6], 0.08)])
MIXTURES = [SLANTED, LINE, SPACE, TY().centred()]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
every = pytest.mark.parametrize("mixture", MIXTURES, ids=["slanted", "line", "space", "TY"])
NAMES = ("trace_gradient", "time_derivative", "log_prob_rate")


def points(n=30, scale=1.0, seed=0, dim=2):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def setting(mixture, p, u):
    """The law, a time and points around it."""
    t = torch.tensor(u * p.T, dtype=F64)
    return mixture.diffused(p), t, points(30, 1 + float(p.sigma(t)), dim=mixture.dim)


@each
@every
@pytest.mark.parametrize("u", [0.05, 0.6])
def test_rates_are_derivatives_in_time(mixture, p, u):
    law, t, x = setting(mixture, p, u)
    for f, got in ((law.log_prob, law.log_prob_rate(x, t)), (law.score, law.time_derivative(x, t))):
        want = jvp(lambda s, f=f: f(x, s), (t,), (torch.ones_like(t),))[1]
        close(got, want, rtol=1e-9, atol=1e-11 * float(want.abs().max()))


@each
@every
@pytest.mark.parametrize("u", [0.05, 0.6])
def test_trace_gradient_is_a_derivative(mixture, p, u):
    law, t, x = setting(mixture, p, u)
    want = grad(lambda y: law.divergence(y, t).sum())(x)
    close(law.trace_gradient(x, t), want, rtol=1e-9, atol=1e-10 / float(p.sigma(t)) ** 3)


def test_trace_gradient_is_the_third_derivative_of_the_log_density():
    law, t, x = setting(SLANTED, PSM, 0.2)

    def along(f, u):
        return lambda y: jvp(f, (y,), (u.expand_as(y),))[1]

    eye = torch.eye(2, dtype=F64)
    for j, d in enumerate(eye):
        want = sum(along(along(along(lambda y: law.log_prob(y, t), e), e), d)(x) for e in eye)
        close(law.trace_gradient(x, t)[:, j], want, rtol=1e-8, atol=1e-8)


@each
@pytest.mark.parametrize("u", [0.1, 0.7])
def test_rates_against_differences_in_time(p, u):
    # nothing of this file's methods is in the way: log_prob and score at five times
    law, t, x = setting(SLANTED, p, u)
    h = 2e-3 * float(t)
    for f, got in ((law.log_prob, law.log_prob_rate(x, t)), (law.score, law.time_derivative(x, t))):
        wide, narrow = ((f(x, t + k) - f(x, t - k)) / (2 * k) for k in (h, h / 2))
        want = (4 * narrow - wide) / 3  # Richardson: order four
        close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


def test_rates_against_monte_carlo():
    # of the kernel N(x; alpha y, sigma^2) alone, with data y weighted by it
    for p, t in ((PSM, 0.4), (OTFlow(), 0.5), (VE(0.05, 4.0), 0.6)):
        x, y = points(6, 0.8, seed=3), SLANTED.sample(300_000, torch.Generator().manual_seed(5))
        alpha, sigma, down, up = (float(c(t)) for c in (p.alpha, p.sigma, p.alpha_rate, p.sigma_rate))
        gap = x[:, None] - alpha * y
        weight = torch.softmax(-0.5 * gap.square().sum(-1) / sigma**2, 1)
        rate = down / sigma**2 * (y * gap).sum(-1) + up / sigma * (gap.square().sum(-1) / sigma**2 - 2)
        law, total = SLANTED.diffused(p), (weight * rate).sum(1)
        stderr = (weight * (rate - total[:, None])).norm(dim=1)
        assert ((law.log_prob_rate(x, t) - total).abs() < 4 * stderr).all()
        assert (stderr < 0.03 * total.abs().max()).all()
        # the score is the mean of -gap / sigma^2, so its rate has a covariance and a mean
        slope, moved = -gap / sigma**2, down * y / sigma**2 + 2 * up * gap / sigma**3
        score = (weight[..., None] * slope).sum(1, keepdim=True)
        terms = (rate - total[:, None])[..., None] * (slope - score) + moved
        want = (weight[..., None] * terms).sum(1)
        stderr = (weight[..., None] * (terms - want[:, None])).norm(dim=1)
        assert ((law.time_derivative(x, t) - want).abs() < 4 * stderr).all()
        assert (stderr < 0.05 * want.abs().max()).all()


place = st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
weight = st.floats(0.05, 1)
cov = st.tuples(st.floats(0.02, 1), st.floats(0.02, 1), st.floats(-0.9, 0.9)).map(
    lambda c: [[c[0], c[2] * math.sqrt(c[0] * c[1])], [c[2] * math.sqrt(c[0] * c[1]), c[1]]]
)
half = st.tuples(st.floats(0.02, 1.5), st.floats(0.02, 1.5))
gaussians = st.lists(st.tuples(weight, place, cov), max_size=3)
boxes = st.lists(st.tuples(weight, place, half, st.floats(-90, 90)), max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    parts=st.tuples(gaussians, boxes).filter(any),
    p=st.sampled_from(PROCESSES),
    sigma=st.floats(-3.5, -0.05).map(lambda e: 10**e),
    spread=st.sampled_from([0.3, 1.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_the_law_obeys_fokker_planck(parts, p, sigma, spread, seed):
    # d log p/dt = -div(f x - g^2 s/2) - (f x - g^2 s/2) . s, and its gradient; J = ds/dx
    law, t = Mixture(gaussians=parts[0], boxes=parts[1]).diffused(p), p.time_of_sigma(sigma)
    x = torch.cat([law.mixture.sample(10, torch.Generator().manual_seed(seed)), points(10, spread, seed)])
    f, g2 = float(p.drift(t)), float(p.diffusion2(t))
    s, jac = law.jacobian(x, t)
    trace, change = jac.diagonal(dim1=1, dim2=2).sum(1), lambda u: torch.einsum("nij,nj->ni", jac, u)
    terms = [torch.full((20,), -2 * f, dtype=F64), -f * (x * s).sum(1), 0.5 * g2 * trace, 0.5 * g2 * s.square().sum(1)]
    check_sum(law.log_prob_rate(x, t), terms)
    terms = [-f * s, -f * change(x), 0.5 * g2 * law.trace_gradient(x, t), g2 * change(s)]
    check_sum(law.time_derivative(x, t), terms)


def check_sum(got, terms):
    """Equal to the sum, in units of the terms: at a point they may cancel by many orders."""
    size = sum(v.abs() for v in terms)
    size = size if size.dim() == 1 else size.norm(dim=1, keepdim=True)
    assert float(((got - sum(terms)).abs() / (size + 1e-12)).max()) < 2e-12


@each
def test_one_gaussian_in_closed_form(p):
    mean, cov = torch.tensor([0.5, -0.2, 0.1], dtype=F64), torch.tensor(COV, dtype=F64)
    law, t, x = setting(Mixture(gaussians=[(1, mean.tolist(), COV)]), p, 0.35)
    alpha, sigma, down, up = p.alpha(t), p.sigma(t), p.alpha_rate(t), p.sigma_rate(t)
    eye = torch.eye(3, dtype=F64)
    precision, growth = torch.linalg.inv(alpha**2 * cov + sigma**2 * eye), 2 * alpha * down * cov + 2 * sigma * up * eye
    score = -(x - alpha * mean) @ precision
    close(law.time_derivative(x, t), -score @ growth @ precision + down * mean @ precision, rtol=1e-10, atol=1e-10)
    rate = 0.5 * ((score @ growth) * score).sum(1) - 0.5 * (precision @ growth).trace() - down * score @ mean
    close(law.log_prob_rate(x, t), rate, rtol=1e-10, atol=1e-10)
    close(law.trace_gradient(x, t), torch.zeros_like(x), rtol=0, atol=1e-12 / float(sigma) ** 3)


def test_one_box_narrows_and_widens():
    # deep inside only the height 1 / (2 alpha h) moves, without noise; far out a box weighs as its corner
    box, t = Mixture(boxes=[(1, [0.1, -0.2], [1.0, 0.8], 25.0)]), 1e-3
    law, x = box.diffused(PSM), torch.tensor([[0.2, -0.1], [0.0, 0.1]], dtype=F64)
    close(law.log_prob_rate(x, t), torch.full((2,), 2 * 5 * t, dtype=F64), rtol=1e-12, atol=0)
    for f in (law.trace_gradient, law.time_derivative):
        assert (f(x, t) == 0).all()
    out = torch.tensor([[40.0, 55.0]], dtype=F64)
    frame, law = box.box_rotation[0], box.diffused(EDM())
    corner = box.box_centre[0] + frame @ (box.box_half[0] * (out[0] @ frame).sign())
    want = 2 * (out - corner)  # s = -(x - corner) / t^2 at t = 1
    close(law.time_derivative(out, 1.0), want, rtol=0.01, atol=0)
    local = (out[0] - corner) @ frame  # -(d/du)^3 of log(1 / u) per axis
    close(law.trace_gradient(out, 1.0)[0] @ frame, -2 / local**3, rtol=0.02, atol=0)


def test_a_component_in_three_thirds_is_the_same_law():
    # far out the parts of a sum over components are huge and alike: their differences must be taken first
    part = ([0.1, 0.2], [0.5, 0.3], 20.0)
    one, three = (Mixture(boxes=n * [(1, *part)]).diffused(PSM) for n in (1, 3))
    x = points(20, 10.0)
    for name in ("time_derivative", "log_prob_rate"):
        want, got = (getattr(law, name)(x, 1e-3) for law in (one, three))
        close(got, want, rtol=1e-12, atol=1e-14 * float(want.abs().max()))


def test_the_base_class_differentiates_by_itself():
    for p in (PSM, VE(0.01, 5.0)):
        law, t, x = setting(SLANTED, p, 0.3)
        close(Score.trace_gradient(law, x, t), law.trace_gradient(x, t), rtol=1e-7, atol=1e-7)
        close(Score.time_derivative(law, x, t), law.time_derivative(x, t), rtol=1e-7, atol=1e-7)


def test_flow_matching_at_the_end():
    # x = (1 - t) y + t eps: d log p / dt = |x|^2 - d - x . E y at t = 1, and the score is -x
    law, x, mean = SLANTED.diffused(OTFlow()), points(), SLANTED.mean
    close(law.log_prob_rate(x, 1.0), x.square().sum(1) - 2 - x @ mean)
    close(law.time_derivative(x, 1.0), 2 * x - mean)
    close(law.trace_gradient(x, 1.0), torch.zeros_like(x))
    for gap in (1e-3, 1e-6, 1e-9, 1e-12):
        for name in NAMES:
            f = getattr(law, name)
            close(f(x, 1 - gap), f(x, 1.0), rtol=0, atol=100 * gap + 1e-9)


@each
def test_time_zero_is_refused(p):
    law, x = SLANTED.diffused(p), points(3)
    for f in (law.time_derivative, law.log_prob_rate):
        for t in (0.0, torch.tensor(0.0), torch.tensor([0.2, 0.0, 0.1])):
            with pytest.raises(ValueError, match="sigma is 0 at t = 0, where.*give a later time") as caught:
                f(x, t)
            assert "\n" not in str(caught.value)
        assert f(x[:0], 0.5).shape[0] == 0
    assert law.trace_gradient(x, 0.0).isfinite().all()


@pytest.mark.parametrize("toy", [HG(), TY()], ids=["HG", "TY"])
@each
def test_all_is_finite_at_any_noise(p, toy):
    law, near = toy.diffused(p), toy.sample(50, torch.Generator().manual_seed(1))
    for sigma in (1e-10, 1e-6, 1e-3, 0.1):
        t = float(p.time_of_sigma(sigma))
        for x in (near, near + 40 * sigma * points(50), 50 * points(50)):
            for name in NAMES:
                for dtype in (F64, torch.float32):
                    got = getattr(law, name)(x.to(dtype), t)
                    assert got.dtype == dtype
                    assert got.isfinite().all() or (dtype == torch.float32 and sigma < 1e-5)  # beyond its range


def test_trace_gradient_at_time_zero_is_a_limit():
    hill = Mixture(gaussians=[(1, [0.0, 0.0], 0.2)], boxes=[(1, [0.2, 0.0], [1.0, 0.8], 20.0)])
    law, x = hill.diffused(PSM), torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=F64)  # away from the box's edges
    close(law.trace_gradient(x, 0.0), law.trace_gradient(x, float(PSM.time_of_sigma(1e-6))), rtol=1e-6, atol=0)
    assert (law.trace_gradient(x, 0.0).norm(dim=1) > 0.1).all()


@each
def test_single_precision_in_and_out(p):
    law, x, t = TY().centred().diffused(p), points(50), 0.1 * p.T
    for name in NAMES:
        f = getattr(law, name)
        got, want = f(x.float(), t), f(x.float().double(), t)
        assert got.dtype == torch.float32
        close(got, want.float(), rtol=1e-6, atol=0)
        assert torch.equal(f(x, torch.tensor(t).float()), f(x, torch.tensor(t).float().double()))


@each
def test_a_time_for_each_sample(p):
    law, x, t = SLANTED.diffused(p), points(), torch.linspace(0.05 * p.T, p.T, 30, dtype=F64)
    for name in NAMES:
        f = getattr(law, name)
        apart = torch.cat([f(x[i : i + 1], float(t[i])) for i in range(30)])
        close(f(x, t), apart, rtol=1e-11, atol=1e-11 * float(apart.abs().max()))


def test_pieces_make_no_difference(monkeypatch):
    law, x, t = SLANTED.diffused(PSM), points(50), torch.linspace(0.01, 1, 50, dtype=F64)
    whole = [getattr(law, name)(x, s) for name in NAMES for s in (t, 0.3)]
    monkeypatch.setattr(module, "_CHUNK", 3)  # eight points a piece
    pieces = [getattr(law, name)(x, s) for name in NAMES for s in (t, 0.3)]
    for a, b in zip(whole, pieces, strict=True):
        close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\) for slanted, got"):
        getattr(SLANTED.diffused(PSM), name)(torch.zeros(5, 3), 0.5)
    assert math.isfinite(float(getattr(SLANTED.diffused(PSM), name)(torch.zeros(1, 2), 0.5).sum()))
