r"""One pass over the data: the posterior's sums by an online softmax, block by block.

Two matrix products per block, for distances and means; the second is skipped for points to which no data point of the
block has a weight that matters, at little noise nearly all of them. Sums are kept relative to the nearest data point so
far and rescaled when a nearer one is found, so that differences are small where they must be exact.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from psmlib.kernels.softmax_step import softmax_step
from psmlib.kernels.squared_distances import Block, SquaredDistances
from psmlib.kernels.tf32 import product_precision


class Inputs(NamedTuple):
    """Points, data and coefficients, checked and flattened.

    Attributes:
        x: Points. Shape: (B, d).
        data: Data, as given. Shape: (N, *shape).
        alpha: Factor of the data. Shape: (B,).
        sigma: Standard deviation of the noise. Shape: (B,).
        width: 2 sigma^2, in float64 because it underflows long before sigma does. Shape: (B,).
        log_sigma: Shape: (B,).
    """

    x: Tensor
    data: Tensor
    alpha: Tensor
    sigma: Tensor
    width: Tensor
    log_sigma: Tensor


def _coefficient(value: float | Tensor, name: str, x: Tensor) -> Tensor:
    """A coefficient of every point, (B,), in float64 on the CPU."""
    value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if value.dim() and value.shape != (len(x),):
        raise ValueError(f"{name} must be a number or have shape ({len(x)},), got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite: clean it first")
    return value.expand(len(x))


def _check_alike(name: str, value: Tensor, shape: tuple, data: Tensor) -> None:
    """Raises ValueError unless a tensor can be compared with the data; None in ``shape`` stands for any number."""
    if value.dim() != len(shape) or any(a not in (None, b) for a, b in zip(shape, value.shape, strict=True)):
        wanted = str(tuple("B" if a is None else a for a in shape)).replace("'", "")
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")
    if value.dtype != data.dtype:
        raise ValueError(f"{name} has dtype {value.dtype} but data have {data.dtype}: convert one of them")
    if value.device != data.device:
        raise ValueError(f"{name} is on {value.device} but data are on {data.device}: move one of them")


def check_shapes(x: Tensor, data: Tensor, tangent: Tensor | None = None) -> None:
    """Checks that points and tangents can be compared with the data.

    Raises:
        ValueError: for other dtypes than float32 and float64, or shapes, dtypes or devices that do not agree.
    """
    if data.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"data have dtype {data.dtype}: scale them and convert with data.float() or data.double()")
    if not data.numel() or not data.dim():
        raise ValueError(f"data of shape {tuple(data.shape)} are empty: give at least one point of one number")
    _check_alike("x", x, (None, *data.shape[1:]), data)
    if tangent is not None:
        _check_alike("tangent", tangent, tuple(x.shape), data)


def read(x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Inputs:
    """Checks and flattens points and coefficients.

    Args:
        x: Points. Shape: (B, *shape).
        data: Data points. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise. Shape: () or (B,).

    Raises:
        ValueError: when shapes, dtypes or devices do not agree, or a value is not finite or sigma not positive.

    Example:
        >>> read(torch.zeros(2, 1, 3), torch.zeros(5, 1, 3), 1., torch.tensor([1., 2.])).width
        tensor([2., 8.], dtype=torch.float64)
    """
    check_shapes(x, data)
    factor, noise = _coefficient(alpha, "alpha", x), _coefficient(sigma, "sigma", x)
    if not bool((noise.to(x.dtype) > 0).all()):
        raise ValueError(
            f"sigma must be positive in {x.dtype}, got {float(noise.min()):g}: without noise there is none to be read "
            f"off x, take a small positive sigma, such as {torch.finfo(x.dtype).tiny ** 0.5:.0e}, for the limit"
        )
    flat = x.reshape(len(x), data.shape[1:].numel())
    return Inputs(flat, data, factor.to(x), noise.to(x), 2 * noise.square(), noise.log())


def exact_products() -> AbstractContextManager:
    """Within it, matrix products have the full precision of their dtype, whatever the settings outside."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return product_precision("ieee", [each for each in backends if each.fp32_precision not in ("none", "ieee")])


def _rate(given: Inputs) -> Tensor:
    """Weights halve where a squared distance grows by its inverse; finite, because infinity times 0 is no number."""
    return (math.log2(math.e) / given.width).clamp(max=torch.finfo(given.x.dtype).max).to(given.x)


def _negligible(given: Inputs) -> float:
    """Halvings below the largest weight at which N weights together vanish in the rounding of a sum."""
    return math.log2(len(given.data)) - math.log2(torch.finfo(given.x.dtype).eps) + 10


def _active(found: Tensor, low: Tensor, rate: Tensor, negligible: float) -> slice | Tensor | None:
    """The rows of a block with a weight that matters: a slice of all if nearly all are, some, or None."""
    active = ((found - torch.minimum(low, found)) * rate < negligible).nonzero()[:, 0]
    if len(active) > 0.75 * len(low):
        return slice(None)
    return active if len(active) else None


