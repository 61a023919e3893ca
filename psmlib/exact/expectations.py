r"""Expectations under the distribution of x_t of a mixture, and integrals over time against the rate of log SNR.

Both are deterministic where the density is smooth enough, so that differences of 1e-9 between two expectations can be
resolved; elsewhere independent repeats give standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from psmlib import standard_errors
from psmlib.exact.components import Components
from psmlib.exact.mixture import DiffusedMixture
from psmlib.process import EDM, Process
from psmlib.sampling import grids

EPS = 1e-5
"""Where integrals over time start, as a share of the process's length."""

_NODES, _WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(4))


@dataclass(frozen=True)
class Quadrature:
    r"""Expectations under the distribution of x_t: by the trapezoidal rule if affordable, else by Sobol points.

    For a density that is smooth on some scale, the trapezoidal rule on a grid finer than that scale is exact to many
    digits. The scale is the smallest standard deviation of a component, and :math:`\sigma(t)` if there are boxes, so in
    the plane the grid is used from some noise level on. Below it: scrambled Sobol points in each component, the same
    ones at all times, with independent repeats that give standard errors.

    Attributes:
        toy: The distribution of x_0.
        step: Spacing of the grid, in units of the scale; by default 1/4 on the line and 0.4 elsewhere.
        reach: How far the grid goes beyond each component, in its standard deviations.
        limit: Points up to which a grid is used; 0 for Sobol points alone.
        m: 2^m Sobol points a component and repeat; by default from 10 down to 3, as their work grows
            with the square of the number of components.
        repeats: Independent scramblings.
    """

    toy: Components
    step: float | None = None
    reach: float = 8.0
    limit: int = 1 << 13
    m: int | None = None
    repeats: int = 8

    @cached_property
    def _laws(self) -> dict[Process, DiffusedMixture]:
        return {}

    def law(self, process: Process) -> DiffusedMixture:
        """The exact distribution under a process, made once."""
        if process not in self._laws:
            self._laws[process] = DiffusedMixture(self.toy, process)
        return self._laws[process]

    def points(self, process: Process, t: float) -> tuple[Tensor, Tensor]:
        """Points of x_t and their weights, one row for each repeat. Shapes: (r, n, d), (r, n)."""
        return self._grid(process, t) or self._sobol(self._draws, process, t)

    def data(self) -> tuple[Tensor, Tensor]:
        """Points of the data and their weights; 16 times as many Sobol points, as densities of x_0 are cheap.

        Shapes: (r, n, d), (r, n).
        """
        no_noise = EDM()
        return self._grid(no_noise, 0.0) or self._sobol(self._draw(self._log2 + 4), no_noise, 0.0)

    def _grid(self, process: Process, t: float) -> tuple[Tensor, Tensor] | None:
        toy, alpha, sigma = self.toy, float(process.alpha(t)), float(process.sigma(t))
        scale = math.sqrt(alpha**2 * self._narrowest + sigma**2)
        if scale == 0:
            return None
        wide = (alpha**2 * toy.gauss_cov.diagonal(dim1=1, dim2=2) + sigma**2).sqrt() * self.reach
        box = alpha * (toy.box_rotation.abs() @ toy.box_half[..., None])[..., 0] + self.reach * sigma
        centre, margin = alpha * toy.centres, torch.cat([wide, box])
        low, high = (centre - margin).amin(0), (centre + margin).amax(0)
        step = scale * (self.step or (0.25 if toy.dim == 1 else 0.4))
        counts = [math.ceil(n) + 1 for n in ((high - low) / step).tolist()]
        if math.prod(counts) > self.limit:
            return None
        axes = [torch.linspace(*ends, n, dtype=torch.float64) for *ends, n in zip(low, high, counts, strict=True)]
        x = torch.cartesian_prod(*axes).reshape(-1, toy.dim)
        volume = math.prod(float(a[1] - a[0]) for a in axes)
        return x[None], volume * self.law(process).log_prob(x, t).exp()[None]

    @cached_property
    def _narrowest(self) -> float:
        """The smallest variance of a component along any direction; 0 where there are boxes, which have edges."""
        return 0.0 if len(self.toy.box_weight) else float(torch.linalg.eigvalsh(self.toy.gauss_cov).min())

    @property
    def _log2(self) -> int:
        return min(10, max(3, 14 - math.ceil(2 * math.log2(len(self.toy.weights))))) if self.m is None else self.m

    @cached_property
    def _draws(self) -> tuple[Tensor, Tensor]:
        return self._draw(self._log2)

    def _draw(self, m: int) -> tuple[Tensor, Tensor]:
        """Data in each component, and noise. Shapes: (r, k, 2^m, d), (r, 1, 2^m, d)."""
        d, k = self.toy.dim, len(self.toy.weights)
        engines = [torch.quasirandom.SobolEngine(2 * d, scramble=True, seed=r) for r in range(self.repeats)]
        cube = torch.stack([e.draw(2**m, dtype=torch.float64) for e in engines])[:, None].clamp(1e-12, 1 - 1e-12)
        local, noise = cube[..., :d], torch.special.ndtri(cube[..., d:])
        gaussian = (torch.arange(k) < len(self.toy.gauss_weight))[:, None, None]
        local = torch.where(gaussian, torch.special.ndtri(local), 2 * local - 1)
        return self.toy.centres[:, None] + local @ self.toy._factors.mT, noise

    def _sobol(self, draws: tuple[Tensor, Tensor], process: Process, t: float) -> tuple[Tensor, Tensor]:
        x = float(process.alpha(t)) * draws[0] + float(process.sigma(t)) * draws[1]
        weight = self.toy.weights[:, None].expand(x.shape[1:3]) / x.shape[2]
        return x.flatten(1, 2), weight.flatten().expand(len(x), -1)


