"""The score equation: exact scores satisfy the corrected form and violate the printed one by a known term."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, TY, Mixture
from psmlib.evaluation.toys import diffused_points
from psmlib.exact.finite_set import DiffusedData
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import SA, Partition
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP
from psmlib.score import Score
from psmlib.score_pde import FORMS, evolve, per_log_snr, residual, right_side, terms

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
two = Mixture(gaussians=[(0.4, [-1.0], 0.05), (0.6, [1.0], 0.1)])


class Automatic(Score):
    """An exact score stripped of its closed derivatives: automatic differentiation takes their place."""

    native = "score"

    def __init__(self, law):
        self.law, self.process = law, law.process

    def predict(self, x, t):
        return self.law.score(x, t)


@each
@pytest.mark.parametrize("u", [0.05, 0.4, 0.9])
def test_exact_scores_obey_the_corrected_equation(p, u):
    t = u * p.T
    law, x = SLANTED.diffused(p), diffused_points(SLANTED, p, t, 50)
    for score, tolerance in ((law, 1e-9), (Automatic(law), 1e-8)):
        rest, rate = residual(score, p, x, t), score.time_derivative(x, t)
        assert rest.shape == x.shape
        assert rest.abs().max() < tolerance * rate.abs().max()


@each
def test_the_printed_form_lacks_one_term(p):
    t = 0.4 * p.T
    law, x = SLANTED.diffused(p), diffused_points(SLANTED, p, t, 50)
    s, J = law.jacobian(x, t)
    missing = -p.drift(t) * s + 0.5 * p.diffusion2(t) * (J @ s[..., None])[..., 0]
    rest = residual(law, p, x, t, "paper")
    torch.testing.assert_close(rest, missing, rtol=1e-7, atol=1e-7 * float(missing.abs().max()))
    assert rest.norm() > 0.1 * law.time_derivative(x, t).norm()


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.05, 4.0))
def test_printed_form_gives_half_on_every_centred_gaussian(t, variance):
    law = Mixture(gaussians=[(1, [0.0, 0.0], variance)]).diffused(PSM)
    x = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=F64)
    parts = terms(law, x, t)
    half = right_side(parts, PSM, x, t, "paper")
    size = float(parts.rate.abs().max()) + 1e-12
    torch.testing.assert_close(2 * half, parts.rate, rtol=1e-6, atol=1e-7 * size + 1e-11)


def test_the_standard_normal_cannot_tell_them_apart():
    law, x = Mixture(gaussians=[(1, [0.0, 0.0], 1.0)]).diffused(PSM), torch.randn(20, 2, dtype=F64)
    for form in FORMS:
        assert residual(law, PSM, x, 0.3, form).abs().max() < 1e-12


def test_a_finite_data_set_is_a_diffusion_too():
    data = TY().sample(40, torch.Generator().manual_seed(0))
    score, x = DiffusedData(data, PSM), diffused_points(TY(), PSM, 0.2, 30)
    rate = score.time_derivative(x, 0.2)
    assert residual(score, PSM, x, 0.2).abs().max() < 1e-9 * rate.abs().max()
    assert residual(score, PSM, x, 0.2, "paper").abs().max() > 0.05 * rate.abs().max()


def test_times_of_their_own():
    law, x = HG().diffused(PSM), diffused_points(HG(), PSM, 0.3, 5)
    t = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.9], dtype=F64)
    for form in FORMS:
        alone = torch.cat([residual(law, PSM, x[i : i + 1], float(t[i]), form) for i in range(5)])
        torch.testing.assert_close(residual(law, PSM, x, t, form), alone, rtol=1e-9, atol=1e-9)


# trained fields


@pytest.mark.parametrize("arch", [Plain(), Conditioned(), Plain(times=0)], ids=["plain", "conditioned", "timeless"])
@pytest.mark.parametrize(
    "partition", [SA, Partition([0.0, 0.2, 1.0]), Partition.points(5)], ids=["one", "two", "points"]
)
def test_a_network_is_differentiated_rightly(arch, partition):
    bank = Bank(arch, len(partition), seed=3, dtype=F64)
    score, x, h = (
        bank.score(partition, PSM),
        torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=F64),
        1e-6,
    )
    t = torch.linspace(0.05, 0.95, 40, dtype=F64)
    t = t + 1e-4 * (score.partition.block_of(t + 2 * h) != score.partition.block_of(t - 2 * h))  # keep off borders
    ahead, behind = score.score(x, t + h), score.score(x, t - h)
    torch.testing.assert_close(score.time_derivative(x, t), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)
    slopes = []
    for u in torch.eye(2, dtype=F64):
        slopes.append((score.divergence(x + h * u, t) - score.divergence(x - h * u, t)) / (2 * h))
    gap = (score.trace_gradient(x, t) - torch.stack(slopes, 1)).abs()
    # an ELU has a kink in its slope, which a difference may straddle at a point or two
    assert gap.quantile(0.9) < 1e-5 * max(1.0, float(score.trace_gradient(x, t).abs().max()))


def test_an_untrained_network_is_no_diffusion():
    score, x = Bank(Plain(), 2, seed=0).score(Partition([0, 0.1, 1]), PSM), torch.randn(30, 2, dtype=F64)
    t = torch.linspace(0.01, 0.99, 30, dtype=F64)
    rest = per_log_snr(residual(score, PSM, x, t), PSM, t)
    assert bool(rest.isfinite().all()) and rest.square().mean().sqrt() > 0.01
    with pytest.raises(ValueError, match="only one network of a bank can be differentiated at a time"):
        score.differentiable(x, t)


@each
def test_the_unit_does_not_depend_on_the_pace(p):
    # eps* as a function of log SNR at a fixed x: the same for every process with alpha = 1, whatever its pace
    law, t = SLANTED.diffused(p), 0.5 * p.T
    x, h = diffused_points(SLANTED, p, t, 10), 1e-6 * p.T
    rate = (p.log_snr(t + h) - p.log_snr(t - h)) / (2 * h)
    value = torch.ones_like(x)
    torch.testing.assert_close(per_log_snr(value, p, t), value * p.sigma(t) / -rate, rtol=1e-6, atol=1e-9)
    assert bool(law.score(x, t).isfinite().all())


# carrying a score along


@pytest.mark.parametrize("p", [PSM, VE(0.01, 3.0)], ids=["VP", "VE"])
def test_the_equation_alone_carries_a_score(p):
    errors, t0, t1 = [], 0.2, 0.4
    for n in (101, 201):
        line = torch.linspace(-4, 4, n, dtype=F64)
        start, end = (two.diffused(p).score(line[:, None], t)[:, 0] for t in (t0, t1))
        errors.append(float((evolve(line, start, p, t0, t1) - end).norm() / end.norm()))
        wrong = evolve(line, start, p, t0, t1, "paper")
        assert (wrong - end).norm() > 0.05 * end.norm()
    assert errors[1] < 3e-3
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.25  # central differences


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda law, x: residual(law, PSM, x, 0.3, "right"), "unknown form 'right' .* use one of paper, corrected"),
        (lambda law, x: residual(law, PSM, x, 0.0), "no time derivative at t = 0.*take later times"),
        (lambda law, x: residual(law, PSM, x[None], 0.3), r"x must have shape \(n, d\), got \(1, 3, 2\)"),
        (lambda law, x: residual(HG().diffused(OTFlow()), OTFlow(), x, 1.0), "the drift .* take earlier times"),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(HG().diffused(PSM), torch.zeros(3, 2, dtype=F64))
    assert "\n" not in str(caught.value)
