"""NLL and excess loss on toys, for scores with known results."""

import math

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, Mixture
from psmlib.evaluation.toys import Nll, Protocol, excess_loss, floor_of, log_ratio, status, summarise
from psmlib.exact.floors import irreducible_loss
from psmlib.nets.mlp import Plain
from psmlib.partition import SA
from psmlib.process import VP, OTFlow
from psmlib.score import Score

VP10 = VP(0.0, 10.0)


class GaussianGuess(Score):
    """The exact score of N(0, variance I), used on other data."""

    def __init__(self, variance, process):
        self.variance, self.process = variance, process

    def predict(self, x, t):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return sigma * x / (alpha**2 * self.variance + sigma**2)


def test_the_ratio_of_a_wrong_gaussian_is_the_kullback_leibler_divergence():
    # data N(0, 1), model N(0, v): KL = (log v + 1/v - 1) per axis over two axes / 2
    toy, v = Mixture(gaussians=[(1.0, (0.0, 0.0), 1.0)]), 0.5
    protocol = Protocol(t0=1e-6, steps=60, points=20000)
    found = summarise([log_ratio(GaussianGuess(v, VP10), toy, VP10, protocol)], floor_of(toy, VP10, protocol))
    expected = math.log(v) + 1 / v - 1
    assert found.excess == pytest.approx(expected, abs=4 * found.stderr + 1e-3)
    assert found.floor == pytest.approx(math.log(2 * math.pi * math.e), abs=1e-3)
    assert found.value == pytest.approx(found.floor + found.excess)


def test_the_exact_score_has_no_excess_for_both_processes():
    for process in (VP10, OTFlow()):
        ratio = log_ratio(HG().diffused(process), HG(), process, Protocol(points=200))
        assert abs(float(ratio.mean())) < 2e-3


def test_the_paired_error_is_far_below_that_of_a_plain_mean():
    toy = HG()
    protocol = Protocol(points=300, steps=30)
    ratio = log_ratio(GaussianGuess(0.9, VP10), toy, VP10, protocol)
    x = toy.sample(300, torch.Generator().manual_seed(protocol.seed))
    plain = toy.diffused(VP10).log_prob(x, protocol.t0) - ratio
    assert summarise([ratio], 0.0).stderr == pytest.approx(float(ratio.std()) / 300**0.5)
    assert float(plain.var()) > 0


def test_the_standard_error_holds_points_and_seeds():
    g = torch.Generator().manual_seed(0)
    seeds, points = 40, 50
    seed_effect = torch.randn(seeds, 1, generator=g, dtype=torch.float64) * 0.3
    point_effect = torch.randn(1, points, generator=g, dtype=torch.float64) * 2.0
    found = summarise(list(1.0 + seed_effect + point_effect), 0.0)
    assert found.stderr == pytest.approx(math.sqrt(0.09 / seeds + 4.0 / points), rel=0.3)
    assert found.seeds == seeds


def test_a_solve_that_leaves_the_plane_is_refused():
    with pytest.raises(ValueError, match="1 of 4 log likelihoods are not finite"):
        summarise([torch.tensor([0.0, 1.0, float("nan"), 2.0])], 0.0)


def test_status_words():
    near = Nll(0.611, 0.01, 0.48, 0.131, 3)
    assert status(near, "quick", 0.61) == "scaled_down"
    assert status(near, "paper", 0.61) == "reproduced"
    assert status(near, "paper", 0.625) == "within_noise"
    assert status(near, "paper", 0.64) == "differs"


def test_the_loss_is_irreducible_plus_excess():
    # E|eps_hat - eps|^2 = E|eps_hat - eps*|^2 + E|eps* - eps|^2, by the projection property
    toy, guess, t = HG(), GaussianGuess(0.5, VP10), 0.2
    g = torch.Generator().manual_seed(3)
    x0 = toy.sample(200_000, g)
    eps = torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    total = (guess.eps(VP10.perturb(x0, t, eps), t) - eps).square().mean(1)
    above = float(excess_loss(guess, toy, VP10, torch.tensor([t]), n=100_000)[0])
    least = irreducible_loss(toy, VP10, t)[0]
    assert above + least == pytest.approx(float(total.mean()), abs=5 * float(total.std()) / len(total) ** 0.5 + 2e-3)


def test_a_bank_is_measured_in_its_own_precision():
    score = Bank(Plain(), 1, seed=0).score(SA, VP10)
    ratio = log_ratio(score, HG(), VP10, Protocol(points=20, steps=4))
    assert ratio.dtype == torch.float64 and ratio.shape == (20,)
