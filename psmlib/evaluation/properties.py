r"""Measurements behind the property table of Parallel Score Matching (its Table 4).

* *Limited variability in time*: :func:`turning_error` sets a network a field that turns as time goes by, and
  :func:`turns_of_diffusion` says in the same unit how fast a real diffusion changes.
* *Interdependency*: :func:`dependence` says how much the gradient of some parameters changes with other parameters.
* *Necessity to devise a diffeomorphism*: :func:`disagreement` says how far two trainings are from the same map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import Mixture
from psmlib.evaluation.toys import diffused_points
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.machine.streams import stream
from psmlib.partition import Partition
from psmlib.process import VP, Process
from psmlib.score import Score
from psmlib.training.optim import Adam


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Vectors of the plane turned anticlockwise, each by its own angle. Shapes: (n, 2), (n,) -> (n, 2).

    Example:
        >>> turned(torch.tensor([[1., 0.]]), torch.tensor([math.pi / 2])).round(decimals=3)
        tensor([[-0., 1.]])
    """
    x, y = vectors.unbind(1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], 1)


def turning_error(
    bank: Bank, partition: Partition, points: Tensor, field: Tensor, turns: float, *, updates: int,
    blocks: Sequence[int] | None = None, batch_size: int = 256, lr: float = 1e-3, seed: int = 0,
) -> Tensor:  # fmt: skip
    r"""How well networks follow a field that turns: error left after training, as a share of the field.

    The target at time t is a field of the plane turned by the angle :math:`2\pi\,\mathrm{turns}\,t`, points and
    vectors alike. It is as hard at one time as at any other; only how fast it changes is set. So what grows with the
    number of turns is the price of giving one network more times to answer for.

    Args:
        bank: Networks for points of the plane; those of the chosen blocks are trained in place.
        partition: As many blocks as networks.
        points: Where the field is known at time 0. Shape: (N, 2).
        field: Its vectors there. Shape: (N, 2).
        turns: Turns from t = 0 to t = 1; need not be whole.
        updates: Adam steps of each network, the learning rate falling along a cosine.
        blocks: Which blocks to train; all by default. They are alike, so a few stand for all.
        batch_size: Points an update.
        lr: Learning rate at the start.
        seed: Network k draws from the stream (seed, k).

    Returns:
        Root mean square error over that of the field, for each chosen block. Shape: (len(blocks),).

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import SA
        >>> x = torch.randn(500, 2, generator=stream(0))
        >>> field = x * torch.tensor([1., -1.])
        >>> slow, fast = (turning_error(Bank(Plain(), 1), SA, x, field, n, updates=150) for n in (0, 16))
        >>> float(slow) < .5 * float(fast)
        True
    """
    errors = []
    for k in range(len(bank)) if blocks is None else blocks:
        task = _Turning(bank, partition.bounds(k), points, field, turns)
        params, generator = bank.params[k : k + 1], stream(seed, k)
        h, target = task.draw(batch_size, generator)
        work, moments, grad = BankMLP(bank.arch.widths, h), Adam(params), torch.empty_like(params)
        for i in range(updates):
            work.gradient(params, h, target, grad)
            moments.step(params, grad, lr=lr * 0.5 * (1 + math.cos(math.pi * i / updates)), count=i + 1)
            h, target = task.draw(batch_size, generator)
        h, target = task.draw(4096, stream(seed, k, 1))
        left = BankMLP(bank.arch.widths, h).forward(params, h) - target
        errors.append(left.square().mean().sqrt() / target.square().mean().sqrt())
    return torch.stack(errors)


