"""NLL and excess loss on toys, for scores with known results."""

import math

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, Mixture
from psmlib.evaluation.toys import (
    Protocol,
    Reference,
    Scored,
    border_squares,
    excess_loss,
    log_ratio,
    reference,
    residual_by_density,
    residual_squares,
    summarise,
)
from psmlib.exact.irreducible_loss import irreducible_loss
from psmlib.nets.mlp import Plain
from psmlib.partition import SA, TPSM_A
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
    found = summarise([log_ratio(GaussianGuess(v, VP10), toy, VP10, protocol)], reference(toy, VP10, protocol))
    # the prior at T is N(0, 1), a hair wider than this model's own law there
    model = v / float(VP10.alpha(1.0) ** 2 * v + VP10.sigma(1.0) ** 2)
    expected = math.log(model) + 1 / model - 1
    assert found.excess == pytest.approx(expected, abs=4 * found.stderr + 1e-4)
    entropy = math.log(2 * math.pi * math.e)
    assert (found.exact, found.bound) == (pytest.approx(entropy, abs=2e-5), pytest.approx(entropy, abs=2e-5))
    assert found.value == pytest.approx(found.exact + found.excess)
    assert found.reference.gaussian == pytest.approx(entropy)
    assert not found.learned.value > 0, "the best Gaussian is the truth here"


def test_the_exact_score_has_no_excess_for_both_processes():
    for process in (VP10, OTFlow()):
        ratio = log_ratio(HG().diffused(process), HG(), process, Protocol(points=200))
        assert abs(float(ratio.mean())) < 2e-3


def test_the_control_variate_helps_near_the_truth_and_does_no_harm_far_from_it():
    # far from the truth a plain difference, beta = 1, is worse than no control variate at all
    toy, protocol = HG(), Protocol(points=400, steps=30)
    known = reference(toy, VP10, protocol)
    exact, far = toy.diffused(VP10), GaussianGuess(0.9, VP10)
    near = summarise([log_ratio(exact, toy, VP10, protocol)], known)
    assert near.stderr < 0.02 * near.plain and near.value == pytest.approx(known.exact, abs=2e-3)
    ratio = log_ratio(far, toy, VP10, protocol)
    found = summarise([ratio], known)
    assert found.stderr <= found.plain < float(ratio.std()) / 400**0.5
    many = [summarise([log_ratio(far, toy, VP10, Protocol(points=60, steps=20, seed=s))],
                      reference(toy, VP10, Protocol(points=60, steps=20, seed=s))) for s in range(40)]  # fmt: skip
    values = torch.tensor([one.value for one in many])
    assert float(values.std()) == pytest.approx(sum(one.stderr for one in many) / 40, rel=0.3)


def test_the_standard_error_holds_points_and_seeds():
    g = torch.Generator().manual_seed(0)
    seeds, points = 40, 50
    seed_effect = torch.randn(seeds, 1, generator=g, dtype=torch.float64) * 0.3
    point_effect = torch.randn(1, points, generator=g, dtype=torch.float64) * 2.0
    known = Reference(0.0, 0.0, 1.0, torch.randn(points, generator=g, dtype=torch.float64))
    found = summarise(list(1.0 + known.log_prob + seed_effect + point_effect), known)
    assert found.stderr == pytest.approx(math.sqrt(0.09 / seeds + 4.0 / points), rel=0.3)
    assert (found.seeds, found.n) == (seeds, points) and points - 2 < found.df < points + seeds


def test_a_solve_that_leaves_the_plane_is_refused():
    with pytest.raises(ValueError, match="1 of 4 log likelihoods are not finite"):
        summarise([torch.tensor([0.0, 1.0, float("nan"), 2.0])], Reference(0.0, 0.0, 1.0, torch.zeros(4)))


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


def test_methods_are_compared_over_the_seeds_that_they_share():
    known = Reference(exact=0.5, entropy=0.4, gaussian=2.0, log_prob=torch.tensor([0.0, -1.0, -2.0]))
    better, worse = ([torch.rand(3, generator=torch.Generator().manual_seed(s)) for s in range(k)] for k in (2, 3))
    worse = [ratio + 0.25 for ratio in worse]
    runs = {("TY", seed, "a"): r for seed, r in enumerate(better)} | {("TY", s, "b"): r for s, r in enumerate(worse)}
    scored = Scored(runs, {"TY": known})
    assert scored.gain("TY", "a", "b").value == pytest.approx(0.25) and scored.gain("TY", "a", "b").seeds == 2
    assert scored.nll("TY", "b") == summarise(worse, known)
    assert scored.has("TY", "a", "b") and not scored.has("TY", "c") and not scored.has("HG", "a")
    assert not Scored({("TY", 0, "a"): better[0], ("TY", 1, "b"): worse[1]}, {"TY": known}).has("TY", "a", "b")
    (title, by), *_ = scored.learned("TY", {"four": "a"}).items()
    assert title == "four over the best Gaussian" and by == scored.nll("TY", "a").learned


def test_residuals_are_those_of_the_equation_and_sorted_by_density():
    toy, t = Mixture(gaussians=[(1.0, (0.0, 0.0), 0.25)]), 0.3
    guess = GaussianGuess(0.25, VP10)
    assert residual_squares(guess, toy, VP10, t, 9).max() < 1e-20

    # the score of a Gaussian too narrow that does not widen in time: its residual is linear in x
    class Still(Score):
        process = VP10

        def predict(self, x, t):
            return VP10.sigma(torch.as_tensor(t)) * x / 0.25

    bands = residual_by_density(Still(), toy, VP10, t, 5)
    assert bands.shape == (4, 5) and (bands.max(1).values[1:] < bands.min(1).values[:-1]).all()


def test_networks_at_a_border_differ_by_less_than_the_sum_of_their_errors():
    toy, bank = HG(), Bank(Plain(), 2, seed=1)
    found = border_squares(bank.score(TPSM_A, VP10), toy, VP10, TPSM_A.edges, n=50)
    assert list(found) == list(TPSM_A.edges[1:-1])
    squares = found[TPSM_A.edges[1]]
    jump, left, right = (squares[what].mean().sqrt() for what in ("jump", "error left", "error right"))
    assert 0 < jump <= left + right
    alike = border_squares(Bank(Plain(), 1).score(SA, VP10), toy, VP10, SA.edges, n=5)
    assert alike == {}, "one block has no border"
