"""Time grids for solvers and samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.partition import Partition
from psmlib.process import Process


def uniform(t0: float, t1: float, steps: int) -> Tensor:
    """Equal steps in t, ascending. Shape: (steps + 1,), float64.

    Example:
        >>> uniform(0., 1., 2).tolist()
        [0.0, 0.5, 1.0]
    """
    return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


def quadratic(t0: float, t1: float, steps: int, power: float = 2.0) -> Tensor:
    """Equal steps in t^(1/power): more of them near 0. Shape: (steps + 1,), float64.

    Example:
        >>> quadratic(0., 1., 2).tolist()
        [0.0, 0.25, 1.0]
    """
    grid = torch.linspace(t0 ** (1 / power), t1 ** (1 / power), steps + 1, dtype=torch.float64) ** power
    grid[0], grid[-1] = t0, t1
    return grid


def log_snr(process: Process, t0: float, t1: float, steps: int) -> Tensor:
    """Equal steps in log SNR, found by bisection. Shape: (steps + 1,), float64.

    Raises:
        ValueError: when t0 is 0, where log SNR is infinite.

    Example:
        >>> from psmlib.process import VP
        >>> lam = VP().log_snr(log_snr(VP(), 1e-3, 1., 10))
        >>> bool((lam.diff().std() / lam.diff().mean().abs()) < 1e-3)
        True
    """
    if t0 <= 0:
        raise ValueError("log_snr grids need t0 > 0, because log SNR is infinite at 0: start at, say, 1e-3")
    # if no signal is left at the end, log SNR is -inf there: stop the scale just before
    end = t1 if bool(process.log_snr(t1).isfinite()) else t1 * (1 - 1e-6)
    wanted = torch.linspace(float(process.log_snr(t0)), float(process.log_snr(end)), steps + 1, dtype=torch.float64)
    lo, hi = torch.full_like(wanted, t0), torch.full_like(wanted, end)
    for _ in range(64):
        grid = (lo * hi).sqrt()
        early = process.log_snr(grid) > wanted
        lo, hi = torch.where(early, grid, lo), torch.where(early, hi, grid)
    grid[0], grid[-1] = t0, t1
    return grid


def per_block(t0: float, t1: float, partition: Partition, steps: int) -> Tensor:
    """The same number of equal steps in each block, at least one, ``steps`` in all or a few fewer.

    Example:
        >>> per_block(0., 1., Partition([0, .2, 1]), 4).tolist()
        [0.0, 0.1, 0.2, 0.6, 1.0]
    """
    ends = [t0, *(e for e in partition.edges if t0 < e < t1), t1]
    each = max(1, steps // (len(ends) - 1))
    pieces = [uniform(a, b, each)[:-1] for a, b in zip(ends, ends[1:], strict=False)]
    return torch.cat([*pieces, torch.tensor([t1], dtype=torch.float64)])


def with_borders(times: Tensor, partition: Partition | None) -> Tensor:
    """Moves the nearest inner grid points onto the partition's borders, where the score may jump.

    A step across a jump is of first order whatever the method. If two borders have the same nearest point, one is added
    as a new point.

    Example:
        >>> with_borders(uniform(0., 1., 4), Partition([0, .2, 1])).tolist()
        [0.0, 0.2, 0.5, 0.75, 1.0]
    """
    if partition is None or len(partition) == 1:
        return times
    lo, hi = sorted((float(times[0]), float(times[-1])))
    borders = [e for e in partition.edges if lo < e < hi]
    grid, fixed = [float(t) for t in times], set(borders)
    for border in borders:
        i = min(range(len(grid)), key=lambda j: abs(grid[j] - border))
        if lo < grid[i] < hi and grid[i] not in fixed:  # the two ends stay where they are
            grid[i] = border
        elif grid[i] != border:
            grid.append(border)
    grid.sort(reverse=bool(times[0] > times[-1]))
    return torch.tensor(grid, dtype=torch.float64)
