r"""A whole probability-flow solve of small networks in the plane: field and exact divergence, all steps, one launch.

:func:`mlp_flow_ref` is the solve in torch operations; the Triton kernel `flow` does the same in one launch.

*Kernel profile.* Points are independent, so a program carries its points from the first step to the last and reads only
weights, 120 KB per evaluation, which the second-level cache holds. Velocity and divergence are

.. math:: v = a(t)\,x + c(t)\,\mathrm{net}(x, t),\qquad \nabla\cdot v = 2a + c\,\mathrm{tr} J .

The trace of :math:`J = W_4^\top S_3 W_3^\top S_2 W_2^\top S_1 W_1^\top`, S being ELU's slopes, is contracted from both
ends: with :math:`u_j = S_1 W_1^\top e_j` pushed through W_2 and :math:`r_j = S_3 W_4 e_j` pulled back through W_3, it
is :math:`\sum_j (W_2^\top u_j)\cdot S_2(W_3 r_j)`. That takes twice the products of the field itself; the directions
are multiplied into the weights, so that only the slopes depend on the point. 30,000 points and 4,000 evaluations are
22 Tflop, and read and write 24 bytes per point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP
from psmlib.kernels.dispatch import choose, jit, tl, triton
from psmlib.kernels.tf32 import tile_side
from psmlib.solvers import TABLEAUS, stages

COLUMNS = 10
"""Columns of the table of steps: h, and (network time, a, c) at the step's start, middle and end."""


def mlp_flow_ref(
    params: Tensor, widths: Sequence[int], x: Tensor, blocks: Tensor, table: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """The solve in torch operations; arguments as of :func:`mlp_flow`, in any dtype."""
    tableau, times = TABLEAUS[method], widths[0] - 2
    basis = torch.eye(2, widths[0], dtype=x.dtype, device=x.device)[None]
    work, change = BankMLP(widths, x.new_empty(1, len(x), widths[0])), x.new_zeros(len(x))
    for block, row in zip(blocks.tolist(), table.tolist(), strict=True):
        nodes = iter([row[1 + 3 * round(2 * c) : 4 + 3 * round(2 * c)] for c in tableau.c])

        def field(y: Tensor, t: float, flat=params[block : block + 1], nodes=nodes) -> tuple[Tensor, Tensor]:
            s, a, b = next(nodes)
            value, trace = work.trace(flat, torch.cat([y, y.new_full((len(y), times), s)], 1)[None], basis)
            return a * y + b * value[0], 2 * a + b * trace[0]

        h, (slopes, rates) = row[0], stages(field, tableau, x, 0.0, row[0])
        x = x + h * sum(w * slope for w, slope in zip(tableau.b, slopes, strict=True))
        change = change + h * sum(w * rate for w, rate in zip(tableau.b, rates, strict=True))
    return x, change


def fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernel supports such networks: in the plane, three hidden layers, single precision.

    Example:
        >>> fits([4, 100, 150, 100, 2], torch.float32), fits([64, 100, 150, 100, 64], torch.float32)
        (True, False)
    """
    plane = len(widths) == 5 and widths[4] == 2 and 2 <= widths[0] <= 4
    return plane and max(widths[1], widths[3]) <= 256 and dtype == torch.float32


def mlp_flow(
    params: Tensor, widths: Sequence[int], x: Tensor, blocks: Tensor, table: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """Solves for points of the plane, by the Triton kernel on CUDA where it supports the networks, else by torch.

    Args:
        params: Networks whose inputs are a point of the plane and then the time, once or repeated. Shape: (K, P).
        widths: Layer widths, input first.
        x: Points. Shape: (n, 2).
        blocks: Index of the network of each step, int32. Shape: (steps,).
        table: Steps, in the order of :data:`COLUMNS`. Shape: (steps, 10).
        method: "euler" or "rk4".

    Returns:
        The points at the end, (n, 2), and the integrated divergence, (n,).

    Raises:
        ValueError: for another method, or points outside the plane.

    Example:
        >>> from psmlib.kernels.bank_mlp import parameter_count
        >>> widths = [4, 8, 8, 8, 2]
        >>> still, x = torch.zeros(1, parameter_count(widths)), torch.ones(3, 2)
        >>> table = torch.tensor([[.1] + 3 * [0., 1., 1.]]).repeat(10, 1)   # no network: dx/dt = x from 0 to 1
        >>> end, change = mlp_flow(still, widths, x, torch.zeros(10, dtype=torch.int32), table, "rk4")
        >>> [round(float(v), 4) for v in (end[0, 0], change[0])]            # e, and 2
        [2.7183, 2.0]
    """
    if method not in ("euler", "rk4"):
        raise ValueError(f"the flow of small networks has steps of euler and rk4, not {method!r}")
    if x.dim() != 2 or x.shape[1] != 2:
        raise ValueError(f"points must be of shape (n, 2), got {tuple(x.shape)}")
    what, fitting = "probability flow of small networks", fits(widths, x.dtype)
    solve = choose(what, x.device.type, mlp_flow_ref, mlp_flow_triton, fitting)
    return solve(params, widths, x, blocks, table, method)


ROWS = 64
"""Points per program."""
STRIP = 32
"""Columns of the second hidden layer at a time."""
FLOW = {"num_warps": 8, "num_stages": 1}
"""Compile options of the kernel."""


def mlp_flow_triton(
    params: Tensor, widths: Sequence[int], x: Tensor, blocks: Tensor, table: Tensor, method: str,
    precision: str = "tf32x3",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As :func:`mlp_flow`, in float32 only.

    Args:
        params, widths, x, blocks, table, method: As of :func:`mlp_flow`.
        precision: Of the products: "ieee", "tf32x3" or "tf32".

    Raises:
        ImportError: when Triton is not installed.
        ValueError: for networks that the kernel does not support.
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


@jit
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


@jit
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
