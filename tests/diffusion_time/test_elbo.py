"""The parts of the evidence bound against closed forms, the identities between them, and Monte Carlo."""

import math
from dataclasses import replace

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, TY, Mixture
from psmlib.diffusion_time.elbo import elbo, elbo_curve, gap, gap_slope, normaliser
from psmlib.diffusion_time.prior_kl import mean_log_density, prior_kl
from psmlib.exact.expectations import Quadrature, component_average
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import EDM, VE, VP, Shortened, SubVP
from psmlib.score import Score

F64 = torch.float64
LINE = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)], name="line")
PROCESSES = [VP(), VP(0.0, 10.0), SubVP(), VE(0.01, 50.0), VE(0.05, 10.0)]
TIMES = [0.1, 0.4, 1.0]
each = pytest.mark.parametrize("p", PROCESSES, ids=repr)


def normal(dim, mean, variance):
    return Mixture(gaussians=[(1.0, [mean] * dim, variance)])


@each
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_gaussian_in_closed_form(p, dim):
    m, v, eps = 0.7, 0.3, 1e-3
    if dim == 2:
        rule = Quadrature(normal(dim, m, v), step=0.3)
    else:  # in three dimensions by Sobol points alone
        rule = Quadrature(normal(dim, m, v), m=8 if dim == 3 else None)
    bound = elbo(rule.toy, p, 0.4, eps=eps, rule=rule)
    alpha2, s2, start = float(p.alpha(0.4)) ** 2, float(p.sigma(0.4)) ** 2, float(p.sigma(eps)) ** 2
    total, first = alpha2 * v + s2, float(p.alpha(eps)) ** 2 * v + start
    R = 0.5 * dim * math.log(s2 / start)
    assert pytest.approx(R, rel=1e-12) == bound.R
    # K = R - (growth of the entropy)
    loose = dict(rel=1e-9, abs=1e-9) if dim < 3 else dict(rel=1e-9, abs=5 * bound.stderr["KL"] + 1e-9)
    assert pytest.approx(R - 0.5 * dim * math.log(total / first), rel=1e-8) == bound.K
    prior = Shortened(p, 0.4).prior_std ** 2
    KL = 0.5 * dim * ((alpha2 * m**2 + total) / prior - 1 - math.log(total / prior))
    assert pytest.approx(KL, **loose) == bound.KL
    assert bound.G == 0 and bound.I == bound.K
    if dim < 3:
        assert bound.log_data == pytest.approx(-0.5 * dim * math.log(2 * math.pi * math.e * v), rel=1e-9)
        assert bound.elbo == pytest.approx(bound.log_data - KL, rel=1e-7, abs=1e-8)
        assert abs(bound.residual) < 1e-7 * max(1, KL)


class Linear(Score):
    """The score -a (x - c): one parameter for all times."""

    native = "score"

    def __init__(self, process, a, c=0.0):
        self.process, self.a, self.c = process, a, c

    def predict(self, x, t):
        return -self.a * (x - self.c)


@pytest.mark.parametrize("p", [VP(), VE(0.05, 4.0)], ids=repr)
def test_gap_of_a_linear_score_in_closed_form(p):
    toy, a, eps, T = normal(1, 0.7, 0.3), 0.8, 0.01, 0.5
    t = torch.linspace(eps, T, 200_001, dtype=F64)
    total, mean = p.alpha(t) ** 2 * 0.3 + p.sigma(t) ** 2, 0.7 * p.alpha(t)
    # -a x against -(x - mean) / total: a linear function of x
    error = (1 / total - a) ** 2 * total + (a * mean) ** 2
    wanted = float(torch.trapezoid(0.5 * p.diffusion2(t) * error, t))
    score = Linear(p, a)
    assert gap(score, toy, p, T, eps=eps)[0] == pytest.approx(wanted, rel=1e-7)
    assert pytest.approx(wanted + elbo(toy, p, T, eps=eps).K, rel=1e-7) == elbo(toy, p, T, score=score, eps=eps).I
    h = 1e-4
    slope = (gap(score, toy, p, T + h, eps=eps)[0] - gap(score, toy, p, T - h, eps=eps)[0]) / (2 * h)
    assert gap_slope(score, toy, p, T)[0] == pytest.approx(slope, rel=1e-5)


