"""The measurements for the property table, on cases with known results."""

import itertools
import math

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.cnf import differentiable
from psmlib.benchmarks.costs import denoising_update
from psmlib.data.toys import Mixture
from psmlib.evaluation.properties import dependence, disagreement, turned, turning_error, turns_of_diffusion
from psmlib.machine.streams import stream
from psmlib.nets.mlp import Plain
from psmlib.partition import SA, Partition
from psmlib.process import VP

F64 = torch.float64
PSM = VP(0.0, 10.0)
SMALL = Plain(hidden=(30, 30))
POINTS = torch.randn(2000, 2, generator=stream(0))
SADDLE = POINTS * torch.tensor([1.0, -1.0])


def error(field, turns, *, partition=SA, updates=400, bank=None, **settings):
    bank = bank or Bank(SMALL, len(partition), seed=1)
    return turning_error(bank, partition, POINTS, field, turns, updates=updates, lr=3e-3, **settings)


def test_turning_is_the_matrix_of_the_angle():
    angle = torch.tensor([0.3, -2.0], dtype=F64)
    R = torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], 1)
    v = torch.randn(2, 2, generator=stream(1), dtype=F64)
    torch.testing.assert_close(turned(v, angle), (R @ v[..., None])[..., 0])


def test_a_field_that_looks_the_same_turned_is_no_harder():
    still, turning = (float(error(POINTS, turns)) for turns in (0, 20))
    assert still < 0.07 and turning < 0.07


def test_a_saddle_is_harder_the_faster_it_turns_and_blocks_make_it_easier():
    one = [float(error(SADDLE, turns)) for turns in (0, 0.5, 4)]
    assert one[0] < 0.1 and one[0] < one[1] < one[2] and one[2] > 0.7
    cut = float(error(SADDLE, 4, partition=Partition.equal(16), blocks=[5]))
    assert cut < 0.85 * one[2]


def test_an_unturned_target_at_time_zero_is_the_field_itself():
    # a block that ends just after 0 sees no turn, whatever its speed
    short = Partition([0, 1e-9, 1])
    assert float(error(SADDLE, 4, partition=short, blocks=[0])) < 0.1


def test_after_a_quarter_of_a_turn_a_saddle_is_its_opposite():
    bank, late = Bank(SMALL, 2, seed=1), Partition([0, 1 - 1e-9, 1])
    assert float(error(SADDLE, 0.25, partition=late, blocks=[1], bank=bank)) < 0.1
    found = bank.score(late, PSM).eps(POINTS, 1.0)
    assert (found + SADDLE).norm() < 0.1 * SADDLE.norm()


def test_blocks_draw_for_themselves():
    bank = Bank(SMALL, 2, seed=1)
    bank.params[1] = bank.params[0]
    error(SADDLE, 0, partition=Partition.equal(2), updates=5, bank=bank)
    assert not torch.equal(bank.params[0], bank.params[1])


def test_only_the_chosen_blocks_are_trained_and_alike_runs_are_alike():
    bank, partition = Bank(SMALL, 3, seed=1), Partition.equal(3)
    before = bank.params.clone()
    first = error(SADDLE, 1, partition=partition, blocks=[2, 0], updates=5, bank=bank)
    assert first.shape == (2,)
    assert [bool((a == b).all()) for a, b in zip(bank.params, before, strict=True)] == [False, True, False]
    again = error(SADDLE, 1, partition=partition, blocks=[0, 2], updates=5)
    assert torch.equal(first, again.flip(0))
    other = error(SADDLE, 1, partition=partition, blocks=[0, 2], updates=5, seed=1)
    assert not torch.equal(again, other)