def expectation(rule: Quadrature, process: Process, t: float, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Expectation of f(x_t), (n, d) -> (n,), one for each repeat of the rule. Shape: (r,)."""
    return weighted_sum(rule.points(process, t), f)


def weighted_sum(points: tuple[Tensor, Tensor], f: Callable[[Tensor], Tensor]) -> Tensor:
    """Weighted sum of f over points of :class:`Quadrature`, one for each repeat. Shape: (r,)."""
    x, weight = points
    return (weight * f(x.flatten(0, 1)).reshape(weight.shape)).sum(1)


def estimate(values: Tensor) -> tuple[float, float]:
    """Mean and standard error over repeats, the latter 0 for a deterministic rule. Shape: (r,)."""
    value, error = standard_errors.mean(values)
    return value, error or 0.0


def component_average(
    mixture: Components, f, *, process: Process | None = None, t: float = 0.0, m: int | None = None, repeats: int = 8
) -> tuple[float, float]:
    """Expectation of f(x_t) under the exact distribution, by scrambled Sobol points in each component.

    Args:
        mixture: The distribution of x_0.
        f: Maps points (n, d) to values (n,).
        process: How x_0 is diffused; needed for t > 0.
        t: The time.
        m: 2^m points a component and repeat; by default about 2^13 points a repeat in all.
        repeats: Independent scramblings, which give the standard error.

    Returns:
        The mean and its standard error, floats.

    Example:
        >>> from psmlib.data.toys import HG
        >>> mean, se = component_average(HG(), lambda x: x[:, 0])
        >>> abs(mean) < 1e-4
        True
    """
    m = max(6, 13 - int(math.log2(len(mixture.weights)))) if m is None else m
    rule = Quadrature(mixture, limit=0, m=m, repeats=repeats)
    return estimate(expectation(rule, process or EDM(), t, f))


def time_rule(process: Process, edges: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights for integrals against the rate of log SNR, between edges where integrands may jump.

    Four Gauss-Legendre nodes in log t on each unit of log SNR. Both variables resolve t -> 0, where the rate of log SNR
    is proportional to that of log t. Of a process that is smooth in log SNR alone, such as reciprocal VE, the nodes are
    spaced in log SNR itself.

    Args:
        process: Gives log SNR.
        edges: Ascending times, the first positive.

    Returns:
        Times, weights, and the interval between edges that each time lies in. Shapes: (n,).

    Example:
        >>> from psmlib.process import VP
        >>> t, weight, _ = time_rule(VP(), [1e-3, .2, 1.])
        >>> abs(float(weight.sum() - VP().log_snr(1e-3) + VP().log_snr(1.))) < 1e-8
        True
    """
    t, weight, piece = [], [], []
    for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        span = float(process.log_snr(a) - process.log_snr(b))
        panels = grids.log_snr(process, a, b, max(1, math.ceil(span)) if math.isfinite(span) else 64)
        panels = process.log_snr(panels) if process.variable == "log_snr" else panels.log()
        half = panels.diff()[:, None] / 2
        nodes = (panels[:-1, None] + half * (1 + _NODES)).flatten()
        if process.variable == "log_snr":
            t.append(process.time_of_log_snr(nodes))
            weight.append((-half * _WEIGHTS).flatten())
        else:
            t.append(nodes.exp())
            rate = process.diffusion2(t[-1]) / process.sigma(t[-1]) ** 2
            weight.append((half * _WEIGHTS).flatten() * t[-1] * rate)
        piece.append(torch.full((len(nodes),), i))
    return torch.cat(t), torch.cat(weight), torch.cat(piece)