def test_I_is_the_loss_of_denoising_score_matching():
    p, n, g = VP(), 200_000, torch.Generator().manual_seed(0)
    t = 0.1 + 0.4 * torch.rand(n, generator=g, dtype=F64)
    x0, eps = LINE.sample(n, g), torch.randn(n, 1, generator=g, dtype=F64)
    score = Linear(p, 0.9, 0.5)
    error = score.score(p.perturb(x0, t, eps), t)[:, 0] + eps[:, 0] / p.sigma(t)
    loss = 0.4 * 0.5 * p.diffusion2(t) * error**2
    found = elbo(LINE, p, 0.5, score=score, eps=0.1).I
    assert abs(float(loss.mean()) - found) < 4 * float(loss.std()) / n**0.5


@each
def test_the_sum_does_not_depend_on_T(p):
    curve = elbo_curve(LINE, p, TIMES)
    start = mean_log_density(LINE, p, 1e-5)[0]
    for bound in curve:
        total = bound.log_noise + bound.KL - bound.K + bound.R  # E log p_T - K + R
        assert total == pytest.approx(start, abs=2e-9)
        assert total + bound.reconstruction == pytest.approx(-LINE.entropy, abs=4e-9)
        assert bound.elbo == pytest.approx(bound.decomposed, abs=2e-9)


def test_recorded_figures():
    curve = elbo_curve(LINE, VP(0.1, 20.0), [0.2, 0.4, 0.6, 0.8, 1.0])
    for bound, kl in zip(curve, (1.92, 0.563, 0.0755, 0.00456, 0.000124), strict=True):
        assert pytest.approx(kl, rel=4e-3) == bound.KL
    for bound in elbo_curve(LINE, VP(0.1, 20.0), TIMES):
        assert bound.log_noise + bound.KL - bound.K + bound.R == pytest.approx(-0.8520, abs=1e-4)


@pytest.mark.parametrize("p", [VP(), VE(0.01, 50.0)], ids=repr)
def test_the_bound_does_not_depend_on_the_cut_off(p):
    found = [elbo(LINE, p, 0.5, eps=eps) for eps in (1e-2, 1e-4, 1e-6)]
    assert max(b.elbo for b in found) - min(b.elbo for b in found) < 1e-8
    # K and R are another matter
    assert found[1].R - found[0].R > 0.4 and found[2].K - found[1].K > 2
    assert abs(found[0].reconstruction) > 10 * abs(found[1].reconstruction) > 100 * abs(found[2].reconstruction) > 0


def test_in_the_plane_within_standard_errors():
    toy = HG().centred()
    curve = elbo_curve(toy, VP(), [0.05, 0.3, 1.0])
    for bound in curve:
        assert 0 < bound.stderr["K"] < 0.01
        assert abs(bound.residual) < 4 * bound.stderr["residual"]
        assert abs(bound.log_data + 0.953) < 0.004
    assert curve[2].KL < 1e-9 and curve[2].stderr["KL"] == 0
    # the two ways to take expectations
    grid, sobol = (prior_kl(toy, VP(), 0.2, rule=Quadrature(toy, **kw)) for kw in ({}, {"limit": 0, "m": 9}))
    assert grid[1] == 0 < sobol[1] < 0.002 and abs(grid[0] - sobol[0]) < 4 * sobol[1]
    fine = prior_kl(toy, VP(), 0.2, rule=Quadrature(toy, step=0.2, limit=1 << 15))
    assert grid[0] == pytest.approx(fine[0], abs=1e-7)


def test_boxes_have_a_reconstruction_term_of_first_order():
    # infinite Fisher information at t = 0: the entropy grows like sigma, not like sigma^2
    toy = Mixture(boxes=[(1.0, [0.0, 0.0], [0.5, 0.5], 0.0)])
    rule = Quadrature(toy, m=12, limit=0)
    z = torch.linspace(-9, 9, 20_001, dtype=F64)
    cdf = torch.special.ndtr(z)
    each_edge = float(torch.trapezoid(-torch.special.xlogy(cdf, cdf), z))
    for eps in (0.005, 0.02):
        found = elbo(toy, EDM(), 0.05, eps=eps, rule=rule).reconstruction
        assert found == pytest.approx(4 * eps * each_edge, rel=0.06)


