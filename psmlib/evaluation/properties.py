r"""Measurements for the property table of Parallel Score Matching (its Table 4).

* *Limited variability in time*: :func:`turning_error` trains networks on a vector field that rotates with time, and
  :func:`turns_of_diffusion` measures in the same unit how fast the field of a diffusion changes.
* *Interdependency*: :func:`dependence` measures how the gradient of some parameters changes with other parameters.
* *Necessity to devise a diffeomorphism*: :func:`likelihood_turned` and :func:`denoising_turned` measure whether a loss
  names the map, :func:`disagreement` how different the maps of two trainings are.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

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
from psmlib.standard_errors import Estimate
from psmlib.training.optim import Adam


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Rotates vectors of the plane anticlockwise, each by its own angle. Shapes: (n, 2), (n,) -> (n, 2).

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
    r"""Relative error of networks trained on a vector field that rotates with time.

    The target at time t is a field of the plane rotated by the angle :math:`2\pi\,\mathrm{turns}\,t`, points and
    vectors alike. It is equally difficult at all times; only its speed of change varies. The increase of the error with
    the number of turns is therefore the cost of training one network for more times.

    Args:
        bank: Networks of points of the plane; those of the chosen blocks are trained in place.
        partition: As many blocks as networks.
        points: Points at which the field at time 0 is given. Shape: (N, 2).
        field: Its vectors there. Shape: (N, 2).
        turns: Number of turns from t = 0 to t = 1, not necessarily whole.
        updates: Adam steps of each network, with a cosine schedule of the learning rate.
        blocks: Blocks to train; all by default. All blocks are equally difficult, so that a few represent all.
        batch_size: Points of an update.
        lr: Initial learning rate.
        seed: Network k draws from the stream (seed, k).

    Returns:
        Root mean square error divided by that of the field, for each chosen block. Shape: (len(blocks),).

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import SA
        >>> x = torch.randn(500, 2, generator=stream(0))
        >>> field = x * torch.tensor([1., -1.])
        >>> slow, fast = (turning_error(Bank(Plain(), 1), SA, x, field, n, updates=150) for n in (0, 16))
        >>> float(slow) < .5 * float(fast)
        True
    """

    def draw(k: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (1, n, F) and targets (1, n, 2) at uniform times of block k."""
        rows, (start, end) = torch.randint(len(points), (n,), generator=generator), partition.bounds(k)
        t = start + (end - start) * torch.rand(n, generator=generator, dtype=torch.float64)
        x, target = (turned(v[rows], 2 * math.pi * turns * t).to(bank.params) for v in (points, field))
        return bank.arch.features(x, t.to(x.device), VP(0.0, 10.0))[None], target[None]

    errors = []
    for k in range(len(bank)) if blocks is None else blocks:
        params, generator = bank.params[k : k + 1], stream(seed, k)
        h, target = draw(k, batch_size, generator)
        work, moments, grad = BankMLP(bank.arch.widths, h), Adam(params), torch.empty_like(params)
        for i in range(updates):
            work.gradient(params, h, target, grad)
            moments.step(params, grad, lr=lr * 0.5 * (1 + math.cos(math.pi * i / updates)), count=i + 1)
            h, target = draw(k, batch_size, generator)
        h, target = draw(k, 4096, stream(seed, k, 1))
        error = BankMLP(bank.arch.widths, h).forward(params, h) - target
        errors.append(error.square().mean().sqrt() / target.square().mean().sqrt())
    return torch.stack(errors)


