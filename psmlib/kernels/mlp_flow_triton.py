"""The probability-flow solve as one Triton kernel; the mathematics and the count are in ``mlp_flow``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.kernels.mlp_flow import COLUMNS, fits
from psmlib.kernels.tf32 import tile_side

try:
    import triton
    import triton.language as tl
except ImportError:  # this file must be importable everywhere, to be documented
    triton = None

ROWS = 64
"""Points of one program."""
STRIP = 32
"""Columns of the second hidden layer at a time."""
FLOW = {"num_warps": 8, "num_stages": 1}
"""How the kernel is compiled."""


def mlp_flow_triton(
    params: Tensor, widths: Sequence[int], x: Tensor, blocks: Tensor, table: Tensor, method: str,
    precision: str = "tf32x3",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As :func:`psmlib.kernels.mlp_flow.mlp_flow`; float32 only.

    Args:
        params: Networks. Shape: (K, P).
        widths: Layer widths.
        x: Points. Shape: (n, 2).
        blocks: Which network answers in each step. Shape: (steps,).
        table: Steps. Shape: (steps, 10).
        method: "euler" or "rk4".
        precision: Of the products: "ieee", "tf32x3" or "tf32".

    Raises:
        ImportError: when Triton is not installed.
        ValueError: for networks that the kernel cannot hold.
    """
    if triton is None:
        raise ImportError("the Triton flow needs triton: install it, or use mlp_flow_ref")
    if not fits(widths, x.dtype):
        raise ValueError(f"the Triton flow takes three hidden layers in float32, not {list(widths)} in {x.dtype}")
    F, a, b, c, _ = widths
    end, change = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x))
    if len(x):
        flow[(triton.cdiv(len(x), ROWS),)](
            params, params.stride(0), x.contiguous(), end, change, blocks.to(x.device, torch.int32),
            table.to(x).contiguous(), len(x), len(table), F=F, a=a, b=b, c=c, A=tile_side(a), C=tile_side(c),
            STRIP=STRIP, ROWS=ROWS, COLUMNS=COLUMNS, STAGES=4 if method == "rk4" else 1, PRECISION=precision, **FLOW,
        )  # fmt: skip
    return end, change


