"""Expectations by grids and Sobol points against closed forms and each other, and integrals over log SNR."""

import math

import pytest
import torch

from psmlib.data.toys import HG, Mixture
from psmlib.exact.expectations import (
    Quadrature,
    component_average,
    estimate,
    expectation,
    time_rule,
    weighted_sum,
)
from psmlib.partition import TPSM_B
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
LINE = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)], name="line")
BOX = Mixture(boxes=[(1, [0.3, -0.2], [0.5, 0.2], 30.0)], name="box")
SPACE = Mixture(gaussians=[(1, [0.5, 0.0, -0.5], 0.3), (2, [-0.5, 0.1, 0.2], 0.1)], name="space")
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)
EVERY = [VP(0.0, 10.0), VP(), SubVP(), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
each = pytest.mark.parametrize("p", [VP(), SubVP(), VE(0.05, 4.0), EDM(3.0)], ids=repr)


def moments(toy, p, t):
    """E x and E|x|^2 of x_t."""
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    return alpha * toy.mean, alpha**2 * float(toy.cov.trace() + toy.mean.square().sum()) + toy.dim * sigma**2


@each
@pytest.mark.parametrize("toy", [LINE, HG()], ids=lambda toy: toy.name)
def test_moments_on_a_grid_are_exact(p, toy):
    rule, t = Quadrature(toy), 0.4 * p.T
    x, weight = rule.points(p, t)
    assert len(x) == 1 and float(weight.sum()) == pytest.approx(1, abs=1e-11)
    mean, second = moments(toy, p, t)
    assert float(expectation(rule, p, t, lambda x: x[:, 0])) == pytest.approx(float(mean[0]), abs=1e-9)
    assert float(expectation(rule, p, t, lambda x: x.square().sum(1))) == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("toy", [LINE, HG(), BOX, SPACE], ids=lambda toy: toy.name)
def test_moments_by_sobol_points_lie_within_their_errors(toy):
    p, rule = VP(), Quadrature(toy, limit=0, m=7)
    x, weight = rule.points(p, 0.1)
    assert x.shape[0] == 8 and torch.allclose(weight.sum(1), torch.ones(8, dtype=F64))
    mean, second = moments(toy, p, 0.1)
    for f, wanted in ((lambda x: x[:, -1], float(mean[-1])), (lambda x: x.square().sum(1), second)):
        found, error = estimate(expectation(rule, p, 0.1, f))
        assert 0 < error < 0.01 and abs(found - wanted) < 5 * error


@pytest.mark.parametrize("p", EVERY, ids=lambda p: type(p).__name__)
def test_moments_by_component(p):
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


def test_errors_are_those_of_repeats():
    many = Quadrature(HG(), limit=0, m=4, repeats=64)
    values = expectation(many, VP(), 0.2, lambda x: (3 * x[:, 0]).cos())
    few = [estimate(part) for part in values.split(8)]
    spread = float(torch.tensor([mean for mean, _ in few], dtype=F64).std())
    claimed = sum(error**2 for _, error in few) ** 0.5 / len(few) ** 0.5
    assert spread == pytest.approx(claimed, rel=0.8)
    assert estimate(torch.tensor([2.0]))[1] == 0


def test_a_grid_serves_where_noise_is_wide_enough():
    p, rule = VP(), Quadrature(HG())
    assert [len(rule.points(p, t)[0]) for t in (0.01, 0.5)] == [8, 1]
    assert len(Quadrature(LINE).data()[0]) == 1  # a smooth density needs no noise
    assert len(Quadrature(BOX).data()[0]) == 8  # edges have no scale
    assert rule.points(p, 0.01)[0].shape[1] < rule.data()[0].shape[1]


@pytest.mark.parametrize("toy", [LINE, BOX], ids=lambda toy: toy.name)
def test_entropies_of_data(toy):
    found, error = estimate(weighted_sum(Quadrature(toy).data(), toy.log_prob))
    assert found == pytest.approx(-toy.entropy, abs=5 * error + 2e-4)


def test_laws_are_made_once_and_kept_apart():
    rule = Quadrature(LINE)
    assert rule.law(VP()) is rule.law(VP()) and rule.law(VP()) is not rule.law(VE())


EVERY = [VP(), VP(0.0, 10.0), SubVP(), VE(), RVE(0.01, 5.0, 0.1), RVE(), EDM(3.0), OTFlow()]


@pytest.mark.parametrize("p", EVERY, ids=repr)
def test_time_integrals(p):
    edges = [1e-4 * p.T, 0.3 * p.T, 0.9 * p.T]
    if isinstance(p, RVE):
        edges = [0.5 * p.eps, 3 * p.eps, 0.9]
    t, weight, piece = time_rule(p, edges)
    for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        inner = piece == i
        assert bool(((t[inner] > a) & (t[inner] < b)).all())
        # of one and of a function of log SNR, whose integral is known
        lam = [float(p.log_snr(s)) for s in (a, b)]
        assert float(weight[inner].sum()) == pytest.approx(lam[0] - lam[1], rel=1e-8)
        found = float((weight * (p.log_snr(t) / 3).sin())[inner].sum())
        assert found == pytest.approx(3 * (math.cos(lam[1] / 3) - math.cos(lam[0] / 3)), abs=1e-6)


def test_time_integrals_converge_in_the_fourth_order_and_beyond():
    # exp(-1 / t) has no short expansion in log t; the panels are a unit of log SNR at most
    p = EDM(1.0)
    t, weight, _ = time_rule(p, [0.1, 1.0])
    u = torch.linspace(math.log(0.1), 0.0, 200_001, dtype=F64)
    wanted = float(torch.trapezoid(2 * torch.exp(-(-u).exp()), u))
    assert float((weight * torch.exp(-1 / t)).sum()) == pytest.approx(wanted, rel=1e-6)


def test_borders_split_the_integral():
    t, weight, piece = time_rule(VP(), [1e-3, *TPSM_B.edges[1:]])
    assert piece.unique().tolist() == [0, 1, 2, 3]
    blocks = TPSM_B.block_of(t)
    assert torch.equal(blocks, piece)
    step = float((weight * blocks).sum())  # a function with jumps, integrated exactly
    wanted = sum(
        k * float(VP().log_snr(a) - VP().log_snr(b)) for k, (a, b) in enumerate(map(TPSM_B.bounds, range(4))) if k
    )
    assert step == pytest.approx(wanted, rel=1e-9)