def turns_of_diffusion(
    toy: Mixture, process: Process, t0: float, unit: float, *, points: int = 1000, times: int = 40
) -> float:
    r"""Total change in time of the noise prediction of a diffusion, in units of one turn of :func:`turning_error`.

    The rate of change of the exact field at a fixed point, root mean square over :math:`x_t`, is integrated from t0 to
    T and divided by the change in one turn of the field at the time ``unit``,
    :math:`2\pi\,\mathrm{rms}\,\partial_\varphi R_\varphi\varepsilon^*(R_{-\varphi}x)`.

    Args:
        toy: Data of the plane.
        process: The Gaussian path.
        t0: Lower limit of the integral.
        unit: Time of the field whose turn is the unit.
        points: Number of points of the averages.
        times: Number of times of the integral, equally spaced in log t.

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
    quarter = x.new_tensor([[0.0, 1.0], [-1.0, 0.0]])  # a row times this is the row rotated by a quarter of a turn
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
    """Relative change of a gradient when other parameters change: 0 if it does not depend on them.

    Args:
        gradient: Returns the gradient, the same at each call unless parameters change.
        others: Parameters; they are changed in a random direction and then restored.
        size: Size of the change relative to their norm.
        seed: Seed of the direction.

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


RIGHT_ANGLE = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # turns rows of points of the plane


def likelihood_turned(flow, points: Tensor) -> float:
    """Change of a flow's mean NLL, in nats, if all codes are turned by a right angle.

    Args:
        flow: With ``carry(points)`` to its codes and their ``log_normal``, as :class:`psmlib.benchmarks.cnf.CNF`.
        points: Points of the plane. Shape: (n, 2).
    """
    codes = flow.carry(points)
    return float((flow.log_normal(codes) - flow.log_normal(codes @ RIGHT_ANGLE.to(codes))).mean())


def denoising_turned(score: Score, points: Tensor, seed: int = 8) -> float:
    """Change of a mean denoising loss if the velocity turns all points by a right angle in the last tenth of [0, 1].

    Args:
        score: Of the plane.
        points: Data. Shape: (n, 2).
        seed: Of the noise.

    Example:
        >>> from psmlib.data.toys import TY
        >>> round(denoising_turned(TY().diffused(VP(0., 10.)), torch.zeros(4, 2, dtype=torch.float64)), -1) > 0
        True
    """
    process, noise = score.process, torch.randn(points.shape, generator=stream(seed)).to(points)
    late = torch.linspace(0.9, 1, len(points)).to(points)
    x = process.perturb(points, late, noise)
    eps = score.eps(x, late)
    per_eps = process.conversion(late, "eps", "velocity")[1][:, None]
    turned = eps + (math.pi / 2 / 0.1) * (x @ RIGHT_ANGLE.to(x)) / per_eps
    return float(((turned - noise).square() - (eps - noise).square()).mean())


def disagreement(codes: Sequence[Tensor]) -> Estimate:
    r"""Relative distance between the codes of the same points from separate trainings: 0 if they agree.

    Root mean square distance of two trainings, divided by that of independent codes (:math:`\sqrt 2` standard
    deviations); the mean over all pairs. Pairs that share a training are not independent. The standard error is
    therefore the jackknife's, which leaves out one training at a time (Arvesen, 1969, for such means over pairs).

    Args:
        codes: Images of the points under the map of each training. Shape of each: (n, d).

    Raises:
        ValueError: for fewer than two trainings.

    Example:
        >>> x = torch.randn(5000, 2, generator=stream(0))
        >>> round(disagreement([x, x, x.flip(0)]).value, 2)
        0.67
    """
    if (count := len(codes)) < 2:
        raise ValueError(f"a disagreement takes the codes of two trainings or more, got {count}")
    spread = math.sqrt(2 * sum(float(c.var(0).mean()) for c in codes) / count)
    apart = {(i, j): float((codes[i] - codes[j]).square().mean().sqrt()) for i, j in combinations(range(count), 2)}
    value, error = sum(apart.values()) / len(apart) / spread, None
    if count > 2:
        kept = [[d for pair, d in apart.items() if left_out not in pair] for left_out in range(count)]
        means = torch.tensor([sum(each) / len(each) / spread for each in kept], dtype=torch.float64)
        error = (count - 1) / math.sqrt(count) * float(means.std())
    return Estimate(value, error, count - 1 if error is not None else 0, n=len(codes[0]), seeds=count)
