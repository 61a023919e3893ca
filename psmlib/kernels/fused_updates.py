"""Updates of a bank by two Triton kernels a step; why two, and what they move, is said in ``bank_updates``.

Block sizes and warps are those that were quickest on an H100 for 200 networks of the paper, batch 512, of 14 and some
50 that were tried; :mod:`psmlib.kernels.resources` says what the compiler makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import layers
from psmlib.kernels.bank_updates import BETA1, BETA2, EPS, BankUpdates
from psmlib.kernels.bank_updates_triton import triton
from psmlib.kernels.tf32 import rounded, tile_side

if triton is not None:
    from psmlib.kernels.bank_updates_triton import sweep, update

ROWS = 64
"""Rows of a batch in one program of `sweep`; batches are padded to a multiple of it."""
STRIP = 32
"""Columns of the second hidden layer at a time."""
SWEEP = {"num_warps": 4, "num_stages": 1}
"""How `sweep` is compiled: small enough for two programs a multiprocessor, which outweighs what they spill."""
TILE = (32, 64)
"""Rows and columns of a layer's matrix in one program of `update`."""
DEPTH = 64
"""Rows of a batch that `update` adds up at a time."""
UPDATE = {"num_warps": 4, "num_stages": 3}
"""How `update` is compiled."""


def fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernels can train such networks: three hidden layers, single precision.

    Example:
        >>> fits([4, 100, 150, 100, 2], torch.float32), fits([4, 100, 2], torch.float32)
        (True, False)
    """
    return len(widths) == 5 and max(widths[1], widths[3]) <= 256 and max(widths[0], widths[4]) <= 64 and (
        dtype == torch.float32
    )  # fmt: skip


def blocks(widths: Sequence[int]) -> tuple[int, int, int]:
    """The hidden widths as `sweep` holds them: sides of tiles, and whole strips for the second.

    Example:
        >>> blocks([4, 100, 150, 100, 2]), blocks([3, 17, 33, 9, 3])
        ((128, 160, 128), (32, 64, 32))
    """
    a, b, c = widths[1:4]
    return tile_side(a), -(-b // STRIP) * STRIP, tile_side(c)


def tiles(widths: Sequence[int], shape: tuple[int, int] = TILE) -> Tensor:
    """Where each program of `update` works.

    A row is (first input, a, first delta, b, first parameter, row, column of the tile; then of the layer's copies the
    turned one's start and row length, and the straight one's). Layers without copies have rows of length 0.

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
        ValueError: for networks that the kernels cannot hold.
    """

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
            raise ValueError(
                f"the fused updates train networks of three hidden layers in float32, not {list(self.widths)} in "
                f'{self.params.dtype}: use engine="products"'
            )
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
        for width in self.widths[:-1]:  # the input that the biases belong to
            at += width + 1
            ones[:, at] = 1

    @property
    def _changed(self) -> list[Tensor]:
        return [*super()._changed, self._losses, self._copies]

    def _begin(self) -> None:
        """Copies the hidden matrices, which someone else may have changed, as the products want them."""
        super()._begin()
        self._losses.zero_()
        (A, W, C), (_, a, b, c, _) = blocks(self.widths), self.widths
        stack = layers(self.params, self.widths)
        second, third = (rounded(w) if self.precision == "tf32" else w for w in (stack[1][0], stack[2][0]))
        parts = self._copies.split([A * W, A * W, C * W, C * W], 1)
        turned2, straight2, turned3, straight3 = (
            part.view(-1, *shape) for part, shape in zip(parts, ((W, A), (A, W), (C, W), (W, C)), strict=True)
        )
        turned2[:, :b, :a], straight2[:, :a, :b] = second.mT, second
        turned3[:, :c, :b], straight3[:, :b, :c] = third.mT, third

    def _means(self, n: int) -> Tensor:
        return self._losses.sum(1) / n

    def _sweep(self, h: Tensor, target: Tensor) -> None:
        """Fills inputs and deltas, adds to the losses."""
        F, a, b, c, d = self.widths
        A, W, C = blocks(self.widths)
        sweep[(self._padded // ROWS, len(self.params))](
            self.params, self.params.stride(0), h.contiguous(), target.contiguous(), self._copies, self._inputs,
            self._deltas, self._losses, self.batch, self._padded, 2 / (self.batch * d),
            F=F, a=a, b=b, c=c, D=d, A=A, W=W, C=C, STRIP=STRIP, ROWS=ROWS, PRECISION=self.precision, **SWEEP,
        )  # fmt: skip

    def _update(self, rates: Tensor, grad: Tensor | None = None) -> None:
        """Takes Adam's step, or writes the gradient and leaves all else."""
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
        """Writes the gradient of the mean squared error into ``grad``, (K, P); returns the errors, (K,)."""
        self._begin()
        self._sweep(h, target)
        self._update(self._none, grad)
        return self._means(1)
