r"""Squared distances between points and scaled data, block by block, accurate where it matters.

:math:`D_{bi} = |x_b - \alpha_b y_i|^2` is expanded about a centre c of the data,

.. math:: |\tilde x_b|^2 - 2\alpha_b\,\tilde x_b\cdot\tilde y_i + \alpha_b^2|\tilde y_i|^2,
          \qquad \tilde x_b = x_b - \alpha_b c,\quad \tilde y_i = y_i - c,

so that one matrix product suffices. Its rounding error is about :math:`u\,(|\tilde x| + \alpha|\tilde y|)^2`,
u = half a unit in the last place, whereas taking the differences first errs by about :math:`u D`. The product is as
good when x is far from all data, and useless when it is close to one of them, as at little noise. There the few entries
whose weights matter are computed again as :math:`\sum_k (x_k - \alpha y_k)^2`, pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SIZES = {"cpu": (512, 512), "cuda": (2048, 4096)}
"""Rows and columns of a block of distances: on a CPU it fits the second-level cache."""
ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Largest number of elements of a block of data, for data of very many axes."""
PAIRS = {"cpu": 2**18, "cuda": 2**24}
"""Largest number of elements of the differences that are taken pair by pair at a time."""
DIRECT = 8
"""Up to so many axes, differences are cheaper than a matrix product, and always accurate."""
SURE = 256.0
"""Terms of a logit up to this size, in nats, need no check of their rounding: 256 u is less than 2e-5 in float32."""


def limit_of(table: dict[str, int], device: torch.device):
    """The entry of a device, that of "cuda" for every accelerator."""
    return table["cpu" if device.type == "cpu" else "cuda"]


class Block(NamedTuple):
    """A range of the data.

    Attributes:
        start: Index of its first point.
        points: The points. Shape: (n, d).
        shifted: The points relative to the centre, perhaps in a buffer that the next block overwrites. Shape: (n, d).
        norms: Their squared lengths. Shape: (n,).
    """

    start: int
    points: Tensor
    shifted: Tensor
    norms: Tensor


