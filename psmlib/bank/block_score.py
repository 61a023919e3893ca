"""Base class of the Scores of banks: each network answers for one block of time, whatever its architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from psmlib.partition import Partition
from psmlib.process import Process, as_time
from psmlib.score import Score


class BlockScore(Score):
    """A bank joined with its partition and process, network k answering for block k.

    A subclass evaluates one network and passes that to :meth:`_each_block`. For a discrete partition (DPSM) the field
    within a block is the one at its time point, coefficients included: Parallel Score Matching, Appendix H.

    Args:
        bank: Has ``len``, ``whole``, ``native``, ``params`` and ``device``.
        partition: As many blocks as the bank has networks.
        process: The Gaussian path.
        block: Freeze the choice of the network to this one.

    Raises:
        ValueError: when the bank is a part of one, its size and the partition's differ, or the process runs past the
            blocks.

    Example:
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.process import VP
        >>> score = Bank(Plain(), 2).score(Partition([0, .1, 1]), VP(0., 10.))
        >>> isinstance(score, BlockScore), score.on_block(.1).block, score.on_block(.2).block
        (True, 0, 1)
    """

    def __init__(self, bank, partition: Partition, process: Process, block: int | None = None):
        if bank.whole != len(bank):
            raise ValueError(f"the bank is a part, {len(bank)} of {bank.whole} networks: put the parts together first")
        if len(bank) != len(partition):
            raise ValueError(f"the bank holds {len(bank)} networks but {partition!r} has {len(partition)} blocks")
        partition.check_covers(process)
        self.bank, self.partition, self.process, self.block = bank, partition, process, block
        self.native = bank.native
        self._pinned: dict[int, BlockScore] = {}

    @property
    def tensor_options(self) -> dict:
        return {"dtype": self.bank.params.dtype, "device": self.bank.device}

    def _rows(self, x: Tensor) -> int:
        """Points per call when a field is evaluated: enough to hide the cost of a call, few enough for the memory."""
        return max(1, len(x))

    def on_block(self, t: float) -> BlockScore:
        return self if self.block is not None else self._piece(int(self.partition.block_of(t)))

    def _piece(self, k: int) -> BlockScore:
        """The Score frozen to network k; buffers are shared."""
        if k not in self._pinned:
            self._pinned[k] = piece = copy.copy(self)
            piece.block = k
        return self._pinned[k]

    def _time(self, t: Tensor, k: int) -> Tensor:
        """The time at which network k is evaluated: its own time point if the partition is discrete."""
        return torch.full_like(t, self.partition.times[k]) if self.partition.discrete else t

    def _each_block(self, f: Callable, x: Tensor, t: float | Tensor) -> tuple[Tensor, ...]:
        """Calls f(k, x, t) for each network concerned, in batches of points, and puts the results back in order."""
        t = as_time(t, x)
        if self.block is not None or t.dim() == 0:
            k, rows = self.block if self.block is not None else int(self.partition.block_of(t)), self._rows(x)
            cuts = range(0, max(1, len(x)), rows)
            pieces = [f(k, x[i : i + rows], t[i : i + rows] if t.dim() else t) for i in cuts]
            return tuple(torch.cat(p) for p in zip(*pieces, strict=True))
        block = self.partition.block_of(t)
        networks = block.unique().tolist() or [0]  # without points any network gives the shape
        sets = ((k, (block == k).nonzero()[:, 0]) for k in networks)
        return in_order(x, ((at, BlockScore._each_block(self._piece(k), f, x[at], t[at])) for k, at in sets))

    def predict_trace(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The native prediction, (n, *shape), and the trace of its Jacobian, (n,)."""
        value, jac = self.predict_jacobian(x, t)
        return value, jac.diagonal(dim1=-2, dim2=-1).sum(-1)

    def predict_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The native prediction, (n, *shape), and u^T J u with its Jacobian J, (n,)."""
        value, slope = self.predict_jvp(x, t, u)
        return value, (slope * u).flatten(1).sum(1)

    def velocity_and_divergence(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        value, trace = self.predict_trace(x, t)
        return self._convert(x, t, value, trace, torch.full_like(trace, x[:1].numel()))

    def velocity_and_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, form = self.predict_quadratic(x, t, u)
        return self._convert(x, t, value, form, u.square().flatten(1).sum(1))

    def trace_gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.block is not None:
            return super().trace_gradient(x, t)
        return self._each_block(lambda k, y, s: (self._piece(k).trace_gradient(y, s),), x, t)[0]

    def time_derivative(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.block is not None:
            return super().time_derivative(x, t)
        return self._each_block(lambda k, y, s: (self._piece(k).time_derivative(y, s),), x, t)[0]

    def coefficient_time(self, t: float | Tensor) -> float | Tensor:
        if not self.partition.discrete:
            return t
        t = torch.as_tensor(t, dtype=torch.float64)
        k = torch.full(t.shape, self.block, device=t.device) if self.block is not None else self.partition.block_of(t)
        return torch.tensor(self.partition.times, dtype=torch.float64, device=t.device)[k]


def in_order(x: Tensor, parts: Iterable[tuple[Tensor, tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
    """Tensors with a row for each point, put together from those of some points at a time.

    Args:
        x: The points, for their number, dtype and device. Shape: (n, *shape).
        parts: Indices of points, (m,), with tensors whose rows belong to them, (m, ...).
    """
    out = None
    for at, part in parts:
        out = out or tuple(x.new_empty(len(x), *piece.shape[1:]) for piece in part)
        for whole, piece in zip(out, part, strict=True):
            whole[at] = piece
    return out