if triton is not None:

    @triton.jit
    def _field(
        p, y0, y1, s, F: tl.constexpr, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, A: tl.constexpr,
        C: tl.constexpr, STRIP: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Outputs and trace of one network at a tile of points. Shapes: (ROWS,) each."""
        w2 = p + (F + 1) * a
        w3 = w2 + (a + 1) * b
        w4 = w3 + (b + 1) * c
        ca, cc = tl.arange(0, A), tl.arange(0, C)
        in_a, in_c = ca < a, cc < c
        along0, along1 = tl.load(p + ca, mask=in_a, other=0.0), tl.load(p + a + ca, mask=in_a, other=0.0)
        bias = tl.load(p + F * a + ca, mask=in_a, other=0.0)
        for f in tl.static_range(2, F):
            bias += s * tl.load(p + f * a + ca, mask=in_a, other=0.0)
        z1 = y0[:, None] * along0[None, :] + y1[:, None] * along1[None, :] + bias[None, :]
        e1 = tl.exp(tl.minimum(z1, 0.0))
        h1 = tl.maximum(z1, 0.0) + (e1 - 1.0)

        z3 = tl.zeros([ROWS, C], tl.float32) + tl.load(w3 + b * c + cc, mask=in_c, other=0.0)[None, :]
        for start in range(0, b, STRIP):
            cb = start + tl.arange(0, STRIP)
            in_b = cb < b
            to = tl.load(w2 + ca[:, None] * b + cb[None, :], mask=in_a[:, None] & in_b[None, :], other=0.0)
            z2 = tl.dot(h1, to, input_precision=PRECISION) + tl.load(w2 + a * b + cb, mask=in_b, other=0.0)[None, :]
            h2 = tl.maximum(z2, 0.0) + (tl.exp(tl.minimum(z2, 0.0)) - 1.0)
            on = tl.load(w3 + cb[:, None] * c + cc[None, :], mask=in_b[:, None] & in_c[None, :], other=0.0)
            z3 = tl.dot(h2, on, z3, input_precision=PRECISION)
        e3 = tl.exp(tl.minimum(z3, 0.0))
        h3 = tl.maximum(z3, 0.0) + (e3 - 1.0)
        out0, out1 = tl.load(w4 + 2 * cc, mask=in_c, other=0.0), tl.load(w4 + 2 * cc + 1, mask=in_c, other=0.0)
        v0 = tl.sum(h3 * out0[None, :], 1) + tl.load(w4 + 2 * c)
        v1 = tl.sum(h3 * out1[None, :], 1) + tl.load(w4 + 2 * c + 1)

        met = tl.zeros([ROWS, STRIP], tl.float32)
        for start in range(0, b, STRIP):
            cb = start + tl.arange(0, STRIP)
            in_b = cb < b
            to = tl.load(w2 + ca[:, None] * b + cb[None, :], mask=in_a[:, None] & in_b[None, :], other=0.0)
            z2 = tl.dot(h1, to, input_precision=PRECISION) + tl.load(w2 + a * b + cb, mask=in_b, other=0.0)[None, :]
            on = tl.load(w3 + cb[:, None] * c + cc[None, :], mask=in_b[:, None] & in_c[None, :], other=0.0)
            pushed = tl.dot(e1, to * along0[:, None], input_precision=PRECISION)
            both = pushed * tl.dot(e3, tl.trans(on * out0[None, :]), input_precision=PRECISION)
            pushed = tl.dot(e1, to * along1[:, None], input_precision=PRECISION)
            both += pushed * tl.dot(e3, tl.trans(on * out1[None, :]), input_precision=PRECISION)
            met += tl.exp(tl.minimum(z2, 0.0)) * both
        return v0, v1, tl.sum(met, 1)

    @triton.jit
    def flow(
        flat, stride,  # (K, P) and its row stride
        x, end, change,  # (n, 2), (n, 2), (n,)
        blocks, table,  # (steps,), (steps, COLUMNS)
        n, steps,
        F: tl.constexpr, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, A: tl.constexpr, C: tl.constexpr,
        STRIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """All steps of a tile of points."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        real = row < n
        x0, x1 = tl.load(x + 2 * row, mask=real, other=0.0), tl.load(x + 2 * row + 1, mask=real, other=0.0)
        total = tl.zeros([ROWS], tl.float32)
        for i in range(steps):
            p = flat + tl.load(blocks + i).to(tl.int64) * stride
            h = tl.load(table + i * COLUMNS)
            y0, y1 = x0, x1
            sum0, sum1 = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
            for j in range(STAGES):  # a loop, not four copies of the field
                at = table + i * COLUMNS + 1 + 3 * ((j + 1) // 2)
                slope, gain = tl.load(at + 1), tl.load(at + 2)
                v0, v1, trace = _field(p, y0, y1, tl.load(at), F, a, b, c, A, C, STRIP, ROWS, PRECISION)
                v0, v1 = slope * y0 + gain * v0, slope * y1 + gain * v1
                weight = 1.0
                if STAGES == 4:
                    weight = tl.where((j == 0) | (j == 3), 1.0 / 6, 1.0 / 3)
                ahead = h * tl.where(j == 2, 1.0, 0.5)  # from stage j to the next
                sum0 += weight * v0
                sum1 += weight * v1
                total += h * weight * (2 * slope + gain * trace)
                y0, y1 = x0 + ahead * v0, x1 + ahead * v1
            x0 += h * sum0
            x1 += h * sum1
        tl.store(end + 2 * row, x0, mask=real)
        tl.store(end + 2 * row + 1, x1, mask=real)
        tl.store(change + row, total, mask=real)