class SquaredDistances:
    """All squared distances, one block at a time: memory grows neither with N nor with B x N.

    Args:
        x: Points. Shape: (B, d).
        data: Data points. Shape: (N, *shape) with d numbers each; never copied whole.
        alpha: Factor of the data, in the dtype of ``x``. Shape: (B,).
        width: The unit of squared distances, 2 sigma^2. Shape: (B,), float64.
        tangent: Directions, for the products (x - alpha y) . tangent, or None. Shape: (B, d).

    Raises:
        ValueError: when ``x`` or the data have values that are not finite.

    Example:
        >>> x, y = torch.zeros(1, 2), torch.tensor([[3., 4.], [0., 1.]])
        >>> distances = SquaredDistances(x, y, torch.ones(1), torch.ones(1, dtype=torch.float64))
        >>> [distances.of(slice(0, 1), block, torch.tensor([9e9]))[0].tolist() for block in distances.blocks()]
        [[[25.0, 1.0]]]
    """

    def __init__(self, x: Tensor, data: Tensor, alpha: Tensor, width: Tensor, tangent: Tensor | None = None):
        self.x, self.data, self.alpha, self.tangent = x, data, alpha, tangent
        (self.B, self.d), self.N = x.shape, len(data)
        self.u = torch.finfo(x.dtype).eps / 2
        self.width = width.to(x)
        self.per_width = (1 / width).to(x)  # may be infinite; 0 times that is NaN, which does not exceed SURE
        self.direct = self.d <= DIRECT
        rows, columns = limit_of(SIZES, x.device)
        columns *= max(1, rows // max(1, self.B))  # few points take wide blocks
        self.rows, self.columns = rows, max(1, min(columns, limit_of(ELEMENTS, x.device) // self.d))
        sample = data[:: max(1, self.N // min(256, self.columns))].reshape(-1, self.d)
        self.centre = sample.mean(0)
        self._check(torch.linalg.vector_norm(self.centre), "data")
        # Data centred about 0 are not shifted, which saves a pass over them
        self.centred = bool(self.centre.square().sum() > sample.var(0, correction=0).sum())
        if not self.centred:
            self.centre = torch.zeros_like(self.centre)
        self.offset = torch.linalg.vector_norm(self.centre)
        self._lead = torch.empty_like(x)  # -2 alpha times the shifted points
        self.length = x.new_empty(self.B)
        self._along = None if tangent is None else x.new_empty(self.B)
        for part in self.chunks():
            shifted = x[part] - alpha[part, None] * self.centre
            self.length[part] = torch.linalg.vector_norm(shifted, dim=1)
            if tangent is not None:
                self._along[part] = (shifted * tangent[part]).sum(1)
            torch.mul(shifted, -2 * alpha[part, None], out=self._lead[part])
        self._check(self.length, "x")
        area = min(self.rows, self.B) * min(self.columns, self.N)
        self._space = [x.new_empty(area) for _ in range(2 if tangent is None else 3)]
        self._shifted = x.new_empty(min(self.columns, self.N) if self.centred else 0, self.d)

    def _check(self, length: Tensor, name: str) -> None:
        """Raises ValueError for lengths whose squares, or those of their sums, overflow or are NaN."""
        if not bool((4 * length).square().isfinite().all()):
            raise ValueError(f"{name} must be finite and not too large for {self.x.dtype}: clean or rescale the values")

    def chunks(self) -> Iterator[slice]:
        """Ranges of the points."""
        return (slice(a, min(a + self.rows, self.B)) for a in range(0, self.B, self.rows))

    def blocks(self) -> Iterator[Block]:
        """Ranges of the data, each prepared once for all points.

        Raises:
            ValueError: when the data have values that are not finite.
        """
        for start in range(0, self.N, self.columns):
            points = self.data[start : start + self.columns].reshape(-1, self.d)
            shifted = torch.sub(points, self.centre, out=self._shifted[: len(points)]) if self.centred else points
            norms = torch.linalg.vector_norm(shifted, dim=1).square_()
            self._check(norms.amax().sqrt(), "data")
            yield Block(start, points, shifted, norms)

    def of(self, part: slice, block: Block, low: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Distances from a range of the points to a block of data.

        Args:
            part: Which points, b of them.
            block: Which data, n of them.
            low: The least distance found before, or something larger. Shape: (b,).

        Returns:
            Squared distances (b, n), products with the tangents (b, n) or None, and the least distance of each row;
            the first two are buffers that the next call overwrites.
        """
        D, spare, *more = (s[: len(low) * len(block.points)].view(len(low), -1) for s in self._space)
        slopes = more[0] if more else None
        if self.direct:
            self._differences(part, block.points, D, spare, slopes)
            return D, slopes, D.amin(1)
        alpha, length = self.alpha[part], self.length[part]
        # The product alone first: adding the other terms one by one as the product grows would round each time
        torch.mm(self._lead[part], block.shifted.T, out=D)
        D.add_(torch.mul(alpha.square()[:, None], block.norms, out=spare)).add_(length.square()[:, None])
        if slopes is not None:
            torch.mm(self.tangent[part] * -alpha[:, None], block.shifted.T, out=slopes)
            slopes.add_(self._along[part, None])
        return D, slopes, self._refine(part, block, low, D)

    def _differences(self, part: slice, points: Tensor, D: Tensor, spare: Tensor, slopes: Tensor | None) -> None:
        """Squared distances as sums of squared differences, axis by axis."""
        x, alpha = self.x[part], self.alpha[part, None]
        D.zero_()
        if slopes is not None:
            slopes.zero_()
        for k in range(self.d):
            gap = torch.sub(x[:, k, None], torch.mul(alpha, points[:, k], out=spare), out=spare)
            D.addcmul_(gap, gap)
            if slopes is not None:
                slopes.addcmul_(gap, self.tangent[part, k, None])

    def _refine(self, part: slice, block: Block, low: Tensor, D: Tensor) -> Tensor:
        """Computes again the distances that are inaccurate and may matter; returns the least distances."""
        found = D.amin(1)
        least = torch.minimum(low, found)
        alpha, length, per_width = self.alpha[part].abs(), self.length[part], self.per_width[part]
        far = alpha * block.norms.amax().sqrt()
        reach = (length + far).square()  # the size of the terms of the expansion
        unsure = (reach - 4 * least) * per_width > SURE
        if not bool(unsure.any()):
            return found
        # Errors of a long sum grow like the square root of its length (Higham & Mary, 2019); then that of the shift
        slack = self.u * ((8 + 4 * math.sqrt(self.d)) * reach + 4 * (length + far) * (alpha * self.offset + far))
        # A weight of less than 1/N of the error of the logits changes no sum
        nats = 1 + math.log(self.N) + (reach * per_width / SURE).log().clamp(0, -math.log(self.u))
        limit = torch.minimum(low + slack, found + 2 * slack) + nats * self.width[part]
        rows = (unsure & (found <= limit)).nonzero()[:, 0]
        if not len(rows):
            return found
        at, columns = (D[rows] <= limit[rows, None]).nonzero(as_tuple=True)
        rows = rows[at]
        step = max(1, limit_of(PAIRS, D.device) // self.d)
        for i in range(0, len(rows), step):
            r, c = rows[i : i + step], columns[i : i + step]
            x = r + part.start
            gap = self.x[x] - self.alpha[x, None] * block.points[c]
            D[r, c] = gap.square_().sum(1)
        return D.amin(1)
