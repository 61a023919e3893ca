r"""The bank's updates as two Triton kernels a step; why two, and what they move, is said in ``bank_updates``.

`sweep` takes a tile of rows of one network forward and back. Activations pass from layer to layer on the chip, the
second hidden layer in strips of columns; they are left behind with the deltas for the gradients, and the way back reads
its slopes off them. `update` takes a tile of one layer's matrix, bias included as a row whose input is always 1, adds
up its gradient over the batch and moves parameters, moments and moving average.

Block sizes were chosen by what the compiler makes of them (:mod:`psmlib.kernels.resources`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.kernels.bank_updates import BETA1, BETA2, EPS, BankUpdates

try:
    import triton
    import triton.language as tl
except ImportError:  # this file must be importable everywhere, to be documented
    triton = None

ROWS = 64
"""Rows of a batch in one program of `sweep`."""
STRIP = 32
"""Columns of the second hidden layer at a time."""
TILE = (64, 64)
"""Rows and columns of a layer's matrix in one program of `update`."""
DEPTH = 32
"""Rows of a batch that `update` adds up at a time."""


def fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernels can train such networks: three hidden layers, single precision.

    Example:
        >>> fits([4, 100, 150, 100, 2], torch.float32), fits([4, 100, 2], torch.float32)
        (True, False)
    """
    return len(widths) == 5 and max(widths[1], widths[3]) <= 256 and max(widths[0], widths[4]) <= 64 and (
        dtype == torch.float32
    )  # fmt: skip


def tiles(widths: Sequence[int], shape: tuple[int, int] = TILE) -> Tensor:
    """Where each program of `update` works: a row (input offset, a, delta offset, b, parameter offset, row, column).

    Offsets of inputs and deltas are columns of the buffers that `sweep` fills.

    Example:
        >>> tiles([4, 100, 150, 100, 2]).shape                         # 2 + 6 + 6 + 2 tiles of 64 x 64
        torch.Size([16, 7])
    """
    out, source, sink, at = [], 0, 0, 0
    for a, b in zip(widths, widths[1:], strict=False):
        places = [(r, c) for r in range(0, a + 1, shape[0]) for c in range(0, b, shape[1])]
        out += [(source, a, sink, b, at, r, c) for r, c in places]
        source, sink, at = source + a, sink + b, at + (a + 1) * b
    return torch.tensor(out, dtype=torch.int32)


class FusedUpdates(BankUpdates):
    """As :class:`psmlib.kernels.bank_updates.BankUpdates`, by the two kernels.

    Args:
        precision: Of the products of hidden layers and of gradients: "tf32" (ten bits, on the tensor cores), "tf32x3"
            (three such products, nearly single precision) or "ieee".

    Raises:
        ImportError: when Triton is not installed.
        ValueError: for networks that the kernels cannot hold.
    """

    def __init__(self, *args, precision: str = "tf32", **kwargs):
        if triton is None:
            raise ImportError('the fused updates need triton: install it, or use engine="products"')
        self.precision = precision
        super().__init__(*args, **kwargs)

    def _prepare(self) -> None:
        if not fits(self.widths, self.params.dtype):
            raise ValueError(
                f"the fused updates train networks of three hidden layers in float32, not {list(self.widths)} in "
                f'{self.params.dtype}: use engine="products"'
            )
        K, params = len(self.params), self.params
        self._pieces = triton.cdiv(self.batch, ROWS)
        self._inputs = params.new_empty(K, self.batch, sum(self.widths[:-1]))
        self._deltas = params.new_empty(K, self.batch, sum(self.widths[1:]))
        self._losses = params.new_empty(K, self._pieces)
        self._tiles = tiles(self.widths).to(params.device)
        self._none = params.new_empty(1)

    def _sweep(self, h: Tensor, target: Tensor) -> None:
        """Fills inputs, deltas and losses."""
        F, a, b, c, d = self.widths
        sweep[(self._pieces, len(self.params))](
            self.params, self.params.stride(0), h.contiguous(), target.contiguous(), self._inputs, self._deltas,
            self._losses, self.batch, 2 / (self.batch * d),
            F=F, a=a, b=b, c=c, D=d, A=triton.next_power_of_2(max(16, a)), C=triton.next_power_of_2(max(16, c)),
            STRIP=STRIP, ROWS=ROWS, PRECISION=self.precision, num_warps=8, num_stages=1,
        )  # fmt: skip

    def _update(self, rates: Tensor, grad: Tensor | None = None) -> None:
        """Takes Adam's step, or writes the gradient and leaves all else."""
        average = self._none if self.average is None else self.average
        update[(len(self._tiles), len(self.params))](
            self.params, self.params.stride(0), self.mean, self.square, average, self._none if grad is None else grad,
            self._inputs, self._deltas, self._tiles, rates, self.batch, self._inputs.shape[2], self._deltas.shape[2],
            self.mean.stride(0), average.stride(0), 1 - self.ema, ADAM=grad is None, AVERAGE=self.average is not None,
            R=TILE[0], C=TILE[1], DEPTH=DEPTH, BETA1=BETA1, BETA2=BETA2, EPS=EPS, PRECISION=self.precision, num_warps=4,
        )  # fmt: skip

    def one(self, h: Tensor, target: Tensor, rates: Tensor) -> None:
        self._sweep(h, target)
        self._update(rates)
        self.total += self._losses.sum(1)

    def gradient(self, h: Tensor, target: Tensor, grad: Tensor) -> Tensor:
        """Writes the gradient of the mean squared error into ``grad``, (K, P); returns the errors, (K,)."""
        self._sweep(h, target)
        self._update(self._none, grad)
        return self._losses.sum(1)


