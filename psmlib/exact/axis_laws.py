r"""One axis of one component of a mixture under diffusion: density, score and posterior in closed form.

Along an axis a component is Gaussian or uniform. If uniform, :math:`\alpha U(-h, h) + \sigma\varepsilon` has density
:math:`[\Phi(z+\delta)-\Phi(z-\delta)]/(2\alpha h)` with :math:`z = u/\sigma`, :math:`\delta=\alpha h/\sigma`.
Far from a box the difference of two :math:`\Phi` underflows, and for small :math:`\delta` it cancels; both cases have
their own formulas here, so that density and score are accurate to about ten digits at all times. (The posterior
variance in a box that lies hundreds of noise levels away is accurate to four.)

The third moment costs more than all the others together and is rarely needed, so it has functions of its own. It is
accurate to :math:`10^{-14}h^3`, and where it is not small by symmetry to twelve digits, at any distance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_DROP = 44.0  # exp(-44) of the peak is left out of a quadrature
_NODES, _WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24))
_NODES = (_NODES + 1) / 2
_POWERS = _WEIGHTS[:, None] * _NODES[:, None] ** torch.arange(4)  # (24, 4): mass and three raw moments on [0, 1]


class Axis(NamedTuple):
    """Density of u = alpha y + sigma eps and posterior of y along each axis; all of shape (n, k, d)."""

    log_density: Tensor
    score: Tensor  # d log q / du
    curvature: Tensor  # d^2 log q / du^2
    mean: Tensor  # E[y | u]
    variance: Tensor  # Var[y | u]


def gaussian_axis(u: Tensor, variance: Tensor, alpha: Tensor, sigma: Tensor) -> Axis:
    """y ~ N(0, variance)."""
    total = alpha**2 * variance + sigma**2
    log_density = -0.5 * u**2 / total - 0.5 * total.log() - _LOG_SQRT_2PI
    ones = torch.ones_like(u)
    return Axis(
        log_density, -u / total, -ones / total, alpha * variance / total * u, variance * sigma**2 / total * ones
    )


def _mills(a: Tensor) -> Tensor:
    """Phi(-a) / phi(a) for a >= 0."""
    return math.sqrt(0.5 * math.pi) * torch.special.erfcx(a * math.sqrt(0.5))


def uniform_axis(u: Tensor, half: Tensor, alpha: Tensor, sigma: Tensor) -> Axis:
    """y ~ U(-half, half)."""
    z, delta = u / sigma, alpha * half / sigma
    small = (delta < 0.03) & (delta * z.abs() < 0.3)
    wide = torch.where(small, delta.clamp_min(0.01), delta)  # no 0/0 in the branch that torch.where discards
    # By symmetry look at the left side only, at near and far, the distances to the two ends. Outside the box
    # phi(near) is divided out of everything: Phi(-near) - Phi(-far) = phi(near) (mills(near) - falloff mills(far))
    near, far = z.abs() - wide, z.abs() + wide
    falloff = torch.exp(-2 * wide * z.abs())  # phi(far) / phi(near)
    outer = near.clamp_min(0)
    gap = _mills(outer) - falloff * _mills(far)
    inner = near.clamp_max(0)
    mass = torch.special.ndtr(-inner) - torch.special.ndtr(-far)
    outside = near > 0
    log_diff = torch.where(outside, gap.log() - 0.5 * outer**2 - _LOG_SQRT_2PI, mass.log())
    ratio = torch.where(outside, 1 / gap, torch.exp(-0.5 * inner**2 - _LOG_SQRT_2PI) / mass)
    slope = -ratio * torch.expm1(-2 * wide * z.abs())  # sigma d log q/du at -|z|
    spread = 1 + ratio * (near - far * falloff) - slope**2
    # Far out y is exponential on the box, and the line above would cancel
    remote = 1 / outer.clamp_min(1) ** 2 - falloff * (2 * wide / torch.expm1(-2 * wide * z.abs())) ** 2
    spread = torch.where(near > 600, remote, spread)
    slope = torch.where(z > 0, -slope, slope)
    # Narrow box: q = phi(z) [1 + delta^2 He_2/3! + delta^4 He_4/5! + delta^6 He_6/7! + delta^8 He_8/9! + ...]
    d2, z2 = delta**2, z**2
    he4, he6 = z2 * (z2 - 6) + 3, z2 * (z2 * (z2 - 15) + 45) - 15
    he8 = z2 * (z2 * (z2 * (z2 - 28) + 210) - 420) + 105
    odd = (z2 * (z2 - 10) + 15) / 840 + d2 * (z2 * (z2 * (z2 - 21) + 105) - 105) / 45360
    p0 = d2 * ((z2 - 1) / 6 + d2 * (he4 / 120 + d2 * (he6 / 5040 + d2 * he8 / 362880)))
    p1 = d2 * z * (1 / 3 + d2 * ((z2 - 3) / 30 + d2 * odd)) / (1 + p0)
    p2 = d2 * (1 / 3 + d2 * ((z2 - 1) / 10 + d2 * (he4 / 168 + d2 * he6 / 6480))) / (1 + p0)
    series = -0.5 * z2 - _LOG_SQRT_2PI - sigma.log() + torch.log1p(p0)
    log_density = torch.where(small, series, log_diff - (2 * wide * sigma).log())
    lift = torch.where(small, p1, slope + z)  # sigma d log q/du + z = delta E[y]/half
    rise = torch.where(small, p2 - p1**2, spread)  # delta^2 Var[y]/half^2
    # delta may be exactly 0 (no signal left); E[y]/half -> 0 and Var[y]/half^2 -> 1/3 there
    safe = torch.where(delta > 0, delta, torch.ones_like(delta))
    mean = half * lift / safe
    variance = half**2 * torch.where(delta > 0, rise / safe**2, torch.full_like(rise, 1 / 3))
    score = torch.where(small, p1 - z, slope) / sigma
    return Axis(log_density, score, (rise - 1) / sigma**2, mean, variance)


def gaussian_third(u: Tensor, variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Third central moment of y given u for y ~ N(0, variance): zero. Shape: that of u."""
    return torch.zeros_like(u)


