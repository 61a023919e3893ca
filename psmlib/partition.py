"""Partitions of diffusion time: which network answers for which times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.machine.checks import check_count
from psmlib.process import Process
from psmlib.process.path import ROUNDING


class Partition:
    r"""A split of [0, T] in K blocks, or a set of K time points.

    One block is the standard approach (SA-DPM). Several are the time-varying parallel score matching
    (TPSM) of Haxholli and Lorenzi, Algorithm 1; points are their discrete variant (DPSM), Algorithm 2:
    point :math:`t_i` answers for :math:`(t_{i-1}, t_i]`.

    Args:
        edges: Ascending times from 0 to T. Shape: (K + 1,).
        discrete: Whether the blocks are represented by their right edges alone.

    Raises:
        ValueError: when the edges do not ascend from 0, or there are fewer than two.

    Example:
        >>> tpsm_b = Partition([0, .02, .1, .3, 1])
        >>> len(tpsm_b), tpsm_b.block_of(torch.tensor([0., .05, 1.])).tolist()
        (4, [0, 1, 3])
        >>> Partition([0, .5, .2])
        Traceback (most recent call last):
        ...
        ValueError: Partition edges must ascend, but 0.2 follows 0.5: sort them and drop repeats
    """

    def __init__(self, edges: Sequence[float], *, discrete: bool = False):
        self.edges = tuple(float(e) for e in edges)
        if not all(math.isfinite(e) for e in self.edges):
            raise ValueError(f"Partition edges must be finite, got {list(self.edges)}")
        self.discrete = discrete
        if len(self.edges) < 2:
            raise ValueError(f"a Partition needs at least two edges, got {list(self.edges)}: [0, 1] is one block")
        if self.edges[0] != 0:
            raise ValueError(f"a Partition must start at 0, got {self.edges[0]}: blocks must cover [0, T]")
        for a, b in zip(self.edges, self.edges[1:], strict=False):
            if not b > a:
                raise ValueError(f"Partition edges must ascend, but {b:g} follows {a:g}: sort them and drop repeats")

    @classmethod
    def equal(cls, k: int, T: float = 1.0) -> Partition:
        """K blocks of equal length.

        Example:
            >>> Partition.equal(4).edges
            (0.0, 0.25, 0.5, 0.75, 1.0)
        """
        check_count("k, the number of blocks,", k)
        return cls([T * i / k for i in range(k + 1)])

    @classmethod
    def points(cls, n: int | Sequence[float], T: float = 1.0) -> Partition:
        """The time points of DPSM: n equally spaced ones, :math:`t_i = iT/n`, or the given ones.

        Example:
            >>> Partition.points(1000).times[:2]
            (0.001, 0.002)
        """
        if hasattr(n, "__len__"):
            return cls([0.0, *n], discrete=True)
        check_count("n, the number of points,", n)
        edges = [T * i / n for i in range(n + 1)]
        return cls(edges, discrete=True)

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __eq__(self, other) -> bool:
        return isinstance(other, Partition) and (self.edges, self.discrete) == (other.edges, other.discrete)

    def __hash__(self) -> int:
        return hash((self.edges, self.discrete))

    def __repr__(self) -> str:
        kind = "points" if self.discrete else "blocks"
        inner = ", ".join(f"{e:g}" for e in self.edges) if len(self) <= 12 else f"0 .. {self.edges[-1]:g}"
        return f"Partition({len(self)} {kind}: {inner})"

    @property
    def T(self) -> float:
        """The last edge."""
        return self.edges[-1]

    @property
    def times(self) -> tuple[float, ...]:
        """The right edge of each block: for a discrete partition, the times that the networks are trained at."""
        return self.edges[1:]

    def bounds(self, k: int) -> tuple[float, float]:
        """The two ends of block k."""
        return self.edges[k], self.edges[k + 1]

    def block_of(self, t: float | Tensor) -> Tensor:
        """The block that answers for each time: block k owns (edge_k, edge_{k+1}], and block 0 owns t = 0 too.

        A time that single precision has moved across an edge counts as the edge.

        Args:
            t: Times. Shape: () or (n,).

        Returns:
            Block indices, int64. Shape: that of ``t``.

        Raises:
            ValueError: when a time lies outside [0, T].
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        edges = torch.tensor(self.edges, dtype=torch.float64, device=t.device)
        rounded = edges.float().double()
        # what single precision holds, and is no edge itself, is compared with edges rounded to it
        single = (t.float() == t) & ~torch.isin(t, edges)
        if not bool(((t >= 0) & (t <= torch.where(single, rounded[-1], edges[-1]))).all()):
            worst = t.flatten()[torch.argmax((t - self.T / 2).abs().nan_to_num(torch.inf).flatten())]
            raise ValueError(f"time {float(worst):g} lies outside [0, {self.T:g}], which {self!r} covers")
        # right=False puts a time that equals an edge in the block to its left, which was trained up to it
        blocks = [torch.bucketize(t, e[1:-1].contiguous(), right=False) for e in (rounded, edges)]
        return torch.where(single, *blocks)

    def check_covers(self, process: Process) -> None:
        """Raises ValueError unless the blocks cover exactly [0, T] of the process."""
        if abs(self.T - process.T) > ROUNDING * process.T:
            raise ValueError(
                f"{self!r} ends at {self.T:g} but {process} runs to T = {process.T:g}: "
                f"give edges from 0 to {process.T:g}"
            )


SA = Partition([0, 1])
TPSM_A = Partition([0, 0.1, 1])
TPSM_B = Partition([0, 0.02, 0.1, 0.3, 1])
"""The blocks of the paper's Table 1; TPSM-C is ``Partition.equal(200)``."""


def blocks_up_to(partition: Partition, T: float) -> int:
    """How many blocks end at or before T, an edge."""
    if not 0 < T <= partition.T * (1 + ROUNDING):
        raise ValueError(f"T = {T:g} lies outside (0, {partition.T:g}], which {partition!r} covers: cut within it")
    near = [k for k, edge in enumerate(partition.edges) if abs(edge - T) <= ROUNDING * T]
    if not near:
        left = [e for e in partition.edges[1:] if e < T][-1:]
        right = next(e for e in partition.edges if e > T)
        choice = " or ".join(f"{e:g}" for e in [*left, right])
        raise ValueError(f"T = {T:g} is no edge of {partition!r}: cut it at {choice}")
    return min(near, key=lambda k: abs(partition.edges[k] - T))  # edges may lie closer together than the tolerance


def cut(partition: Partition, T: float) -> Partition:
    """The blocks up to T; those beyond are dropped.

    Args:
        partition: Blocks or points.
        T: One of its edges.

    Raises:
        ValueError: when T is no edge; a network cannot be cut in two.

    Example:
        >>> cut(Partition([0, .02, .1, .3, 1]), .3)
        Partition(3 blocks: 0, 0.02, 0.1, 0.3)
        >>> cut(Partition([0, .1, 1]), .3)
        Traceback (most recent call last):
        ...
        ValueError: T = 0.3 is no edge of Partition(2 blocks: 0, 0.1, 1): cut it at 0.1 or 1
    """
    return Partition(partition.edges[: blocks_up_to(partition, T) + 1], discrete=partition.discrete)
