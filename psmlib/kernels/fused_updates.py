"""Updates of a bank by two Triton kernels per step; :mod:`psmlib.kernels.bank_updates` has the reference in torch.

`sweep` carries a tile of rows of one network forward and back. Activations pass from layer to layer on the chip, the
second hidden layer in strips of columns; they are stored with the deltas for the gradients, and the backward pass reads
ELU's slopes off them. `update` takes a tile of one layer's matrix, bias included as a row whose input is always 1, sums
its gradient over the batch and updates parameters, moments and moving average.

Operands of products are stored as tensor cores read them, the summed index last: activations and deltas with the batch
last, the two hidden matrices in copies, straight and transposed. Tensor cores truncate operands to ten bits instead of
rounding, which would bias every product towards zero; so these operands are rounded before they are stored.

Block sizes and warps were the fastest on an H100 for 200 networks of the paper at batch 512, among 14 and some 50 that
were tried; :mod:`psmlib.benchmarks.kernel_resources` shows the registers and memory they take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import layers
from psmlib.kernels.bank_updates import BETA1, BETA2, EPS, BankUpdates
from psmlib.kernels.dispatch import jit, tl, triton
from psmlib.kernels.tf32 import rounded, tile_side

ROWS = 64
"""Rows of a batch per program of `sweep`; batches are padded to a multiple of it."""
STRIP = 32
"""Columns of the second hidden layer at a time."""
SWEEP = {"num_warps": 4, "num_stages": 1}
"""Compile options of `sweep`: small enough for two programs per multiprocessor, which outweighs the spills."""
TILE = (32, 64)
"""Rows and columns of a layer's matrix per program of `update`."""
DEPTH = 64
"""Rows of a batch that `update` sums at a time."""
UPDATE = {"num_warps": 4, "num_stages": 3}
"""Compile options of `update`."""


def fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernels support such networks: three hidden layers, single precision.

    Example:
        >>> fits([4, 100, 150, 100, 2], torch.float32), fits([4, 100, 2], torch.float32)
        (True, False)
    """
    three_hidden = len(widths) == 5 and max(widths[1], widths[3]) <= 256 and max(widths[0], widths[4]) <= 64
    return three_hidden and dtype == torch.float32


def blocks(widths: Sequence[int]) -> tuple[int, int, int]:
    """The hidden widths padded for `sweep`: sides of tiles, and whole strips for the second.

    Example:
        >>> blocks([4, 100, 150, 100, 2]), blocks([3, 17, 33, 9, 3])
        ((128, 160, 128), (32, 64, 32))
    """
    a, b, c = widths[1:4]
    return tile_side(a), -(-b // STRIP) * STRIP, tile_side(c)


def tiles(widths: Sequence[int], shape: tuple[int, int] = TILE) -> Tensor:
    """The tile of each program of `update`.

    A row is (first input, a, first delta, b, first parameter, row, column of the tile; then of the layer's copies the
    transposed one's start and row length, and the straight one's). Layers without copies have rows of length 0.

    Example:
        >>> tiles([4, 100, 150, 100, 2]).shape                         # 2 + 12 + 10 + 4 tiles of 32 x 64
        torch.Size([28, 11])
    """
    A, W, C = blocks(widths)
    none, second = (0, 0, 0, 0), (0, A, A * W, W)
    third = (2 * A * W, W, 2 * A * W + C * W, C)
    out, source, sink, at = [], 0, 0, 0
    for a, b, copies in zip(widths, widths[1:], (none, second, third, none), strict=False):
        places = [(r, c) for r in range(0, a + 1, shape[0]) for c in range(0, b, shape[1])]
        out += [(source, a, sink, b, at, r, c, *copies) for r, c in places]
        source, sink, at = source + a + 1, sink + b, at + (a + 1) * b
    return torch.tensor(out, dtype=torch.int32)


class FusedUpdates(BankUpdates):
    """As :class:`psmlib.kernels.bank_updates.BankUpdates`, by the two kernels.

    Args:
        precision: Of the products of hidden layers and of gradients: "tf32" (ten bits, on the tensor cores), "tf32x3"
            (three such products, nearly single precision) or "ieee".

    Raises:
        ImportError: when Triton is not installed.
        ValueError: for networks that the kernels do not support.
    """

    weighs = False

    def __init__(self, *args, precision: str = "tf32", **kwargs):
        if triton is None:
            raise ImportError('the fused updates need triton: install it, or use engine="products"')
        self.precision = precision
        super().__init__(*args, **kwargs)

    @staticmethod
    def copied(widths: Sequence[int]) -> int:
        A, W, C = blocks(widths)
        return 2 * A * W + 2 * C * W

    def _prepare(self) -> None:
        if not fits(self.widths, self.params.dtype):
            found = f"{list(self.widths)} in {self.params.dtype}"
            raise ValueError(f'fused updates need three hidden layers in float32, not {found}: use engine="products"')
        K, new = len(self.params), self.params.new_zeros
        pieces = -(-self.batch // ROWS)
        self._padded, spare = pieces * ROWS, max(TILE)  # the last tile reads beyond the last network
        self._wide_in, self._wide_out = sum(self.widths[:-1]) + 4, sum(self.widths[1:])
        self._inputs = new(K * self._wide_in + spare, self._padded)
        self._deltas = new(K * self._wide_out + spare, self._padded)
        self._losses, self._copies = new(K, pieces), new(K, self.copied(self.widths))
        self._tiles = tiles(self.widths).to(self.params.device)
        self._none = new(1)
        ones, at = self._inputs[: K * self._wide_in].view(K, self._wide_in, -1), -1
        for width in self.widths[:-1]:  # the constant input of the biases
            at += width + 1
            ones[:, at] = 1

    @property
    def _changed(self) -> list[Tensor]:
        return [*super()._changed, self._losses, self._copies]

    def _begin(self) -> None:
        """Copies the hidden matrices, which may have been changed outside, in the layouts of the products."""
        super()._begin()
        self._losses.zero_()
        (A, W, C), (_, a, b, c, _) = blocks(self.widths), self.widths
        stack = layers(self.params, self.widths)
        second, third = (rounded(w) if self.precision == "tf32" else w for w in (stack[1][0], stack[2][0]))
        parts = self._copies.split([A * W, A * W, C * W, C * W], 1)
        shapes = (W, A), (A, W), (C, W), (W, C)
        turned2, straight2, turned3, straight3 = (p.view(-1, *s) for p, s in zip(parts, shapes, strict=True))
        turned2[:, :b, :a], straight2[:, :a, :b] = second.mT, second
        turned3[:, :c, :b], straight3[:, :b, :c] = third.mT, third

    def _means(self, n: int) -> Tensor:
        return self._losses.sum(1) / n

    def _sweep(self, h: Tensor, target: Tensor) -> None:
        """Fills inputs and deltas, and adds to the losses."""
        F, a, b, c, d = self.widths
        A, W, C = blocks(self.widths)
        sweep[(self._padded // ROWS, len(self.params))](
            self.params, self.params.stride(0), h.contiguous(), target.contiguous(), self._copies, self._inputs,
            self._deltas, self._losses, self.batch, self._padded, 2 / (self.batch * d),
            F=F, a=a, b=b, c=c, D=d, A=A, W=W, C=C, STRIP=STRIP, ROWS=ROWS, PRECISION=self.precision, **SWEEP,
        )  # fmt: skip

    def _update(self, rates: Tensor, grad: Tensor | None = None) -> None:
        """Takes Adam's step, or only writes the gradient."""
        average = self._none if self.average is None else self.average
        update[(len(self._tiles), len(self.params))](
            self.params, self.params.stride(0), self.mean, self.square, average, self._none if grad is None else grad,
            self._copies, self._inputs, self._deltas, self._tiles, rates, self._padded, self._wide_in, self._wide_out,
            self._copies.shape[1], self.mean.stride(0), average.stride(0), 1 - self.ema, ADAM=grad is None,
            AVERAGE=self.average is not None, R=TILE[0], C=TILE[1], DEPTH=DEPTH, BETA1=BETA1, BETA2=BETA2, EPS=EPS,
            PRECISION=self.precision, **UPDATE,
        )  # fmt: skip

    def one(self, h: Tensor, target: Tensor, rates: Tensor) -> None:
        self._sweep(h, target)
        self._update(rates)

    def gradient(self, h: Tensor, target: Tensor, grad: Tensor) -> Tensor:
        self._begin()
        self._sweep(h, target)
        self._update(self._none, grad)
        return self._means(1)


@jit
def _slope(h):
    """ELU's derivative from its value: 1 above 0, exp(z) = h + 1 below."""
    return tl.minimum(h, 0.0) + 1.0


