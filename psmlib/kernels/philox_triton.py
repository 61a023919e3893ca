"""Philox words by Triton: one program fills a stretch of rows for one lane of one network and update."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # this file must be importable everywhere, to be documented
    triton = None

ROWS = 512


def words_triton(keys: Tensor, first: int, updates: int, rows: int, lanes: int) -> Tensor:
    """As :func:`psmlib.kernels.philox.words_ref`, to the bit.

    Raises:
        ImportError: when Triton is not installed.
    """
    if triton is None:
        raise ImportError("the Triton generator needs triton: install it, or use words_ref")
    out = torch.empty(4 * lanes, len(keys), updates, rows, dtype=torch.int64, device=keys.device)
    if out.numel():
        # each axis of a launch but the first holds 65,535 programs at most; updates and networks share the first
        grid = (len(keys) * updates, lanes, triton.cdiv(rows, ROWS))
        words_kernel[grid](out, keys, first, updates, rows, len(keys) * updates * rows, ROWS=ROWS)
    return out


if triton is not None:

    @triton.jit
    def words_kernel(out, keys, first, updates, rows, plane, ROWS: tl.constexpr):
        """Rows of one (network, update), one lane."""
        place, lane = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
        key = tl.load(keys + place // updates)
        zero = tl.zeros([ROWS], tl.uint32)
        update = (first + place % updates).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(key, row.to(tl.uint32), zero + update, zero + lane.to(tl.uint32), zero)
        at = out + 4 * lane * plane.to(tl.int64) + place * rows + row
        inside = row < rows
        tl.store(at, w0.to(tl.int64), mask=inside)
        tl.store(at + plane, w1.to(tl.int64), mask=inside)
        tl.store(at + 2 * plane, w2.to(tl.int64), mask=inside)
        tl.store(at + 3 * plane, w3.to(tl.int64), mask=inside)
