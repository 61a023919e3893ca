r"""Timestep clustering: the rules of the Multistage paper (Section 4.2, Table 4), and one more.

Every rule returns the inner borders, for ``Partition([0, *split(...), T])``:

* ``"optimal_denoiser"``: Algorithm 1. Within an interval the average similarity to its end is at least a threshold.
* ``"timestep"``, ``"snr"``, ``"gradient"``: segments with the smallest distances of their times to their centres, in
  time, in log SNR, or by the cosine between the gradients of a trained network's loss.
* ``"difficulty"``: not in the paper. Blocks with equal parts of the irreducible denoising loss, summed over dimensions
  and integrated over log SNR: twice the information about the data point that is lost to the noise (Guo et al., 2005).
"""

import inspect

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.clustering.optimal_denoiser import by_optimal_denoiser
from psmlib.exact.irreducible_loss import irreducible_loss
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.machine.checks import check_choice
from psmlib.machine.streams import stream
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.sampling import grids
from psmlib.training.batches import mlp_batch, noised
from psmlib.training.objectives import OBJECTIVES
from psmlib.training.recipe import Recipe


def split(method: str = "optimal_denoiser", **arguments) -> tuple[float, ...]:
    """The inner borders of a partition by the given method.

    Args:
        method: "optimal_denoiser", "timestep", "snr", "gradient" or "difficulty".
        **arguments: Arguments of :func:`by_optimal_denoiser`, :func:`by_timestep`, :func:`by_snr`,
            :func:`by_gradient` or :func:`by_difficulty`.

    Raises:
        ValueError: for an unknown method or argument, or where the method finds no borders.

    Example:
        >>> from psmlib.process import VP
        >>> split("snr", process=VP(.1, 20.))           # Multistage, Table 4 prints .348 and .709
        (0.348, 0.709)
    """
    check_choice("method", method, METHODS, of="clustering")
    known = inspect.signature(METHODS[method]).parameters
    if odd := [name for name in arguments if name not in known]:
        raise ValueError(f"{method} clustering takes no {odd[0]}=: it takes {', '.join(known)}")
    if missing := [n for n, p in known.items() if p.default is p.empty and n not in arguments]:
        raise ValueError(f"{method} clustering needs {missing[0]}=: it takes {', '.join(known)}")
    return METHODS[method](**arguments)


def best_segments(
    distance: Tensor, intervals: int, *, smallest: int | None = None, largest: int | None = None
) -> list[int]:
    r"""Indices at which the second and later segments start, in the optimal division of a sequence of times.

    Among all divisions of n times into k segments of allowed sizes, it minimises

    .. math:: \sum_{\text{segments}}\;\sum_{m\in\text{segment}} d(\text{centre}, m),

    where the centre is the segment's middle element (the rule of the timestep and SNR rows in the Multistage paper's
    Table 4, after Go et al., 2023). The minimum is found by dynamic programming over the ends of segments.

    Args:
        distance: Distance from each element as a centre (row) to each other. Shape: (n, n).
        intervals: Number of segments, k.
        smallest, largest: Allowed sizes; by default n // (2 k) and 3 n // (2 k), as in the released code for k = 3.

    Returns:
        k - 1 indices, ascending.

    Raises:
        ValueError: when no division has segments of the allowed sizes, or distances are not a finite square matrix.

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
    best, back = cost[0], []  # best[j]: lowest cost of a division of [0, j) so far
    for _ in range(intervals - 1):
        best, last = (best[:, None] + cost).min(0)
        back.append(last)
    cuts, end = [], n
    for last in reversed(back):
        end = int(last[end])
        cuts.append(end)
    return cuts[::-1]


def _times(n: int, T: float = 1.0) -> Tensor:
    """The papers' timesteps T/n, 2T/n, ..., T."""
    return T * torch.arange(1, n + 1, dtype=torch.float64) / n


def _segments(distance: Tensor, times: Tensor, intervals: int, smallest, largest) -> tuple[float, ...]:
    return tuple(float(times[i]) for i in best_segments(distance, intervals, smallest=smallest, largest=largest))


def by_timestep(
    *, intervals: int = 3, times: int = 1000, T: float = 1.0, smallest: int | None = None, largest: int | None = None
) -> tuple[float, ...]:
    """Segments by distance in time, which are equal but for rounding.

    Args:
        intervals: Number of segments.
        times: Number of timesteps.
        T: The last time.
        smallest, largest: Allowed sizes, see :func:`psmlib.clustering.rules.best_segments`.
    """
    t = _times(times, T)
    return _segments((t[:, None] - t).abs(), t, intervals, smallest, largest)


def by_snr(
    *, process: Process, intervals: int = 3, times: int = 1000, smallest: int | None = None, largest: int | None = None
) -> tuple[float, ...]:
    """Segments by distance in log SNR; arguments as in :func:`by_timestep`."""
    t = _times(times, process.T)
    value = process.log_snr(t)
    value = torch.where(value.isfinite(), value, value[value.isfinite()].min())  # flow matching has no signal at T
    return _segments((value[:, None] - value).abs(), t, intervals, smallest, largest)


def by_gradient(
    *, bank: Bank, data, process: Process, intervals: int = 3, times: int = 100, batch: int = 2048, seed: int = 0,
    smallest: int | None = None, largest: int | None = None,
) -> tuple[float, ...]:  # fmt: skip
    """Segments by the direction of the loss gradient at each time, with the distance 1 - cosine.

    Args:
        bank: One trained network for all times.
        data: Its training data: an object with ``sample`` or a tensor.
        process: Its process.
        intervals: Number of segments.
        times: Number of timesteps.
        batch: Draws for each gradient.
        seed: Seed of the draws.
        smallest, largest: Allowed sizes, see :func:`psmlib.clustering.rules.best_segments`.

    Raises:
        ValueError: when the bank holds several networks.
    """
    t = _times(times, process.T)
    g = timestep_gradients(bank, data, process, t, batch=batch, seed=seed)
    g = g / g.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return _segments(1 - g @ g.T, t, intervals, smallest, largest)


def timestep_gradients(bank: Bank, data, process: Process, times: Tensor, *, batch: int, seed: int = 0) -> Tensor:
    """Gradient of the training loss at each time. Shape: (times, parameters)."""
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
    """Blocks with equal integrals of the irreducible denoising loss over log SNR.

    Args:
        toy: An exactly known density.
        process: The process.
        intervals: Number of blocks.
        t_min: Lower limit of the integral, which diverges as it goes to 0.
        times: Number of points of the trapezoidal rule.

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
    wanted = total[-1] * torch.arange(1, intervals) / intervals
    i = torch.searchsorted(total, wanted) - 1
    part = (wanted - total[i]) / (total[i + 1] - total[i])
    return tuple((t[i] * (t[i + 1] / t[i]) ** part).tolist())


METHODS = {
    "optimal_denoiser": by_optimal_denoiser, "timestep": by_timestep, "snr": by_snr, "gradient": by_gradient,
    "difficulty": by_difficulty,
}  # fmt: skip
