"""The processes: variance-preserving, sub-VP, variance-exploding, reciprocal VE, flow matching and EDM.

Each gives the coefficients of a :class:`~psmlib.process.path.Process`, and the time at which sigma or log SNR has a
given value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from psmlib.process.path import ROUNDING, Process, as_time, check_level


@dataclass(frozen=True)
class VP(Process):
    r"""Variance-preserving path with linear :math:`\beta(t)=\beta_0+(\beta_1-\beta_0)t` (Song et al., 2021, Eq. 11).

    ``VP(0., 10.)`` is the :math:`b(t)=10t` of Parallel Score Matching (Eq. 1); ``VP(.1, 20.)`` the usual one.

    Example:
        >>> p = VP(0., 10.)
        >>> round(float(p.alpha(1.) ** 2 + p.sigma(1.) ** 2), 12)
        1.0
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.beta_min <= self.beta_max or self.beta_max == 0:
            raise ValueError(f"VP needs 0 <= beta_min <= beta_max > 0, got {self.beta_min}, {self.beta_max}")

    def beta(self, t: float | Tensor) -> Tensor:
        """The rate beta(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t)

    def integral(self, t: float | Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = as_time(t)
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t):
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def alpha_rate(self, t):
        return -0.5 * self.beta(t) * self.alpha(t)

    def sigma_rate(self, t):
        sigma = self.sigma(t)
        # at t = 0 sigma grows like sqrt(t), or linearly if beta(0) = 0
        start = math.inf if self.beta_min > 0 else math.sqrt(0.5 * self.beta_max)
        return torch.where(sigma > 0, 0.5 * self.beta(t) * self.alpha(t) ** 2 / sigma, start)

    def drift(self, t):
        return -0.5 * self.beta(t)

    def diffusion2(self, t):
        return self.beta(t)

    def time_of_sigma(self, sigma: float | Tensor) -> Tensor:
        """The time at which the noise level is ``sigma``, by the quadratic formula."""
        return self._time_of_integral(-torch.log1p(-(check_level(sigma, 1.0) ** 2)))

    def time_of_log_snr(self, value):
        return self._time_of_integral(-F.logsigmoid(as_time(value)))  # sigma^2 = sigmoid(-value)

    def _time_of_integral(self, B: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * B)
        return 2 * B / (self.beta_min + root).clamp_min(1e-30)  # 0 / 0 at sigma = 0 when beta(0) = 0


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance-preserving path: the mean of VP, variance (1 - exp(-B))^2 (Song et al., 2021, Eq. 29)."""

    def sigma(self, t):
        return -torch.expm1(-self.integral(t))

    def sigma_rate(self, t):
        return self.beta(t) * torch.exp(-self.integral(t))

    def diffusion2(self, t):
        return Process.diffusion2(self, t)

    def time_of_sigma(self, sigma):
        return super().time_of_sigma(check_level(sigma, 1.0).sqrt())

    def time_of_log_snr(self, value):
        # sigma / alpha = 2 sinh(B / 2)
        return self._time_of_integral(2 * torch.asinh(0.5 * torch.exp(-0.5 * as_time(value))))


@dataclass(frozen=True)
class VE(Process):
    r"""Variance-exploding path, :math:`\sigma^2(t)=\sigma_{min}^2[(\sigma_{max}/\sigma_{min})^{2t}-1]`.

    The subtracted term makes :math:`\sigma(0) = 0`, as a diffusion must (Soft Truncation, Prop. 1); many codes drop it.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max:
            name = type(self).__name__
            raise ValueError(f"{name} needs 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")

    @property
    def prior_std(self):
        return float(self.sigma(self.T))

    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t):
        return torch.ones_like(as_time(t))

    def sigma(self, t):
        return self.sigma_min * torch.sqrt(torch.expm1(2 * as_time(t) * self._log_ratio()))

    def sigma_rate(self, t):
        growth = torch.exp(2 * as_time(t) * self._log_ratio())
        return self.sigma_min**2 * self._log_ratio() * growth / self.sigma(t)

    def diffusion2(self, t):
        # not through sigma_rate, which is infinite at t = 0
        return 2 * self.sigma_min**2 * self._log_ratio() * torch.exp(2 * as_time(t) * self._log_ratio())

    def time_of_sigma(self, sigma):
        """The time at which the noise level is ``sigma``."""
        return torch.log1p((check_level(sigma, math.inf) / self.sigma_min) ** 2) / (2 * self._log_ratio())


@dataclass(frozen=True)
class RVE(VE):
    r"""Reciprocal variance-exploding path, :math:`\sigma(t)=\sigma_{max}(\sigma_{min}/\sigma_{max})^{\epsilon/t}`.

    Nearly all of the noise is added before :math:`t = 100\epsilon`, where steps in t would miss it: solvers step in
    log SNR.
    """

    variable = "log_snr"

    sigma_min: float = 1e-3
    sigma_max: float = 50.0
    eps: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        if not self.eps > 0:
            raise ValueError(f"RVE needs a positive eps, got {self.eps}")

    def sigma(self, t):
        return self.sigma_max * torch.exp(-self._log_ratio() * self.eps / as_time(t))

    def sigma_rate(self, t):
        # at t = 0 the noise vanishes faster than any power of t
        return self.sigma(t) * self._log_ratio() * self.eps / as_time(t).clamp_min(1e-15) ** 2

    def diffusion2(self, t):
        return Process.diffusion2(self, t)

    def time_of_sigma(self, sigma):
        return self._log_ratio() * self.eps / torch.log(self.sigma_max / check_level(sigma, self.sigma_max))


@dataclass(frozen=True)
class OTFlow(Process):
    """The optimal-transport path of flow matching, x_t = (1 - t) x_0 + t eps (Lipman et al., 2023, with sigma_min = 0).

    Time runs from data (0) to noise (1), as everywhere in this book. The drift (1 - t)^-1 is singular at
    t = 1; ``conversion`` between "velocity" and "denoised" stays finite there.
    """

    def alpha(self, t):
        return 1 - as_time(t)

    def sigma(self, t):
        return as_time(t) * 1.0

    def alpha_rate(self, t):
        return -torch.ones_like(as_time(t))

    def sigma_rate(self, t):
        return torch.ones_like(as_time(t))

    def time_of_sigma(self, sigma):
        """The time at which the noise level is ``sigma``."""
        return check_level(sigma, 1.0 + ROUNDING)

    def time_of_log_snr(self, value):
        return torch.sigmoid(-0.5 * as_time(value))


@dataclass(frozen=True)
class EDM(Process):
    """The path of Karras et al. (2022): x_t = x_0 + t eps on [0, sigma_max]."""

    sigma_max: float = 80.0

    def __post_init__(self):
        super().__post_init__()
        if not self.sigma_max > 0:
            raise ValueError(f"EDM needs a positive sigma_max, got {self.sigma_max}")

    @property
    def T(self):
        return self.sigma_max

    @property
    def prior_std(self):
        return self.sigma_max

    def alpha(self, t):
        return torch.ones_like(as_time(t))

    def sigma(self, t):
        return as_time(t) * 1.0

    def sigma_rate(self, t):
        return torch.ones_like(as_time(t))

    def time_of_sigma(self, sigma):
        """The time at which the noise level is ``sigma``."""
        return check_level(sigma, math.inf)