def test_the_turns_of_a_diffused_gaussian():
    # N(m, I) stays N(alpha m, I): eps = sigma (x - alpha m), turned about 0: sigma (x - alpha R m)
    m, t0, unit = 2.0, 0.05, 0.3
    toy = Mixture(gaussians=[(1, [m, 0.0], 1.0)])
    t = torch.linspace(t0, 1, 20_001, dtype=F64)
    rate = (PSM.sigma_rate(t).square() + (PSM.sigma(t) * PSM.alpha_rate(t) * m).square() / 2).sqrt()
    turn = 2 * math.pi * float(PSM.sigma(unit) * PSM.alpha(unit)) * m / math.sqrt(2)
    found = turns_of_diffusion(toy, PSM, t0, unit, points=4000, times=200)
    assert found == pytest.approx(float(torch.trapezoid(rate, t)) / turn, rel=0.03)


def test_dependence_is_exact_where_the_gradient_is_linear_and_puts_everything_back():
    W = torch.tensor([[3.0, 4.0]], dtype=F64)
    idle, kept = torch.ones(5, dtype=F64), W.clone()
    assert dependence(lambda: [2 * W], [W, idle], size=0.25) == pytest.approx(0.25)
    assert dependence(lambda: [2 * W], [idle], size=0.25) == 0.0
    assert torch.equal(W, kept) and torch.equal(idle, torch.ones(5, dtype=F64))


def test_parameters_come_back_even_after_an_error():
    W, calls = torch.ones(3), []

    def gradient():
        calls.append(W.clone())
        if len(calls) == 2:
            raise RuntimeError("no gradient")
        return [W]

    with pytest.raises(RuntimeError):
        dependence(gradient, [W])
    assert torch.equal(W, torch.ones(3)) and not torch.equal(calls[1], calls[0])


def test_blocks_of_a_bank_do_not_depend_on_each_other_and_one_network_does():
    bank, x0 = Bank(SMALL, 2), POINTS[:64]
    (early, own), (_, other) = (differentiable(bank, PSM, k) for k in (0, 1))
    eps, t = torch.randn(64, 2, generator=stream(2)), torch.full((64,), 0.05)

    def gradient():
        loss = (early(PSM.perturb(x0, t, eps), t) - eps).square().mean()
        return torch.autograd.grad(loss, own)

    assert dependence(gradient, [other]) == 0.0 and dependence(gradient, [own]) > 0.001


def test_trainings_that_agree_have_no_disagreement():
    x = torch.randn(4000, 2, generator=stream(3), dtype=F64)
    assert disagreement([x, x, x]) == (0, 0)
    found = disagreement([x, x + 0.1 * math.sqrt(2)])
    assert found.value == pytest.approx(0.1, rel=0.05) and found.stderr is None  # one pair says nothing of its error
    with pytest.raises(ValueError, match="^a disagreement takes the codes of two trainings or more, got 1$"):
        disagreement([x])


def test_the_error_of_a_disagreement_is_its_spread_over_sets_of_trainings():
    def trainings(seed, count=5):
        """Codes that share a map but for noise of a size of their own, so that pairs are correlated."""
        g = stream(seed)
        x = torch.randn(500, 2, generator=stream(9), dtype=F64)
        sizes = 0.2 + 0.3 * torch.rand(count, generator=g, dtype=F64)
        return [x + size * torch.randn(x.shape, generator=g, dtype=F64) for size in sizes]

    found = [disagreement(trainings(seed)) for seed in range(200)]
    spread = torch.tensor([f.value for f in found]).std()
    said = sum(f.stderr**2 for f in found) / len(found)
    assert 0.8 < said**0.5 / spread < 1.3 and found[0].df == 4 and found[0].seeds == 5
    pairs = torch.tensor([(a - b).norm() for a, b in itertools.combinations(trainings(0), 2)])
    assert found[0].stderr > 1.2 * pairs.std() / pairs.mean() * found[0].value / 10**0.5  # ten independent pairs


def test_an_update_with_no_rate_leaves_dependence_alone():
    bank = Bank(SMALL, 1)
    predict, params = differentiable(bank, PSM)
    before = bank.params.clone()
    update = denoising_update(predict, [params], PSM, POINTS[:8], torch.full((8,), 0.5), lr=0.0)
    dependence(lambda: [torch.tensor([update()])], [params])
    assert torch.equal(bank.params, before)
