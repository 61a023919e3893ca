"""Training against plain automatic differentiation, exact losses, and itself cut up in every way."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, Mixture
from psmlib.kernels.fused_updates import FusedUpdates
from psmlib.machine.streams import stream
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow
from psmlib.training import CHUNK, Progress, fit
from psmlib.training.batches import draw_times, mlp_batch, noised
from psmlib.training.counter_batches import CounterBatches, from_words
from psmlib.training.mlp_steps import MLPSteps
from psmlib.training.objectives import Denoising, FlowMatching
from psmlib.training.optim import OPTIMISERS, Adam
from psmlib.training.recipe import Recipe
from psmlib.training.times import LogUniform, Uniform

F64 = torch.float64
P = VP(0.0, 10.0)
BLOCKS = Partition([0, 0.1, 1])
NET = Plain(hidden=(9, 8))


def run(bank=None, partition=BLOCKS, data=None, process=P, stop: int | None = None, **kw) -> tuple[Bank, Progress]:
    """Trains a small bank; with ``stop``, walks away after so many chunks."""
    bank = bank or Bank(NET, len(partition))
    kw = {"updates": 120, "batch_size": 16, **kw}
    for chunk, progress in enumerate(fit(bank, HG() if data is None else data, process, partition, **kw), 1):  # noqa: B007
        if chunk == stop:
            break
    return bank, progress


# The steps of one network -----------------------------------------------------------------------------------


class Fresh:
    """A density that cannot be drawn from words."""

    def sample(self, n, generator):
        return HG().sample(n, generator)


@dataclass(frozen=True)
class Early(Uniform):
    """Early times more often, weighted so that the mean loss is that of uniform times."""

    weighted = True

    def draw(self, u, low, high):
        return low + (high - low) * (1 - u[0]) ** 2

    def weight(self, t, low, high):
        return 2 * ((t - low) / (high - low)).sqrt()


def batches_of(bank: Bank, data, recipe: Recipe, k: int, chunk: int):
    """Inputs, targets and weights of network k for a chunk. Shapes: (CHUNK, B, ...)."""
    if from_words(data):
        drawn = CounterBatches(bank, data, recipe).draw(slice(k, k + 1), chunk * CHUNK, CHUNK)
        return [None if v is None else v[:, 0] for v in drawn]
    x, t, target, weight = noised(bank, data, recipe, k, CHUNK, stream(0, k, 1, chunk))
    drawn = *mlp_batch(bank, x, t, target, recipe.process), weight
    return [None if v is None else v.unflatten(0, (CHUNK, -1)) for v in drawn]


def reference(bank: Bank, k: int, data, recipe: Recipe):
    """Network k alone: torch layers, automatic differentiation and torch's Adam on the same batches."""
    net, at = [], 0
    for a, b in itertools.pairwise(bank.arch.widths):
        linear = torch.nn.Linear(a, b, dtype=F64)
        linear.weight.data = bank.params[k, at : at + a * b].reshape(a, b).T.clone()
        linear.bias.data = bank.params[k, at + a * b : at + a * b + b].clone()
        at += a * b + b
        net += [linear, torch.nn.ELU()]
    net = torch.nn.Sequential(*net[:-1])
    optimiser, losses, average = torch.optim.Adam(net.parameters(), lr=1.0), [], None

    def flat() -> Tensor:
        return torch.cat([torch.cat([m.weight.T.flatten(), m.bias]) for m in net[::2]]).detach()

    average = flat()
    for i in range(recipe.updates):
        if i % CHUNK == 0:
            h, target, weight = batches_of(bank, data, recipe, k, i // CHUNK)
        error = (net(h[i % CHUNK]) - target[i % CHUNK]).square()
        loss = (error if weight is None else error * weight[i % CHUNK][:, None]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = recipe.rate(i)
        optimiser.step()
        losses.append(loss.item())
        average = recipe.ema * average + (1 - recipe.ema) * flat()
    return flat(), average, torch.tensor(losses, dtype=F64)


@pytest.mark.parametrize(
    "arch, objective, process, partition, times, data",
    [
        (NET, Denoising(), P, BLOCKS, LogUniform(0.3, 1e-4), HG()),
        (NET, Denoising(), P, BLOCKS, LogUniform(0.3, 1e-4), Fresh()),
        (NET, Denoising(), P, BLOCKS, Early(), HG()),
        (NET, Denoising(), P, BLOCKS, Early(), Fresh()),
        (Conditioned(hidden=(9, 8), octaves=3), FlowMatching(), OTFlow(), Partition([0, 0.1, 0.4, 1]), Uniform(), HG()),
        (Plain(hidden=(9, 8), times=0), Denoising(), P, Partition.points(2), Uniform(), HG()),
    ],
    ids=["plain", "generator", "weighted", "weighted, generator", "conditioned", "points"],
)
def test_every_network_takes_the_steps_of_a_plain_autograd_loop(arch, objective, process, partition, times, data):
    bank, seen, n = Bank(arch, len(partition), native=objective.native, dtype=F64), [], 70
    settings = dict(updates=n, batch_size=16, lr=3e-3, schedule="one_cycle", ema=0.9, times=times)
    recipe = Recipe(process, partition, objective=objective, **settings)
    wanted = [reference(bank, k, data, recipe) for k in range(len(partition))]
    for progress in fit(bank, data, process, partition, **settings):
        seen.append((progress.update, progress.loss))
        assert progress.bank is bank and progress.updates == n and progress.seconds > 0
    assert [update for update, _ in seen] == [50, 70]
    for k, (params, average, losses) in enumerate(wanted):
        assert torch.allclose(bank.params[k], params, rtol=1e-9, atol=1e-11)
        assert torch.allclose(progress.average.params[k], average, rtol=1e-9, atol=1e-11)
        found = torch.stack([loss[k] for _, loss in seen])
        assert torch.allclose(found, torch.stack([losses[:50].mean(), losses[50:].mean()]), rtol=1e-10)


def test_all_networks_in_one_launch_take_the_same_steps():
    """The accelerator's path: one batched call for the whole bank instead of a job for each network."""
    partition = Partition([0, 0.1, 0.3, 1])
    bank, progress = run(Bank(NET, 3, dtype=F64), partition, updates=50, ema=0.9, lr=1e-2)
    other = Bank(NET, 3, dtype=F64)
    moments, average = Adam(other.params), other.copy()
    step = MLPSteps(other, HG(), Recipe(P, partition, updates=50, batch_size=16, lr=1e-2, ema=0.9))
    loss = step.run(slice(0, 3), moments, torch.empty_like(other.params), average, 0, 50)
    assert torch.allclose(loss, progress.loss, rtol=1e-10)
    assert torch.allclose(other.params, bank.params, rtol=1e-9, atol=1e-11)
    assert torch.allclose(average.params, progress.average.params, rtol=1e-9, atol=1e-11)


def test_a_bank_equals_separate_runs():
    """A network depends on the seed, its index and its block alone: each of three is found in other company."""
    whole, _ = run(partition=Partition([0, 0.1, 0.3, 1]))
    for k, edges in [(0, [0, 0.1, 1]), (1, [0, 0.1, 0.3, 0.7, 1]), (2, [0, 0.05, 0.3, 1])]:
        other, _ = run(partition=Partition(edges))
        assert torch.equal(other.params[k], whole.params[k])
    single, _ = run(partition=Partition([0, 1]))
    assert not torch.allclose(single.params[0], whole.params[0]), "another block gives another network"


def test_seeds_of_the_run_and_of_the_bank_both_count():
    first, _ = run(seed=0)
    again, _ = run(seed=0)
    assert torch.equal(first.params, again.params)
    assert not torch.allclose(run(seed=1)[0].params, first.params)
    assert not torch.allclose(run(Bank(NET, 2, seed=1))[0].params, first.params)


@pytest.mark.parametrize("data", [HG(), torch.randn(50, 2)], ids=["density", "points"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_threads_change_nothing(data, optimiser):
    partition = Partition.equal(5)
    one, a = run(partition=partition, data=data, ema=0.99, optimiser=optimiser, workers=1)
    two, b = run(partition=partition, data=data, ema=0.99, optimiser=optimiser, workers=2)
    assert torch.equal(one.params, two.params) and torch.equal(a.loss, b.loss)
    assert torch.equal(a.average.params, b.average.params)


# What is learnt, and what from ------------------------------------------------------------------------------


def gaussian(process, t: Tensor, s: float, native: str) -> tuple[Tensor, Tensor]:
    """Data N(0, s^2): x_0, eps and so target and x_t are jointly Gaussian. E[target | x_t] / x_t, Var(target | x_t)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    p, q = (process.alpha_rate(t), process.sigma_rate(t)) if native == "velocity" else (0 * t, 1 + 0 * t)
    var_x, var_y, cov = alpha**2 * s**2 + sigma**2, p**2 * s**2 + q**2, p * alpha * s**2 + q * sigma
    return cov / var_x, var_y - cov**2 / var_x


@pytest.mark.parametrize(
    "arch, native, process, partition",
    [
        (Plain(hidden=(24, 24)), "eps", P, BLOCKS),
        (Plain(hidden=(24, 24)), "velocity", OTFlow(), Partition([0, 1])),
        (Plain(hidden=(24, 24), times=0), "eps", P, Partition([0, 0.1, 0.5, 1], discrete=True)),
    ],
    ids=["eps", "velocity", "points"],
)
def test_the_loss_falls_to_the_exact_floor(arch, native, process, partition):
    s = 0.5
    data, bank = Mixture(gaussians=[(1.0, [0.0, 0.0], s**2)]), Bank(arch, len(partition), native=native)
    objective = FlowMatching() if native == "velocity" else Denoising()
    untrained = bank.copy()
    for _ in fit(bank, data, process, partition, updates=1200, batch_size=128, lr=1e-2, schedule="one_cycle", ema=0.99):
        pass
    for k in range(len(partition)):
        lo, hi = partition.bounds(k)
        t = times_of(partition, k, 40000, stream(7, k))
        x0, eps = data.sample(40000, stream(8, k)), torch.randn(40000, 2, dtype=F64, generator=stream(9, k))
        x, target = process.perturb(x0, t, eps), objective.target(process, x0, t, eps)
        mid = lo + (hi - lo) * (torch.arange(4000, dtype=F64) + 0.5) / 4000
        mid = torch.tensor([hi], dtype=F64) if partition.discrete else mid
        floor = float(gaussian(process, mid, s, native)[1].mean())
        excess = {}
        for name, b in (("trained", bank), ("untrained", untrained)):
            answer = b.score(partition, process).on_block(hi).predict(x, t)
            loss = (answer - target).square().mean(1)
            excess[name] = float((answer - gaussian(process, t, s, native)[0][:, None] * x).square().mean())
            noise = float(loss.std()) / 200
            assert abs(float(loss.mean()) - floor - excess[name]) < 4.5 * noise, "loss = floor + excess"
        assert excess["trained"] < 0.02 * floor + 5e-4 and excess["untrained"] > 0.1 * floor, (k, floor, excess)


def test_the_reported_loss_is_the_loss():
    """For data at the origin eps = x / sigma can be known, and the floor is nothing."""
    bank, kw = Bank(Plain(hidden=(24, 24)), 1), dict(updates=1500, batch_size=128, lr=1e-2, schedule="one_cycle")
    bank, progress = run(bank, Partition([0, 1]), data=torch.zeros(1, 2), **kw)
    recipe = Recipe(P, Partition([0, 1]), updates=1, batch_size=40000)
    x, t, target, _ = noised(bank, torch.zeros(1, 2), recipe, 0, 1, stream(3))
    h, target = mlp_batch(bank, x, t, target, P)
    loss = (bank.score(Partition([0, 1]), P).predict(h[:, :2], h[:, 2].double()) - target).square().mean()
    assert float(progress.loss[0]) == pytest.approx(float(loss), rel=0.2) and float(loss) < 0.05


def times_of(partition, k, n, generator, times=Uniform()) -> Tensor:  # noqa: B008
    return draw_times(Recipe(VP(0.0, 10.0), partition, updates=1, batch_size=n, times=times), k, 1, generator)[0]


def test_times_are_uniform_within_the_block():
    for k, (lo, hi) in enumerate([(0.0, 0.1), (0.1, 1.0)]):
        t = times_of(BLOCKS, k, 20000, stream(0, k))
        assert t.dtype == F64 and float(t.min()) > lo and float(t.max()) <= hi
        assert stats.kstest(t.numpy(), stats.uniform(lo, hi - lo).cdf).pvalue > 1e-3
        assert stats.kstest(t.numpy(), stats.uniform(lo, 1.02 * (hi - lo)).cdf).pvalue < 1e-3, "the test has power"


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("k, start", [(0, 1e-4), (1, 0.1)])
def test_a_share_of_the_times_is_log_uniform_from_t_min(k, start, share):
    lo, hi = BLOCKS.bounds(k)
    t = times_of(BLOCKS, k, 20000, stream(1, k), LogUniform(share, 1e-4))

    def cdf(s):
        s = torch.as_tensor(s)
        flat, log = (s - lo) / (hi - lo), (s / start).log().clamp(min=0) / (torch.tensor(hi) / start).log()
        return ((1 - share) * flat + share * log).numpy()

    assert float(t.min()) >= (start if share == 1 else lo) and float(t.max()) <= hi
    assert stats.kstest(t.numpy(), cdf).pvalue > 1e-3
    assert stats.kstest(t.numpy(), stats.uniform(lo, hi - lo).cdf).pvalue < 1e-6


def test_t_min_beyond_the_first_block_still_leaves_room():
    t = times_of(Partition([0, 1e-3, 1]), 0, 1000, stream(0), LogUniform(1.0, 1e-2))
    assert float(t.min()) >= 5e-4 and float(t.max()) <= 1e-3 and len(t.unique()) > 900


def test_points_are_always_trained_at_their_own_time():
    points = Partition.points([0.2, 0.7, 1.0])
    for k, time in enumerate([0.2, 0.7, 1.0]):
        for times in (Uniform(), LogUniform()):
            assert bool((times_of(points, k, 9, stream(0), times) == time).all())


def test_weights_undo_what_a_density_of_times_prefers():
    """Mean of a function of time under weighted early times, and under uniform ones: sin over the block."""
    recipe = Recipe(P, BLOCKS, updates=1, batch_size=40000, times=Early())
    t, weight = draw_times(recipe, 1, 1, stream(0))
    values, exact = weight * t.sin(), (math.cos(0.1) - math.cos(1)) / 0.9
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 200 < 0.01
    assert float(t.sin().mean()) < exact - 0.1
    with pytest.raises(ValueError, match='FusedUpdates takes no weights of times: use engine="products"'):
        MLPSteps(Bank(Plain(), 2), HG(), recipe, FusedUpdates)


@pytest.mark.parametrize("arch", [Plain(), Conditioned()], ids=str)
def test_batches_are_noised_rows_of_the_data_and_fresh_noise(arch):
    data = torch.tensor([[0.0, 3.0], [2.0, -1.0], [-1.0, -2.0], [5.0, 5.0]], dtype=F64)
    bank, n = Bank(arch, 2, dtype=F64), 8000
    x, t, target, weight = noised(bank, data, Recipe(P, BLOCKS, updates=1, batch_size=n), 1, 1, stream(0))
    h, target = mlp_batch(bank, x, t, target, P)
    assert weight is None and torch.equal(h[:, :2], x) and torch.equal(h[:, 2 if arch == Plain() else 3], t)
    skip = arch.skip(t, P, "eps")
    eps = target if skip is None else target + skip[:, None] * x
    x0 = (x - P.sigma(t)[:, None] * eps) / P.alpha(t)[:, None]
    row = torch.cdist(x0, data).argmin(1)
    assert torch.allclose(x0, data[row], atol=1e-10)
    assert stats.chisquare(row.bincount(minlength=4).numpy()).pvalue > 1e-3
    assert stats.kstest(t.numpy(), stats.uniform(0.1, 0.9).cdf).pvalue > 1e-3
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    both = torch.stack([row.double(), t, eps[:, 0], eps[:, 1]])
    related = (torch.corrcoef(both) - torch.eye(4)).abs().max()
    assert float(related) < 5 / n**0.5, "rows, times and noise are independent"
