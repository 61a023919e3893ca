"""Updates a second of one network: `fit` against the plain loop of the released toy scripts.

The network is 4-100-150-100-2 with ELU, batch 512, Adam at 1e-3, one block on [0, 1] (SA-DPM), VP with b(t) = 10t,
float32. The contestants show where the time goes:

* plain loop: `nn.Sequential`, autograd, `torch.optim.Adam`; at every step the whole pool of data is drawn anew in
  numpy component by component (27,050 points for TY, 9 x 512 for HG), permuted, and 512 of it kept;
* direct sampling: the same loop, but 512 points are drawn from the mixture itself;
* JAX, where it is installed: the loop with direct sampling, compiled whole;
* psmlib: `psmlib.training.fit`, whose gradient is written by hand too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import in_jax
from psmlib.benchmarks.plain import sequential
from psmlib.benchmarks.timing import Row, interleave, rows
from psmlib.data.toys import Mixture, load_toy
from psmlib.nets.mlp import Plain
from psmlib.partition import SA
from psmlib.process import VP
from psmlib.training import fit

BATCH, LR = 512, 1e-3
POOLS = {"TY": 27050, "HG": 9 * BATCH}
"""Points that the released scripts draw for each step."""


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        updates: Updates in a turn.
        rounds: Timed turns of each contestant.
        toys: Data sets.
    """

    updates: int = 200
    rounds: int = 9
    toys: tuple[str, ...] = ("TY", "HG")


SCALES = {"smoke": Settings(50, 2), "quick": Settings(), "full": Settings(1000, 15)}


def pool(toy: Mixture, size: int, rng: np.random.RandomState) -> np.ndarray:
    """Every component's share of ``size`` points, drawn in turn and stacked box by box. Shape: (size, 2).

    Example:
        >>> pool(load_toy("HG"), 9 * 512, np.random.RandomState(0)).shape
        (4608, 2)
    """
    counts = (toy.weights * size).round().int().tolist()
    split = len(toy.gauss_weight)
    means, covariances = toy.gauss_mean.numpy(), toy.gauss_cov.numpy()
    parts = [rng.multivariate_normal(m, c, n) for m, c, n in zip(means, covariances, counts, strict=False)]
    points = np.vstack(parts) if parts else np.empty((0, toy.dim))
    boxes = zip(toy.box_centre.numpy(), toy.box_rotation.numpy(), toy.box_half.numpy(), counts[split:], strict=True)
    for centre, rotation, half, n in boxes:
        if rotation[0, 1] == 0:
            box = rng.uniform(centre - half, centre + half, (n, toy.dim))
        else:
            box = rng.uniform(-half, half, (n, toy.dim)) @ rotation.T + centre
        points = np.vstack((points, box))
    return points


def from_pool(toy: Mixture, size: int, seed: int = 0) -> Callable[[], Tensor]:
    """Draws a whole pool at each call and keeps a batch of it, without replacement. Shape: (512, 2), float64."""
    rng = np.random.RandomState(seed)

    def draw() -> Tensor:
        points = pool(toy, size, rng)
        return torch.tensor(points[rng.permutation(len(points))][:BATCH])

    return draw


def from_mixture(toy: Mixture, seed: int = 0) -> Callable[[], Tensor]:
    """Draws a batch from the mixture itself. Shape: (512, 2), float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: toy.sample(BATCH, generator)


class Loop:
    """A plain training loop.

    Args:
        draw: Gives a batch of data. Shape: (B, 2).
        net: Takes [x, t, t]. Shape: (B, 4) -> (B, 2).

    Example:
        >>> bank = Bank(Plain(), 1)
        >>> loop = Loop(from_mixture(load_toy("HG")), sequential(bank.params[0], bank.arch.widths))
        >>> loop.run(2) < 2
        True
    """

    def __init__(self, draw: Callable[[], Tensor], net: nn.Sequential):
        self.draw, self.net = draw, net
        self.optimiser = torch.optim.Adam(net.parameters(), lr=LR)

    def backward(self, h: Tensor, target: Tensor) -> Tensor:
        """Puts the gradient of the mean squared error into the network's parameters; returns the error."""
        self.optimiser.zero_grad()
        loss = (self.net(h) - target).square().mean()
        loss.backward()
        return loss

    def run(self, updates: int) -> float:
        """Does some updates; returns the last loss."""
        last = float("nan")
        for _ in range(updates):
            x0 = self.draw().float()
            t, eps = torch.rand(len(x0), 1), torch.randn_like(x0)
            signal = torch.exp(-5 * t**2)  # alpha^2 for b(t) = 10t
            x = signal.sqrt() * x0 + torch.sqrt(1 - signal) * eps
            last = self.backward(torch.cat([x, t, t], 1), eps).item()
            self.optimiser.step()
        return last


def contestants(toy: Mixture, updates: int) -> dict[str, Callable[[int], object]]:
    """The contestants, starting from the same network; a call does ``updates`` updates."""
    bank = Bank(Plain(), 1)
    drawn = {"plain loop": from_pool(toy, POOLS[toy.name]), "direct sampling": from_mixture(toy)}
    loops = {name: Loop(draw, sequential(bank.params[0], bank.arch.widths)) for name, draw in drawn.items()}
    calls = {name: lambda i, loop=loop: loop.run(updates) for name, loop in loops.items()}
    if in_jax.jax is not None:
        compiled = in_jax.training(toy, bank.params[0], bank.arch.widths, BATCH, LR)
        calls["JAX"] = lambda i: compiled(updates)
    run = dict(updates=updates, batch_size=BATCH, lr=LR)
    return {**calls, "psmlib": lambda i: list(fit(bank, toy, VP(0.0, 10.0), SA, **run))}


def run(settings: Settings) -> Iterator[Row]:
    """Measures on each toy."""
    for name in settings.toys:
        times = interleave(contestants(load_toy(name), settings.updates), settings.rounds)
        notes = {
            "plain loop": f"redraws {POOLS[name]:,} points in numpy at every step, as the released scripts do",
            "direct sampling": f"the same loop, with {BATCH} points drawn from the mixture itself",
            "JAX": "draws, gradient and Adam in one compiled scan",
            "psmlib": "psmlib.training.loop.fit, workers=1",
        }
        case = f"{name}, SA-DPM, batch {BATCH}, {settings.updates} updates a turn"
        yield from rows(case, times, "plain loop", notes, work=settings.updates, measure="updates a second and network")