@jit
def _elu(z):
    return tl.maximum(z, 0.0) + (tl.exp(tl.minimum(z, 0.0)) - 1.0)


@jit
def _rounded(x, PRECISION: tl.constexpr):
    """Rounded to ten bits, ties away from zero, for products in tf32."""
    if PRECISION == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x


@jit
def sweep(
    flat, stride,  # parameters (K, P), their row stride; a launcher of Triton's has a variable `params` of its own
    h, target,  # (K, B, F), (K, B, D)
    copies,  # (K, 2 A W + 2 C W): second matrix transposed and straight, third matrix likewise
    inputs, deltas,  # (K, F + a + b + c + 4, padded batch), (K, a + b + c + D, padded batch)
    losses,  # (K, tiles), added to
    batch, padded, factor,
    F: tl.constexpr, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, D: tl.constexpr,  # widths
    A: tl.constexpr, W: tl.constexpr, C: tl.constexpr, STRIP: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: a tile of rows, forward and back; the deltas of rows beyond the batch are 0."""
    tile, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tile * ROWS + tl.arange(0, ROWS)
    real = row < batch
    p = flat + k * stride
    bias2, bias3 = p + (F + 1) * a + a * b, p + (F + 1) * a + (a + 1) * b + b * c
    w4 = bias3 + c
    copies += k * (2 * A * W + 2 * C * W)
    turned2, straight2, turned3, straight3 = copies, copies + A * W, copies + 2 * A * W, copies + 2 * A * W + C * W
    h += k * batch * F + row * F
    target += k * batch * D + row * D
    inputs += k * (F + a + b + c + 4) * padded + row
    deltas += k * (a + b + c + D) * padded + row
    h1_at, h2_at, h3_at = F + 1, F + a + 2, F + a + b + 3
    ca, cc = tl.arange(0, A), tl.arange(0, C)
    in_a, in_c = ca < a, cc < c

    z = tl.zeros([ROWS, A], tl.float32) + tl.load(p + F * a + ca, mask=in_a, other=0.0)[None, :]
    if F <= 8:
        for f in tl.static_range(F):
            x = tl.load(h + f, mask=real, other=0.0)
            tl.store(inputs + f * padded, _rounded(x, PRECISION))
            z += x[:, None] * tl.load(p + f * a + ca, mask=in_a, other=0.0)[None, :]
    else:  # the same, not unrolled: a wide layer would fill the registers
        for f in range(F):
            x = tl.load(h + f, mask=real, other=0.0)
            tl.store(inputs + f * padded, _rounded(x, PRECISION))
            z += x[:, None] * tl.load(p + f * a + ca, mask=in_a, other=0.0)[None, :]
    h1 = _rounded(_elu(z), PRECISION)
    tl.store(inputs[:, None] + (h1_at + ca[None, :]) * padded, h1, mask=in_a[None, :])

    z3 = tl.zeros([ROWS, C], tl.float32) + tl.load(bias3 + cc, mask=in_c, other=0.0)[None, :]
    for start in range(0, b, STRIP):
        cb = start + tl.arange(0, STRIP)
        in_b = cb < b
        to = tl.load(turned2 + cb[:, None] * A + ca[None, :])
        z2 = tl.dot(h1, tl.trans(to), input_precision=PRECISION)
        h2 = _rounded(_elu(z2 + tl.load(bias2 + cb, mask=in_b, other=0.0)[None, :]), PRECISION)
        tl.store(inputs[:, None] + (h2_at + cb[None, :]) * padded, h2, mask=in_b[None, :])
        on = tl.load(turned3 + cc[:, None] * W + cb[None, :])
        z3 = tl.dot(h2, tl.trans(on), z3, input_precision=PRECISION)
    h3 = _elu(z3)
    tl.store(inputs[:, None] + (h3_at + cc[None, :]) * padded, _rounded(h3, PRECISION), mask=in_c[None, :])

    d3 = tl.zeros([ROWS, C], tl.float32)
    loss = tl.zeros([ROWS], tl.float32)
    for j in tl.static_range(D):
        out = tl.load(w4 + cc * D + j, mask=in_c, other=0.0)
        gap = tl.sum(h3 * out[None, :], 1) + tl.load(w4 + c * D + j) - tl.load(target + j, mask=real, other=0.0)
        gap = tl.where(real, gap, 0.0)
        loss += gap * gap
        tl.store(deltas + (a + b + c + j) * padded, _rounded(gap * factor, PRECISION))
        d3 += (gap * factor)[:, None] * out[None, :]
    losses += k * tl.num_programs(0) + tile
    tl.store(losses, tl.load(losses) + tl.sum(loss, 0) * (factor / 2))
    d3 = _rounded(d3 * _slope(h3), PRECISION)
    tl.store(deltas[:, None] + (a + b + cc[None, :]) * padded, d3, mask=in_c[None, :])

    tl.debug_barrier()  # from here on the program reads what its other threads have stored
    d1 = tl.zeros([ROWS, A], tl.float32)
    for start in range(0, b, STRIP):
        cb = start + tl.arange(0, STRIP)
        in_b = cb < b
        on = tl.load(straight3 + cb[:, None] * C + cc[None, :])
        h2 = tl.load(inputs[:, None] + (h2_at + cb[None, :]) * padded, mask=in_b[None, :], other=0.0)
        d2 = _rounded(tl.dot(d3, tl.trans(on), input_precision=PRECISION) * _slope(h2), PRECISION)
        tl.store(deltas[:, None] + (a + cb[None, :]) * padded, d2, mask=in_b[None, :])
        to = tl.load(straight2 + ca[:, None] * W + cb[None, :])
        d1 = tl.dot(d2, tl.trans(to), d1, input_precision=PRECISION)
    h1 = tl.load(inputs[:, None] + (h1_at + ca[None, :]) * padded, mask=in_a[None, :], other=0.0)
    tl.store(deltas[:, None] + ca[None, :] * padded, _rounded(d1 * _slope(h1), PRECISION), mask=in_a[None, :])


@jit
def update(
    flat, stride, mean, square, average, grad,  # (K, P) each; average and grad may be unused
    copies, inputs, deltas,  # as in `sweep`
    places,  # (tiles, 11): see `psmlib.kernels.fused_updates.tiles`
    rates,  # (2,)
    padded, wide_in, wide_out, copies_stride, moment_stride, average_stride, share,
    ADAM: tl.constexpr, AVERAGE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: a tile of one layer's matrix; rows and columns beyond the matrix are computed and discarded."""
    places += tl.program_id(0) * 11
    k = tl.program_id(1).to(tl.int64)
    a, b = tl.load(places + 1), tl.load(places + 3)
    r = tl.load(places + 5) + tl.arange(0, R)
    c = tl.load(places + 6) + tl.arange(0, C)
    n = tl.arange(0, DEPTH)
    left = inputs + (k * wide_in + tl.load(places) + r[:, None]) * padded + n[None, :]
    right = deltas + (k * wide_out + tl.load(places + 2) + c[:, None]) * padded + n[None, :]
    g = tl.zeros([R, C], tl.float32)
    for _ in range(0, padded, DEPTH):
        g = tl.dot(tl.load(left), tl.trans(tl.load(right)), g, input_precision=PRECISION)
        left += DEPTH
        right += DEPTH
    at = tl.load(places + 4) + r[:, None] * b + c[None, :]
    mask = (r <= a)[:, None] & (c < b)[None, :]
    if ADAM:
        m = tl.load(mean + k * moment_stride + at, mask=mask, other=0.0)
        v = tl.load(square + k * moment_stride + at, mask=mask, other=0.0)
        m += (1 - BETA1) * (g - m)
        v = BETA2 * v + (1 - BETA2) * g * g
        tl.store(mean + k * moment_stride + at, m, mask=mask)
        tl.store(square + k * moment_stride + at, v, mask=mask)
        p = tl.load(flat + k * stride + at, mask=mask, other=0.0)
        p -= tl.load(rates) * m / (tl.sqrt(v) * tl.load(rates + 1) + EPS)
        tl.store(flat + k * stride + at, p, mask=mask)
        if AVERAGE:
            mine = tl.load(average + k * average_stride + at, mask=mask, other=0.0)
            tl.store(average + k * average_stride + at, mine + share * (p - mine), mask=mask)
        copies += k * copies_stride
        turned = tl.load(places + 8)
        held = (r < tl.minimum(a, turned * a))[:, None] & mask  # neither biases nor outer matrices have copies
        p = _rounded(p, PRECISION)
        tl.store(copies + tl.load(places + 7) + c[None, :] * turned + r[:, None], p, mask=held)
        tl.store(copies + tl.load(places + 9) + r[:, None] * tl.load(places + 10) + c[None, :], p, mask=held)
    else:
        tl.store(grad + k * moment_stride + at, g, mask=mask)