if triton is not None:

    @triton.jit
    def _slope(h):
        """ELU's derivative from its value: 1 above 0, exp(z) = h + 1 below."""
        return tl.minimum(h, 0.0) + 1.0

    @triton.jit
    def _elu(z):
        return tl.maximum(z, 0.0) + (tl.exp(tl.minimum(z, 0.0)) - 1.0)

    @triton.jit
    def sweep(
        flat, stride,  # parameters (K, P), their row stride; a launcher of Triton's has a variable `params` of its own
        h, target,  # (K, B, F), (K, B, D)
        inputs, deltas,  # (K, B, F + a + b + c), (K, B, a + b + c + D)
        losses,  # (K, tiles)
        batch, factor,
        F: tl.constexpr, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, D: tl.constexpr,  # widths
        A: tl.constexpr, C: tl.constexpr, STRIP: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """A tile of rows, forward and back."""
        tile, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
        row = tile * ROWS + tl.arange(0, ROWS)
        real = row < batch
        p = flat + k * stride
        w2 = p + (F + 1) * a
        w3 = w2 + (a + 1) * b
        w4 = w3 + (b + 1) * c
        h += k * batch * F + row * F
        target += k * batch * D + row * D
        inputs += (k * batch + row) * (F + a + b + c)
        deltas += (k * batch + row) * (a + b + c + D)
        ca, cc = tl.arange(0, A), tl.arange(0, C)
        in_a, in_c = ca < a, cc < c
        ra, rc = real[:, None] & in_a[None, :], real[:, None] & in_c[None, :]

        z = tl.zeros([ROWS, A], tl.float32) + tl.load(p + F * a + ca, mask=in_a, other=0.0)[None, :]
        for f in tl.static_range(F):
            x = tl.load(h + f, mask=real, other=0.0)
            tl.store(inputs + f, x, mask=real)
            z += x[:, None] * tl.load(p + f * a + ca, mask=in_a, other=0.0)[None, :]
        h1 = _elu(z)
        tl.store(inputs[:, None] + F + ca[None, :], h1, mask=ra)

        z3 = tl.zeros([ROWS, C], tl.float32) + tl.load(w3 + b * c + cc, mask=in_c, other=0.0)[None, :]
        for start in range(0, b, STRIP):
            cb = start + tl.arange(0, STRIP)
            in_b = cb < b
            to = tl.load(w2 + ca[:, None] * b + cb[None, :], mask=in_a[:, None] & in_b[None, :], other=0.0)
            z2 = tl.dot(h1, to, input_precision=PRECISION) + tl.load(w2 + a * b + cb, mask=in_b, other=0.0)[None, :]
            h2 = _elu(z2)
            tl.store(inputs[:, None] + F + a + cb[None, :], h2, mask=real[:, None] & in_b[None, :])
            on = tl.load(w3 + cb[:, None] * c + cc[None, :], mask=in_b[:, None] & in_c[None, :], other=0.0)
            z3 = tl.dot(h2, on, z3, input_precision=PRECISION)
        h3 = _elu(z3)
        tl.store(inputs[:, None] + F + a + b + cc[None, :], h3, mask=rc)

        d3 = tl.zeros([ROWS, C], tl.float32)
        loss = tl.zeros([ROWS], tl.float32)
        for j in tl.static_range(D):
            out = tl.load(w4 + cc * D + j, mask=in_c, other=0.0)
            gap = tl.sum(h3 * out[None, :], 1) + tl.load(w4 + c * D + j) - tl.load(target + j, mask=real, other=0.0)
            gap = tl.where(real, gap, 0.0)
            loss += gap * gap
            tl.store(deltas + a + b + c + j, gap * factor, mask=real)
            d3 += (gap * factor)[:, None] * out[None, :]
        tl.store(losses + k * tl.num_programs(0) + tile, tl.sum(loss, 0) * (factor / 2))
        d3 *= _slope(h3)
        tl.store(deltas[:, None] + a + b + cc[None, :], d3, mask=rc)

        tl.debug_barrier()  # what other threads of this program have stored is read from here on
        d1 = tl.zeros([ROWS, A], tl.float32)
        for start in range(0, b, STRIP):
            cb = start + tl.arange(0, STRIP)
            in_b = cb < b
            on = tl.load(w3 + cb[:, None] * c + cc[None, :], mask=in_b[:, None] & in_c[None, :], other=0.0)
            h2 = tl.load(inputs[:, None] + F + a + cb[None, :], mask=real[:, None] & in_b[None, :], other=0.0)
            d2 = tl.dot(d3, tl.trans(on), input_precision=PRECISION) * _slope(h2)
            tl.store(deltas[:, None] + a + cb[None, :], d2, mask=real[:, None] & in_b[None, :])
            to = tl.load(w2 + ca[:, None] * b + cb[None, :], mask=in_a[:, None] & in_b[None, :], other=0.0)
            d1 = tl.dot(d2, tl.trans(to), d1, input_precision=PRECISION)
        h1 = tl.load(inputs[:, None] + F + ca[None, :], mask=ra, other=0.0)
        tl.store(deltas[:, None] + ca[None, :], d1 * _slope(h1), mask=ra)

    @triton.jit
    def update(
        flat, stride, mean, square, average, grad,  # (K, P) each; average and grad may be unused
        inputs, deltas,  # as `sweep` left them
        places,  # (tiles, 7)
        rates,  # (2,)
        batch, wide_in, wide_out, moment_stride, average_stride, share,
        ADAM: tl.constexpr, AVERAGE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr,
        BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """A tile of one layer's matrix."""
        places += tl.program_id(0) * 7
        k = tl.program_id(1).to(tl.int64)
        a, b = tl.load(places + 1), tl.load(places + 3)
        r = tl.load(places + 5) + tl.arange(0, R)
        c = tl.load(places + 6) + tl.arange(0, C)
        n = tl.arange(0, DEPTH)
        left = inputs + (k * batch + n[:, None]) * wide_in + tl.load(places) + r[None, :]
        right = deltas + (k * batch + n[:, None]) * wide_out + tl.load(places + 2) + c[None, :]
        g = tl.zeros([R, C], tl.float32)
        for start in range(0, batch, DEPTH):
            inside = (start + n < batch)[:, None]
            one = tl.where(r == a, 1.0, 0.0)[None, :]  # the bias is what an input of 1 would be given
            x = tl.load(left, mask=inside & (r < a)[None, :], other=0.0) + one
            y = tl.load(right, mask=inside & (c < b)[None, :], other=0.0)
            g = tl.dot(tl.trans(x), y, g, input_precision=PRECISION)
            left += DEPTH * wide_in
            right += DEPTH * wide_out
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
        else:
            tl.store(grad + k * moment_stride + at, g, mask=mask)
