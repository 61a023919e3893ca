r"""Where to cut diffusion time: the rules of the Multistage paper (Section 4.2, Table 4), and one more.

Every rule answers with the inner borders alone, ready for ``Partition([0, *split(...), T])``:

* ``"optimal_denoiser"``: Algorithm 1. An interval reaches as far as the average similarity to its end stays above
  :math:`\alpha`.
* ``"timestep"``, ``"snr"``, ``"gradient"``: the segments whose times lie closest to their centres, in time, in log SNR,
  or by the cosine between the gradients of a trained network's loss.
* ``"difficulty"``: not in the paper. Blocks that share out equally the part of the denoising loss that no network can
  lower, summed over axes and integrated over log SNR: twice the information about the data point that noise takes away
  on the way (Guo et al., 2005).
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.clustering.optimal_denoiser import by_optimal_denoiser
from psmlib.exact.floors import irreducible_loss
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.machine.streams import stream
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.sampling import grids
from psmlib.training.batches import mlp_batch, noised
from psmlib.training.objectives import OBJECTIVES
from psmlib.training.recipe import Recipe


def split(method: str = "optimal_denoiser", **arguments) -> tuple[float, ...]:
    """The inner borders of a partition by the named method.

    Args:
        method: "optimal_denoiser", "timestep", "snr", "gradient" or "difficulty".
        **arguments: Those of :func:`by_optimal_denoiser`, :func:`by_timestep`, :func:`by_snr`, :func:`by_gradient` or
            :func:`by_difficulty`.

    Raises:
        ValueError: for an unknown method or argument, or where the method finds no borders.

    Example:
        >>> from psmlib.process import VP
        >>> split("snr", process=VP(.1, 20.))           # Multistage, Table 4 prints .348 and .709
        (0.348, 0.709)
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r} of clustering: use one of {', '.join(METHODS)}")
    known = inspect.signature(METHODS[method]).parameters
    if odd := [name for name in arguments if name not in known]:
        raise ValueError(f"{method} clustering takes no {odd[0]}=: it takes {', '.join(known)}")
    if missing := [n for n, p in known.items() if p.default is p.empty and n not in arguments]:
        raise ValueError(f"{method} clustering needs {missing[0]}=: it takes {', '.join(known)}")
    return METHODS[method](**arguments)


def best_segments(
    distance: Tensor, intervals: int, *, smallest: int | None = None, largest: int | None = None
) -> list[int]:
    r"""Where the second and later segments start, in the best cut of a row of times.

    Among all cuts of n times into k segments of allowed sizes, the one that minimises

    .. math:: \sum_{\text{segments}}\;\sum_{m\in\text{segment}} d(\text{centre}, m),

    where the centre is the segment's middle element (the rule behind the timestep and SNR rows of the Multistage
    paper's Table 4, after Go et al., 2023). Found exactly, by dynamic programming over the ends of segments.

    Args:
        distance: Of each element, as a centre (row), to each other. Shape: (n, n).
        intervals: How many segments, k.
        smallest, largest: Sizes allowed; by default n // (2 k) and 3 n // (2 k), the released ones for k = 3.

    Returns:
        k - 1 indices, ascending.

    Raises:
        ValueError: when no cut has segments of the allowed sizes, or distances are not a square matrix of numbers.

    Example:
        >>> t = torch.arange(1, 1001) / 1000
        >>> best_segments((t[:, None] - t).abs(), 3)                 # Multistage, Table 4: .330 and .670 printed
        [333, 666]
    """
    n, distance = len(distance), distance.double().cpu()
    if distance.shape != (n, n) or not bool(distance.isfinite().all()):
        shape = tuple(distance.shape)
        raise ValueError(f"distance must be a square matrix of finite numbers, got shape {shape}: clean it first")
    if intervals < 1:
        raise ValueError(f"times are cut into one segment or more, got intervals={intervals}")
    smallest = n // (2 * intervals) if smallest is None else smallest
    largest = 3 * n // (2 * intervals) if largest is None else largest
    if not max(1, smallest) * intervals <= n <= largest * intervals:
        sizes = f"{smallest} to {largest}"
        raise ValueError(f"{n} times cannot be cut into {intervals} segments of {sizes}: change their number or sizes")
    total = torch.cat([distance.new_zeros(n, 1), distance.cumsum(1)], 1)
    cost = torch.full((n + 1, n + 1), torch.inf, dtype=torch.float64)  # of the segment [i, j)
    for size in range(max(1, smallest), min(largest, n) + 1):
        i = torch.arange(n - size + 1)
        centre = i + size // 2
        cost[i, i + size] = total[centre, i + size] - total[centre, i]
    best, back = cost[0], []  # best[j]: cheapest cut of [0, j) so far
    for _ in range(intervals - 1):
        best, last = (best[:, None] + cost).min(0)
        back.append(last)
    cuts, end = [], n
    for last in reversed(back):
        end = int(last[end])
        cuts.append(end)
    return cuts[::-1]


