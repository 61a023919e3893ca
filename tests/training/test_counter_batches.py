"""Batches from counter-based words: laws of times, noise and data, and equality of a bank with its parts."""

import pytest
import torch
from scipy import stats

from psmlib.bank.mlp_bank import Bank
from psmlib.data.images import load
from psmlib.data.toys import HG, TY, Mixture
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow
from psmlib.training.counter_batches import CounterBatches, from_words
from psmlib.training.objectives import Denoising, FlowMatching
from psmlib.training.recipe import Recipe
from psmlib.training.times import LogUniform, Uniform

F64 = torch.float64
P = VP(0.0, 10.0)
BLOCKS = Partition([0, 0.02, 0.1, 0.3, 1])
NET = Plain(hidden=(9, 8))


def batches(bank=None, data=None, process=P, partition=BLOCKS, objective=Denoising(), B=500, times=Uniform()):  # noqa: B008
    recipe = Recipe(process, partition, updates=50, objective=objective, batch_size=B, times=times)
    return CounterBatches(bank or Bank(NET, len(partition), dtype=F64), HG() if data is None else data, recipe)


@pytest.mark.parametrize(
    "data", [TY(), HG(), Mixture(gaussians=[(1, [0.5], 2.0), (3, [-1.0], 0.1)])], ids=["TY", "HG", "1-D"]
)
def test_points_of_words_have_the_density(data):
    """Kolmogorov-Smirnov along each axis against as many ordinary draws."""
    from psmlib.kernels.philox import words

    w = words(torch.tensor([4]), 0, 1, 20000, 2)[:, 0, 0]
    x = data.of_words(w[0], w[2 : 2 + 2 * -(-data.dim // 2)])
    y = data.sample(20000, torch.Generator().manual_seed(0))
    assert x.shape == y.shape
    for j in range(data.dim):
        assert stats.ks_2samp(x[:, j].numpy(), y[:, j].numpy()).pvalue > 1e-4
    torch.testing.assert_close(x.T.cov().reshape(y.T.cov().shape), data.cov.reshape(y.T.cov().shape), atol=0.05, rtol=0)


def test_what_is_drawn_is_what_training_asks_for():
    h, target, weight = batches().draw(slice(0, 4), 0, 20)  # (20, 4, 500, 4)
    assert weight is None
    for k in range(4):
        x, t = h[:, k, :, :2].flatten(0, 1), h[:, k, :, 2].flatten()
        low, high = BLOCKS.bounds(k)
        assert stats.kstest(t.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-4
        assert bool((t > low).all()) and bool((t <= high).all()) and torch.equal(h[:, k, :, 2], h[:, k, :, 3])
        eps = target[:, k].flatten(0, 1)
        for j in range(2):
            assert stats.kstest(eps[:, j].numpy(), "norm").pvalue > 1e-4
        x0 = (x - P.sigma(t)[:, None] * eps) / P.alpha(t)[:, None]
        inside = HG().log_prob(x0)
        assert abs(float(inside.mean()) + HG().entropy) < 0.05


def test_log_uniform_share():
    t = batches(times=LogUniform(0.5)).draw(slice(0, 1), 0, 40)[0][..., 2].flatten()
    uniform = stats.uniform(0, 0.02).cdf
    log_uniform = stats.loguniform(1e-5, 0.02).cdf
    assert stats.kstest(t.numpy(), lambda s: 0.5 * uniform(s) + 0.5 * log_uniform(s)).pvalue > 1e-4


def test_points_of_time_and_rows_of_a_tensor():
    data = torch.arange(14.0, dtype=F64).reshape(7, 2)
    still = Partition.points([1e-9, 1.0])  # hardly any noise at the first point
    h, _, _ = batches(Bank(Plain(hidden=(9, 8)), 2, dtype=F64), data, partition=still).draw(slice(0, 1), 0, 20)
    rows = (h[..., 0].flatten() / 2).round()
    assert bool((h[..., 2] == 1e-9).all())
    assert stats.chisquare(torch.bincount(rows.long(), minlength=7).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("native", ["eps", "velocity"])
def test_targets_leave_out_the_skip(native):
    process, objective = (P, Denoising()) if native == "eps" else (OTFlow(), FlowMatching())
    arch = Conditioned(hidden=(9, 8), octaves=0, log_time=False)
    drawn = batches(Bank(arch, 4, native=native, dtype=F64), process=process, objective=objective)
    bare = batches(Bank(NET, 4, native=native, dtype=F64), process=process, objective=objective)
    (h, target, _), (g, full, _) = (b.draw(slice(0, 4), 3, 2) for b in (drawn, bare))
    t = g[..., 2].flatten()
    skip = arch.skip(t, process, native).reshape(*g.shape[:3], 1)
    torch.testing.assert_close(target + skip * g[..., :2], full)
    torch.testing.assert_close(h[..., :2], g[..., :2])


def test_a_part_draws_what_the_whole_draws():
    whole = batches(Bank(NET, 4, dtype=F64)).draw(slice(0, 4), 10, 6)
    for only in (range(0, 1), range(1, 4), range(2, 3)):
        part = batches(Bank(NET, 4, dtype=F64, only=only)).draw(slice(0, len(only)), 12, 3)
        for a, b in zip(whole[:2], part[:2], strict=True):
            assert torch.equal(a[2:5, only.start : only.stop], b)


def test_which_data_can_be_drawn_from_words():
    assert from_words(HG()) and from_words(torch.zeros(3, 2)) and not from_words(load("digits").draws(flat=True))


def test_batches_drawn_ahead_are_those_asked_for(monkeypatch):
    """As on an accelerator, where few networks have several chunks drawn at once."""
    made, drawn = batches(B=8), []
    draw = made.draw
    monkeypatch.setattr(made, "at_once", lambda networks, updates: 4 * updates)
    monkeypatch.setattr(made, "draw", lambda *asked: drawn.append(asked) or draw(*asked))
    whole, part = slice(0, 4), slice(1, 3)
    for asked in ((whole, 0, 5), (whole, 5, 5), (whole, 15, 5), (whole, 18, 5), (part, 18, 2), (whole, 0, 1)):
        for a, b in zip(made.take(*asked)[:2], draw(*asked)[:2], strict=True):
            assert torch.equal(a, b) and a.is_contiguous()
    assert [first for _, first, _ in drawn] == [0, 18, 18, 0]