def test_data_fed_in_without_noise_are_quoted_more_than_their_entropy():
    p, toy = VP(0.0, 10.0), TY().centred()
    rest = elbo(toy, p, 0.2, eps=0.05, rule=Quadrature(toy, limit=0, m=3, repeats=4))
    assert rest.log_data == -toy.entropy and rest.stderr["log_data"] == 0
    quoted = -component_average(toy, lambda x: toy.diffused(p).log_prob(x, 0.05), m=6)[0]
    assert toy.entropy < quoted < toy.entropy + rest.reconstruction + 0.2


def test_another_law_for_the_end():
    class Law:
        def __init__(self, toy, p, T):
            self.law, self.T = toy.diffused(p), T

        def log_prob(self, x):
            return self.law.log_prob(x, self.T)

    p = VP()
    true = elbo(LINE, p, 0.1, prior=Law(LINE, p, 0.1))
    assert abs(true.KL) < 1e-12 and true.elbo == pytest.approx(true.log_data, abs=2e-9)
    late = elbo_curve(LINE, p, [0.1, 0.2], priors=[Law(LINE, p, 0.15)] * 2)
    assert all(b.KL > 1e-3 and abs(b.residual) < 1e-8 for b in late)
    with pytest.raises(ValueError, match="1 priors for 2 times"):
        elbo_curve(LINE, p, [0.1, 0.2], priors=[Law(LINE, p, 0.1)])


def test_a_bank_has_a_gap_and_its_blocks_are_borders():
    p, blocks = VP(), Partition([0, 0.1, 0.4, 1])
    bank = Bank(Plain(dim=1, hidden=(8,)), 3, seed=0, dtype=F64)
    score = bank.score(blocks, p)
    whole = gap(score, LINE, p, 1.0, eps=0.01)[0]
    # piece by piece, each network alone on its block
    pieces = [gap(score.on_block((a + b) / 2), LINE, p, b, eps=a)[0] for a, b in ((0.01, 0.1), (0.1, 0.4), (0.4, 1.0))]
    assert whole == pytest.approx(sum(pieces), rel=1e-7) and min(pieces) > 1e-3
    single = bank.to(dtype=torch.float32).score(blocks, p)
    assert gap(single, LINE, p, 1.0, eps=0.01)[0] == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("p", [VP(), VE(0.1, 3.0)], ids=repr)
def test_optimal_gaps_grow_with_T(p):
    # Section 2.2: the best linear score for each T; I is quadratic in its slope, so three values give the optimum
    def optimal(T):
        a = [elbo(LINE, p, T, score=Linear(p, s), eps=0.05).I for s in (0.0, 1.0, 2.0)]
        best = (3 * a[0] - 4 * a[1] + a[2]) / (2 * (a[0] - 2 * a[1] + a[2]))
        return gap(Linear(p, best), LINE, p, T, eps=0.05)[0], best

    found = [optimal(T) for T in (0.1, 0.2, 0.4, 0.7, 1.0)]
    assert all(b[0] >= a[0] for a, b in zip(found, found[1:], strict=False)) and found[0][0] > 0
    # the optimum is one: its neighbours are worse; and not for all parameters is the gap of the longer time larger
    low, best = found[2]
    assert gap(Linear(p, 1.05 * best), LINE, p, 0.4, eps=0.05)[0] > low
    assert gap(Linear(p, found[4][1]), LINE, p, 1.0, eps=0.05)[0] < gap(Linear(p, 20.0), LINE, p, 0.1, eps=0.05)[0]


def test_the_normaliser_is_a_ratio_of_noise_levels():
    assert normaliser(VE(), 3, 0.5) == pytest.approx(3 * float((VE().sigma(0.5) / VE().sigma(1e-5)).log()), rel=1e-12)
    assert normaliser(VP(), 1, 0.5, eps=0.1) == pytest.approx(elbo(LINE, VP(), 0.5, eps=0.1).R, rel=1e-12)


def test_bad_times_are_refused():
    for times in ([], [0.4, 0.2], [0.4, 0.4]):
        with pytest.raises(ValueError, match="times must ascend"):
            elbo_curve(LINE, VP(), times)
    with pytest.raises(ValueError, match="eps = 0.5"):
        elbo(LINE, VP(), 0.4, eps=0.5)
    with pytest.raises(ValueError, match=r"T = 2 lies outside \(0, 1\]"):
        elbo(LINE, VP(), 2.0)


def test_parts_are_a_record():
    bound = elbo(LINE, VP(), 0.4)
    assert replace(bound, T=0.5).T == 0.5 and "stderr" not in repr(bound) and set(bound.stderr.values()) == {0.0}
