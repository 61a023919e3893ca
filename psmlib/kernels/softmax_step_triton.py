"""The online softmax step as one Triton kernel: a program reads its row twice and writes it once."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # this file must be importable everywhere, to be documented
    triton = None

COLUMNS = 1024


def softmax_step_triton(
    D: Tensor, low: Tensor, total: Tensor, energy: Tensor | None, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`psmlib.kernels.softmax_step.softmax_step_ref`; float32 only.

    Raises:
        ImportError: when Triton is not installed.
        ValueError: for another dtype, or rows that are not contiguous.
    """
    if triton is None:
        raise ImportError("the Triton softmax step needs triton: install it, or use softmax_step_ref")
    if D.dtype != torch.float32 or D.stride(1) != 1:
        raise ValueError("the Triton softmax step takes float32 with contiguous rows: use softmax_step_ref")
    scale, best = torch.empty_like(low), torch.empty(low.shape, dtype=torch.int64, device=low.device)
    if D.numel():
        _kernel[(len(D),)](
            D, D.stride(0), D.shape[1], low, total, total if energy is None else energy, rate.contiguous(), scale, best,
            ENERGY=energy is not None, COLUMNS=COLUMNS,
        )  # fmt: skip
    return scale, best


if triton is not None:

    @triton.jit
    def _kernel(
        D, stride, n, low, total, energy, rate, scale, best, ENERGY: tl.constexpr, COLUMNS: tl.constexpr
    ):  # fmt: skip
        """One row."""
        row = tl.program_id(0).to(tl.int64)
        D += row * stride
        cols = tl.arange(0, COLUMNS)
        old = tl.load(low + row)
        r = tl.load(rate + row)

        least = tl.full([COLUMNS], float("inf"), tl.float32)
        place = tl.zeros([COLUMNS], tl.int32)
        for start in range(0, n, COLUMNS):
            value = tl.load(D + start + cols, mask=start + cols < n, other=float("inf"))
            place = tl.where(value < least, start + cols, place)
            least = tl.minimum(least, value)
        found = tl.min(least, 0)
        column = tl.min(tl.where(least == found, place, n), 0)
        new = tl.minimum(old, found)

        weights = tl.zeros([COLUMNS], tl.float32)
        works = tl.zeros([COLUMNS], tl.float32)
        for start in range(0, n, COLUMNS):
            inside = start + cols < n
            gap = tl.where(inside, tl.load(D + start + cols, mask=inside, other=0.0) - new, 0.0)
            weight = tl.where(inside, tl.exp2(-r * gap), 0.0)
            tl.store(D + start + cols, weight, mask=inside)
            weights += weight
            if ENERGY:
                works += weight * gap

        drop = old - new
        shrink = tl.exp2(-r * drop)
        before = tl.load(total + row)
        if ENERGY:
            worked = (tl.load(energy + row) + before * drop) * shrink
            tl.store(energy + row, worked + tl.sum(works, 0))
        tl.store(total + row, before * shrink + tl.sum(weights, 0))
        tl.store(low + row, new)
        tl.store(scale + row, shrink)
        tl.store(best + row, tl.where(found < old, column.to(tl.int64), -1))
