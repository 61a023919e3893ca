r"""Expectations under a mixture on a line or in the plane by Gauss-Legendre rules between all places with a jump.

.. math:: E f(x) = \int\!\!\int p(x_1, x_2)\,f(x_1, x_2)\,dx_2\,dx_1

A density with boxes jumps along their edges. On each line of constant x_1 the inner integral is broken where the line
crosses an edge; as a function of x_1 it is smooth but for the corners of boxes and the points where edges cross, and
there the outer integral is broken. On the panels between such breaks, none longer than the narrowest Gaussian is wide,
a rule of few nodes has many digits. A second rule with fewer nodes tells how many, strip by strip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from psmlib.exact.components import Components

REACH = 8.5
"""How far the integral of a Gaussian goes, in standard deviations: beyond it lies 2e-17 of its mass."""

_SPREAD = torch.tensor([-9.0, -4.5, -2.0, 0.0, 2.0, 4.5, 9.0], dtype=torch.float64)
"""Breaks about an edge that is blurred by a standard deviation of one."""
_STRIPS = 16
"""Strips that are taken at a time."""


def cubature(
    mixture: Components, f: Callable[[Tensor], Tensor], *, blur: float = 0.0, nodes: int | None = None
) -> tuple[float, float]:
    """Expectation of f(x), x drawn from a mixture; deterministic.

    Args:
        mixture: The distribution of x, in one or two dimensions.
        f: Maps points (n, d) to values (n,). It may jump where the density jumps, or be blurred there.
        blur: Standard deviation of the noise by which f is blurred; 0 for none.
        nodes: Nodes on a panel and axis; by default 6 in the plane and 12 on a line, where they cost nothing.

    Returns:
        The expectation, and an estimate of its error that is larger as a rule: the differences from the rule with two
        nodes less, their absolute values added up over all strips between breaks.

    Raises:
        ValueError: for a mixture in more than two dimensions.

    Example:
        >>> from psmlib.data.toys import two_gaussians
        >>> value, error = cubature(two_gaussians(), two_gaussians().log_prob)
        >>> round(-value, 9), error < 1e-10                    # the entropy of the toy on a line
        (0.851960191, True)
    """
    if mixture.dim > 2:
        advice = "use psmlib.exact.expectations.component_average"
        raise ValueError(f"cubature serves one or two dimensions and {mixture.name} has {mixture.dim}: {advice}")
    nodes = nodes or (12 if mixture.dim == 1 else 6)
    value, rough = (_integrals(mixture, f, blur, n) for n in (nodes, nodes - 2))
    return float(value.sum()), float((value - rough).abs().sum())


def _integrals(mixture: Components, f: Callable[[Tensor], Tensor], blur: float, nodes: int) -> Tensor:
    """The integral over each strip between two breaks of x_1. Shape: (strips,)."""
    found = []
    for x, weight in _points(mixture, blur, nodes):
        part, used = torch.zeros_like(weight), weight > 0
        part[used] = weight[used] * mixture.log_prob(x[used]).exp()
        there = part > 1e-20  # f may be infinite where the density vanishes
        part[there] *= f(x[there])
        found.append(torch.where(there, part, 0.0).sum(1))
    return torch.cat(found)


def _points(mixture: Components, blur: float, nodes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Nodes and weights, one row for each strip, some strips at a time. Shapes: (s, n, d), (s, n)."""
    spread = blur * _SPREAD if blur else torch.zeros(1, dtype=torch.float64)
    reach = REACH * mixture.gauss_cov.diagonal(dim1=1, dim2=2).sqrt()
    sides = torch.cat([reach, (mixture.box_rotation.abs() @ mixture.box_half[..., None])[..., 0]])
    low, high = (mixture.centres - sides).amin(0), (mixture.centres + sides).amax(0)
    wide = float(torch.linalg.eigvalsh(mixture.gauss_cov).min().sqrt()) if len(reach) else math.inf
    rules = [(*ends, wide, nodes) for ends in zip(low.tolist(), high.tolist(), strict=True)]
    start, end = _edges(mixture)
    corners = torch.cat([start[:, :1], _crossings(start, end)[:, None]])
    columns, weights = (v.view(-1, nodes) for v in _panels((corners + spread).reshape(1, -1), *rules[0]))
    columns, weights = (v[weights[:, 0] > 0] for v in (columns, weights))
    if mixture.dim == 1:
        yield columns[..., None], weights
        return
    slope = (end - start)[:, 1] / (end - start)[:, 0]
    left, right = torch.minimum(start, end)[:, 0], torch.maximum(start, end)[:, 0]
    for column, weight in zip(columns.split(_STRIPS), weights.split(_STRIPS), strict=True):
        strips, column = len(column), column.reshape(-1, 1)
        crossed = (left < column) & (column < right)
        y = torch.where(crossed, start[:, 1] + slope * (column - start[:, 0]), torch.nan)
        breaks = (y[..., None] + (1 + slope[:, None] ** 2).sqrt() * spread).flatten(1)
        if blur:  # beside a corner, whose blur reaches beyond its box
            y = torch.where((column - start[:, 0]).abs() < spread[-1], start[:, 1], torch.nan)
            breaks = torch.cat([breaks, (y[..., None] + spread).flatten(1)], 1)
        y, inner = _panels(breaks, *rules[1])
        x = torch.stack([column.expand_as(y), y], -1)
        yield x.view(strips, -1, 2), (weight.reshape(-1, 1) * inner).view(strips, -1)


def _edges(mixture: Components) -> tuple[Tensor, Tensor]:
    """Both ends of every edge of the boxes. Shapes: (4 boxes, d)."""
    if not len(mixture.box_weight):
        return (torch.zeros(0, mixture.dim, dtype=torch.float64),) * 2
    signs = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=torch.float64)
    corners = mixture.box_centre[:, None] + (signs * mixture.box_half[:, None]) @ mixture.box_rotation.mT
    return corners.flatten(0, 1), corners.roll(1, 1).flatten(0, 1)


def _crossings(start: Tensor, end: Tensor) -> Tensor:
    """The first coordinate of each point where two edges cross. Shape: (n,)."""
    along, apart = end - start, start[None] - start[:, None]
    if not len(along):
        return along.flatten()
    across = along[:, None, 0] * along[None, :, 1] - along[:, None, 1] * along[None, :, 0]
    share = (apart[..., 0] * along[None, :, 1] - apart[..., 1] * along[None, :, 0]) / across
    inside = (share >= 0) & (share <= 1)  # of the first edge of a pair
    both = inside & inside.mT
    return (start[:, None, 0] + share * along[:, None, 0])[both]


def _panels(breaks: Tensor, low: float, high: float, wide: float, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights between breaks, those of a row in any order, NaN for none. Shapes: (r, b) -> (r, n), (r, n)."""
    even = torch.linspace(low, high, math.ceil((high - low) / wide) + 1 if wide < math.inf else 2, dtype=torch.float64)
    borders = torch.cat([breaks.nan_to_num(high).clamp(low, high), even.expand(len(breaks), -1)], 1).sort(1).values
    at, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(nodes))
    half = borders.diff(dim=1)[..., None] / 2
    half = torch.where(half > 1e-13 * (high - low), half, 0.0)  # equal breaks, up to rounding
    return (borders[:, :-1, None] + half * (1 + at)).flatten(1), (half * weight).flatten(1)
