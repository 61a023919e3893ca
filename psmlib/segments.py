r"""Cutting a row of times into segments that lie close to their own centre.

The rule by which the Multistage paper's Table 4 finds its timestep and SNR rows (after Go et al., 2023): among all
cuts of n times into k segments of allowed sizes, the one that minimises

.. math:: \sum_{\text{segments}}\;\sum_{m\in\text{segment}} d(\text{centre}, m),

where the centre is the segment's middle element. Found exactly, by dynamic programming over the ends of segments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_segments(
    distance: Tensor, intervals: int, *, smallest: int | None = None, largest: int | None = None
) -> list[int]:
    """Where the second and later segments start.

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