def uniform_third(u: Tensor, half: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""Third central moment K of y given u for y ~ U(-half, half).

    .. math:: d\,\mathrm{Var}[y|u]/du = \alpha K/\sigma^2, \qquad d^3\log q/du^3 = \alpha^3 K/\sigma^6

    since :math:`\alpha u/\sigma^2` is the natural parameter of y given u (Efron, 2011, Section 2).

    Args:
        u: Coordinate along the axis. Shape: (n, k, d).
        half: Half widths. Shape: broadcasts with u.
        alpha: Signal coefficient; 0 is allowed. Shape: broadcasts with u.
        sigma: Noise level, positive. Shape: broadcasts with u.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> round(float(uniform_third(100 * one, one, one, one)) * 99**3, 2)    # an exponential tail, -2 / distance^3
        -2.0
    """
    z, delta = u / sigma, alpha * half / sigma
    near, far = z.abs() - delta, z.abs() + delta
    scale = sigma / alpha  # infinite at alpha = 0; there the box's own width is the minimum below
    # Well inside, by derivatives of Z = Phi(z + delta) - Phi(z - delta) at -|z|, which fall to zero without noise
    inner, falloff = near.clamp_max(-0.5), torch.exp(-2 * delta * z.abs())
    ratio = torch.exp(-0.5 * inner**2 - _LOG_SQRT_2PI) / (torch.special.ndtr(-inner) - torch.special.ndtr(-far))
    a = -ratio * torch.expm1(-2 * delta * z.abs())
    b, c = ratio * (inner - far * falloff), ratio * (inner**2 - 1 - (far**2 - 1) * falloff)
    inside = scale**3 * (c - 3 * a * b + 2 * a**3)
    # Elsewhere that cancels like near^6, and like 1 / delta^3. But there the distance s of alpha y / sigma from the
    # near end has the law exp(-near s - s^2/2), so smooth and so fast to fall that few nodes hold all its moments
    outer = near.clamp_min(-0.5)
    away = outer.clamp_min(0)
    reach = 2 * _DROP / (away + torch.sqrt(away**2 + 2 * _DROP))  # reach (away + reach / 2) = _DROP
    s = torch.minimum(2 * delta, reach)[..., None] * _NODES.to(u.device)
    moments = torch.exp(-s * (outer[..., None] + s / 2)) @ _POWERS.to(u.device)
    m1, m2, m3 = (moments[..., j] / moments[..., 0] for j in (1, 2, 3))
    outside = torch.minimum(2 * half, reach * scale) ** 3 * (m3 - 3 * m1 * m2 + 2 * m1**3)
    return -torch.sign(z) * torch.where(near < -0.5, inside, outside)