class OnlinePosterior:
    """Sums over the data with posterior weights, for every point.

    Args:
        given: Points, data and coefficients.
        tangent: Directions u for the sums of a derivative. Shape: (B, d).
        moments: Whether to compute the sums of the variance.

    Attributes:
        total: Sum of weights, relative to the largest. Shape: (B,).
        mean: Sum of weight times data point relative to the centre. Shape: (B, d).
        nearest: Index of the nearest data point. Shape: (B,).
        slope: Sum of weight times s, where s = (x - alpha y) . u less that of the nearest point. Shape: (B,).
        turned: Sum of weight times s times data point relative to the centre, or None. Shape: (B, d).
    """

    def __init__(self, given: Inputs, tangent: Tensor | None = None, moments: bool = True):
        x, self.given, self.moments = given.x, given, moments
        self.distances = SquaredDistances(x, given.data, given.alpha, given.width, tangent)
        self._rate, self._negligible = _rate(given), _negligible(given)
        self._state = x.new_zeros(7, len(x))
        # energy: weight x distance above the least; second: weight x |y|^2; own: |y|^2 of the nearest point;
        # level: its product with the tangent
        low, self.total, self.energy, self.second, self.own, self.slope, self._level = self._state
        low.fill_(torch.finfo(x.dtype).max)
        self.nearest = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.mean = torch.zeros_like(x)
        self.turned = None if tangent is None else torch.zeros_like(x)
        with exact_products():
            for block in self.distances.blocks():
                for part in self.distances.chunks():
                    D, slopes, found = self.distances.of(part, block, low[part])
                    rows = _active(found, low[part], self._rate[part], self._negligible)
                    if isinstance(rows, slice):
                        self._add(part, block, D, slopes)
                    elif rows is not None:
                        self._add(rows + part.start, block, D[rows], None if slopes is None else slopes[rows])

    def _add(self, at: slice | Tensor, block: Block, D: Tensor, slopes: Tensor | None) -> None:
        """Adds a block to the sums of some points. Indexing by a slice gives views, indexing by a tensor copies."""
        state, mean, nearest = self._state[:, at], self.mean[at], self.nearest[at]
        low, total, energy, second, own, slope, level = state
        before = total.clone()
        scale, best = softmax_step(D, low, total, energy if self.moments else None, self._rate[at])
        weight = D  # softmax_step works in place
        closer = (best >= 0).nonzero()[:, 0]
        column = best[closer]
        nearest[closer] = column + block.start
        if len(closer):
            mean.mul_(scale[:, None])
        if self.moments:
            second.mul_(scale).addmv_(weight, block.norms)
            own[closer] = block.norms[column]
        if slopes is not None:
            moved = torch.zeros_like(level)
            moved[closer] = level[closer] - slopes[closer, column]
            level -= moved
            slopes.sub_(level[:, None]).mul_(weight)
            slope.addcmul_(moved, before).mul_(scale).add_(slopes.sum(1))
            turned = self.turned[at]
            turned.mul_(scale[:, None]).addcmul_(moved[:, None], mean).addmm_(slopes, block.shifted)
            if isinstance(at, Tensor):
                self.turned[at] = turned
        mean.addmm_(weight, block.shifted)
        if isinstance(at, Tensor):
            self._state[:, at], self.mean[at], self.nearest[at] = state, mean, nearest

    def nearest_points(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """For some points: the nearest data point y, the gap x - alpha y, and the step from y to the posterior mean.

        Mean and noise are y + step and (gap - alpha * step) / sigma: when y takes all the weight the step is 0, and
        its rounding error is relative to the spread of the data, not to their size. Shapes: (b, d) each.
        """
        nearest = self.given.data[self.nearest[part]].reshape(self.mean[part].shape)
        step = self.mean[part] / self.total[part, None] - (nearest - self.distances.centre)
        return nearest, self.given.x[part] - self.given.alpha[part, None] * nearest, step

    def variance(self, part: slice, nearest: Tensor, gap: Tensor, step: Tensor) -> Tensor:
        r"""Trace of the covariance of y given x, for some points and their :meth:`nearest_points`.

        Either from squared distances, :math:`\alpha^2 v = E|x-\alpha y|^2 - |x-\alpha m|^2`, or from squared lengths
        about the centre, :math:`v = E|y|^2 - |m|^2`; both relative to the nearest point. The first is accurate for
        points near the data, the second for much noise, down to alpha = 0. Shape: (b,).
        """
        total, alpha2, own = self.total[part], self.given.alpha[part].square(), self.own[part]
        energy, second = self.energy[part] / total, self.second[part] / total
        move = self.given.alpha[part, None] * step
        by_distance = (energy + ((2 * gap - move) * move).sum(1)) / alpha2
        by_length = second - own - (step * (step + 2 * (nearest - self.distances.centre))).sum(1)
        close = gap.square().sum(1) + energy < alpha2 * (second + own)
        return torch.where(close, by_distance, by_length).clamp_min_(0)


def nearest_first(given: Inputs, k: int) -> tuple[Tensor, Tensor]:
    """The k largest posterior weights and the indices of their data points. Shapes: (B, k) each."""
    x, distances, rate = given.x, SquaredDistances(given.x, given.data, given.alpha, given.width), _rate(given)
    low, total = torch.full_like(rate, torch.finfo(x.dtype).max), torch.zeros_like(rate)
    best = x.new_full((len(x), k), torch.inf)
    index = torch.zeros(best.shape, dtype=torch.int64, device=x.device)
    with exact_products():
        for block in distances.blocks():
            columns = torch.arange(len(block.points), device=x.device) + block.start
            for part in distances.chunks():
                D, _, found = distances.of(part, block, low[part])
                rows = (found < best[part, -1]).nonzero()[:, 0]
                if len(rows):
                    at = rows + part.start
                    best[at], order = torch.cat([best[at], D[rows]], 1).topk(k, largest=False)
                    index[at] = torch.cat([index[at], columns.expand(len(at), -1)], 1).gather(1, order)
                rows = _active(found, low[part], rate[part], _negligible(given))
                if rows is not None:
                    at = part if isinstance(rows, slice) else rows + part.start
                    least, sums = low[at], total[at]
                    softmax_step(D[rows], least, sums, None, rate[at])
                    low[at], total[at] = least, sums
    return ((low[:, None] - best) * rate[:, None]).exp2_() / total[:, None], index
