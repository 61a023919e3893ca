r"""Which times a network is trained at: a density on its block, and a weight of the loss where one is wanted.

A class of times turns uniform numbers into times of a block. What it must have:

* ``numbers``: how many uniform numbers it takes for each time;
* ``draw(u, low, high)``: times in (low, high] from u in [0, 1), of shape (numbers, ..., B). The last axis is the batch,
  so that a class may let a batch share a number, as soft truncation does;
* ``weight(t, low, high)``: the factor of each time's squared error, or None for 1 everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Edge = float | Tensor


@dataclass(frozen=True)
class Uniform:
    """Uniform times within the block, unweighted: what all five papers train with by default.

    Example:
        >>> Uniform().draw(torch.tensor([[0., .5]]), .2, .4).tolist()
        [0.4000000059604645, 0.30000001192092896]
    """

    numbers: ClassVar[int] = 1
    weighted: ClassVar[bool] = False

    def draw(self, u: Tensor, low: Edge, high: Edge) -> Tensor:
        """Times from uniform numbers. Shapes: (1, ..., B) -> (..., B)."""
        return low + (high - low) * (1 - u[0])  # 1 - u is never 0, and at t = 0 there is no noise to predict

    def weight(self, t: Tensor, low: Edge, high: Edge) -> Tensor | None:
        """None: every time counts alike."""
        return None


@dataclass(frozen=True)
class LogUniform(Uniform):
    r"""Uniform times, but for a share that is uniform in log t.

    The likelihood weighs the noise-prediction error by :math:`d\log\mathrm{SNR}`, which is close to
    :math:`d\log t` near t = 0, where uniform times hardly ever look.

    Args:
        share: Share of log-uniform times.
        t_min: Where they start in the block that begins at 0.

    Raises:
        ValueError: when ``share`` lies outside [0, 1], or ``t_min`` is not positive.

    Example:
        >>> LogUniform(1., .01).draw(torch.tensor([[0., .5], [.3, .3]], dtype=torch.float64), 0., 1.).tolist()
        [0.01, 0.1]
    """

    share: float = 0.5
    t_min: float = 1e-5

    numbers: ClassVar[int] = 2

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of log-uniform times must lie in [0, 1], got {self.share!r}")
        if not 0 < self.t_min < math.inf:
            raise ValueError(f"t_min must be positive, where log-uniform times start, got {self.t_min!r}")

    def draw(self, u: Tensor, low: Edge, high: Edge) -> Tensor:
        low, high = (torch.as_tensor(edge, dtype=u.dtype, device=u.device) for edge in (low, high))
        start = low.maximum((high / 2).clamp_max(self.t_min))
        return torch.where(u[1] < self.share, start * (high / start) ** u[0], super().draw(u, low, high))
