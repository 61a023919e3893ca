"""When a network is trained: the density of its training times."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.partition import Partition


def draw_times(
    partition: Partition, k: int, n: int, generator: torch.Generator, log_share: float, t_min: float
) -> Tensor:
    r"""Training times for block k: uniform, with a share drawn log-uniformly. Shape: (n,), float64.

    The likelihood weighs the noise-prediction error by :math:`d\log\mathrm{SNR}`, which is close to
    :math:`d\log t` near t = 0, where uniform times hardly ever look.

    Args:
        partition: The blocks.
        k: Which block.
        n: How many times.
        generator: Source of randomness.
        log_share: Share of log-uniform draws, 0 for the papers' uniform sampling.
        t_min: Left end of the log-uniform draws in the block that starts at 0.

    Example:
        >>> draw_times(Partition.points(2), 0, 3, torch.Generator(), 0., 1e-5).tolist()
        [0.5, 0.5, 0.5]
    """
    lo, hi = partition.bounds(k)
    if partition.discrete:
        return torch.full((n,), hi, dtype=torch.float64)
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    t = lo + (hi - lo) * (1 - u)  # 1 - u is never 0, and at t = 0 there is no noise to predict
    if log_share:
        start = max(lo, min(t_min, hi / 2))
        chosen = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device) < log_share
        t = torch.where(chosen, start * (hi / start) ** u, t)
    return t