def _times(n: int, T: float = 1.0) -> Tensor:
    """T/n, 2T/n, ..., T: the papers' timesteps."""
    return T * torch.arange(1, n + 1, dtype=torch.float64) / n


def _segments(distance: Tensor, times: Tensor, intervals: int, smallest, largest) -> tuple[float, ...]:
    return tuple(float(times[i]) for i in best_segments(distance, intervals, smallest=smallest, largest=largest))


def by_timestep(
    *, intervals: int = 3, times: int = 1000, T: float = 1.0, smallest: int | None = None, largest: int | None = None
) -> tuple[float, ...]:
    """Segments close to their centres in time; equal ones, but for rounding.

    Args:
        intervals: How many.
        times: Timesteps of the grid.
        T: The end of time.
        smallest, largest: Sizes allowed; see :func:`psmlib.clustering.rules.best_segments`.
    """
    t = _times(times, T)
    return _segments((t[:, None] - t).abs(), t, intervals, smallest, largest)


def by_snr(
    *, process: Process, intervals: int = 3, times: int = 1000, smallest: int | None = None, largest: int | None = None
) -> tuple[float, ...]:
    """Segments close to their centres in log SNR; arguments as in :func:`by_timestep`."""
    t = _times(times, process.T)
    value = process.log_snr(t)
    value = torch.where(value.isfinite(), value, value[value.isfinite()].min())  # flow matching ends without a signal
    return _segments((value[:, None] - value).abs(), t, intervals, smallest, largest)


def by_gradient(
    *, bank: Bank, data, process: Process, intervals: int = 3, times: int = 100, batch: int = 2048, seed: int = 0,
    smallest: int | None = None, largest: int | None = None,
) -> tuple[float, ...]:  # fmt: skip
    """Segments whose gradients point the way of their centre's: distance 1 - cosine.

    Args:
        bank: One trained network for all times.
        data: What it was trained on: an object with ``sample`` or a tensor.
        process: Its process.
        intervals: How many segments.
        times: Timesteps of the grid.
        batch: Draws behind each gradient.
        seed: Of the draws.
        smallest, largest: Sizes allowed; see :func:`psmlib.clustering.rules.best_segments`.

    Raises:
        ValueError: when the bank holds several networks.
    """
    t = _times(times, process.T)
    g = timestep_gradients(bank, data, process, t, batch=batch, seed=seed)
    g = g / g.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return _segments(1 - g @ g.T, t, intervals, smallest, largest)


def timestep_gradients(bank: Bank, data, process: Process, times: Tensor, *, batch: int, seed: int = 0) -> Tensor:
    """Gradient of the training loss at each time alone. Shape: (times, parameters)."""
    if len(bank) != 1:
        raise ValueError(f"gradients of one network are compared, but the bank holds {len(bank)}: train one block")
    points, objective = Partition.points(times.tolist()), OBJECTIVES[bank.native]
    recipe = Recipe(process, points, updates=1, objective=objective, batch_size=batch)
    grads, work = torch.empty(len(times), bank.params.shape[1], dtype=bank.params.dtype, device=bank.device), None
    for k in range(len(times)):
        x, t, target, _ = noised(bank, data, recipe, k, 1, stream(seed, k, device=bank.device))
        h, target = mlp_batch(bank, x, t, target, process)
        work = work or BankMLP(bank.arch.widths, h[None])
        work.gradient(bank.params, h[None], target[None], grads[k : k + 1])
    return grads


def by_difficulty(
    *, toy, process: Process, intervals: int = 3, t_min: float = 1e-3, times: int = 48
) -> tuple[float, ...]:
    """Blocks with equal shares of the irreducible denoising loss over log SNR.

    Args:
        toy: An exactly known density.
        process: The process.
        intervals: How many blocks.
        t_min: Where counting starts; nearer to 0 the sum grows without bound.
        times: Points of the trapezoidal rule.

    Raises:
        ValueError: for fewer than one block.
    """
    if intervals < 1:
        raise ValueError(f"difficulty is shared out over one block or more, got intervals={intervals}")
    t = grids.log_snr(process, t_min, process.T, times)
    loss = torch.tensor([irreducible_loss(toy, process, float(s), m=6, repeats=2)[0] for s in t], dtype=torch.float64)
    steps = -process.log_snr(t).diff()
    steps = torch.where(steps.isfinite(), steps, torch.zeros_like(steps))
    total = torch.cat([torch.zeros(1, dtype=torch.float64), (0.5 * (loss[1:] + loss[:-1]) * steps).cumsum(0)])
    borders = []
    for k in range(1, intervals):
        i = int(torch.searchsorted(total, total[-1] * k / intervals)) - 1
        share = (total[-1] * k / intervals - total[i]) / (total[i + 1] - total[i])
        borders.append(float(t[i] * (t[i + 1] / t[i]) ** share))
    return tuple(borders)


METHODS = {
    "optimal_denoiser": by_optimal_denoiser, "timestep": by_timestep, "snr": by_snr, "gradient": by_gradient,
    "difficulty": by_difficulty,
}  # fmt: skip