@dataclass(frozen=True)
class _Turning:
    """A field that turns, within the two ends of a block."""

    bank: Bank
    ends: tuple[float, float]
    points: Tensor
    field: Tensor
    turns: float

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (1, n, F) and targets (1, n, 2) at uniform times."""
        rows = torch.randint(len(self.points), (n,), generator=generator)
        t = self.ends[0] + (self.ends[1] - self.ends[0]) * torch.rand(n, generator=generator, dtype=torch.float64)
        angle = 2 * math.pi * self.turns * t
        x, target = (turned(v[rows], angle).to(self.bank.params) for v in (self.points, self.field))
        return self.bank.arch.features(x, t.to(x.device), VP(0.0, 10.0))[None], target[None]


def turns_of_diffusion(
    toy: Mixture, process: Process, t0: float, unit: float, *, points: int = 1000, times: int = 40
) -> float:
    r"""How many turns' worth of change the noise prediction of a diffusion goes through, for :func:`turning_error`.

    The rate of change of the exact field at a fixed point, root mean square over :math:`x_t`, is integrated from t0 to
    T and divided by what a turn of the field at the time ``unit`` comes to,
    :math:`2\pi\,\mathrm{rms}\,\partial_\varphi R_\varphi\varepsilon^*(R_{-\varphi}x)`.

    Args:
        toy: Data of the plane.
        process: The Gaussian path.
        t0: The earliest time that counts.
        unit: The time of the field that a turn is measured by.
        points: Points that averages are taken over.
        times: Times of the integral, equally spaced in log t.

    Example:
        >>> from psmlib.process import VP
        >>> gaussian = Mixture(gaussians=[(1, [1., 0.], .1)])
        >>> 0 < turns_of_diffusion(gaussian, VP(0., 10.), .1, .1) < 2
        True
    """
    exact = toy.diffused(process)
    grid = torch.logspace(math.log10(t0), math.log10(process.T), times, dtype=torch.float64)
    rates = torch.stack([_rate(exact, diffused_points(toy, process, float(t), points), t) for t in grid])
    x = diffused_points(toy, process, unit, points)
    quarter = x.new_tensor([[0.0, 1.0], [-1.0, 0.0]])  # a row times this is the row, a quarter of a turn on
    eps, along = exact.predict_jvp(x, unit, x @ quarter)
    turn = 2 * math.pi * (eps @ quarter - along).square().mean().sqrt()
    return float(torch.trapezoid(rates, grid) / turn)


def _rate(exact: Score, x: Tensor, t: Tensor) -> Tensor:
    """Root mean square of d eps / dt = -(d sigma / dt) s - sigma ds/dt at fixed points."""
    process = exact.process
    rate = process.sigma_rate(t) * exact.score(x, t) + process.sigma(t) * exact.time_derivative(x, t)
    return rate.square().mean().sqrt()


def dependence(
    gradient: Callable[[], Sequence[Tensor]], others: Sequence[Tensor], size: float = 0.1, seed: int = 0
) -> float:
    """How much a gradient changes, as a share of itself, when other parameters change: 0 if they do not matter.

    Args:
        gradient: Gives the gradient, the same at each call unless parameters change.
        others: Parameters; they are moved in a random direction and put back.
        size: How far, as a share of their norm.
        seed: Of the direction.

    Example:
        >>> a, b = torch.tensor([3.]), torch.tensor([2.])
        >>> round(dependence(lambda: [a * b], [b]), 6), dependence(lambda: [a * b], [torch.ones(1)])
        (0.1, 0.0)
    """
    before, kept = [g.detach().clone() for g in gradient()], [p.detach().clone() for p in others]
    generator = stream(seed)
    try:
        for p in others:
            step = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            p.data.add_(step * (size * p.detach().norm() / step.norm()))
        after = [g.detach() for g in gradient()]
    finally:
        for p, old in zip(others, kept, strict=True):
            p.data.copy_(old)
    changed = sum(float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True))
    return math.sqrt(changed / sum(float(b.double().square().sum()) for b in before))


def disagreement(codes: Sequence[Tensor]) -> Tensor:
    r"""How far apart the codes are that separate trainings give the same points: 0 if they agree.

    Root mean square distance for each pair of trainings, as a share of that of codes with no more in common than their
    spread (:math:`\sqrt 2` standard deviations).

    Args:
        codes: Where each training's map sends the points. Shape of each: (n, d).

    Returns:
        Shape: (pairs,).

    Raises:
        ValueError: when there are fewer than two.

    Example:
        >>> x = torch.randn(5000, 2, generator=stream(0))
        >>> disagreement([x, x, x.flip(0)]).round(decimals=1)
        tensor([0., 1., 1.])
    """
    if len(codes) < 2:
        raise ValueError(f"a disagreement takes the codes of two trainings or more, got {len(codes)}")
    spread = math.sqrt(2 * sum(float(c.var(0).mean()) for c in codes) / len(codes))
    pairs = [(a, b) for i, a in enumerate(codes) for b in codes[i + 1 :]]
    return torch.stack([(a - b).square().mean().sqrt() / spread for a, b in pairs])
