r"""Gaussian paths from data to noise, and conversions between predictions of noise, score, data and velocity.

Every process here is a path :math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon` with
:math:`\varepsilon\sim N(0, I)` and :math:`t\in[0, T]`. It solves the linear stochastic equation
:math:`dx = f(t)\,x\,dt + g(t)\,dw` with :math:`f = \dot\alpha/\alpha` and
:math:`g^2 = 2\sigma\dot\sigma - 2 f\sigma^2` (Song et al., 2021, Eq. 29; Kingma et al., 2021).
A subclass gives :math:`\alpha`, :math:`\sigma` and their rates; all else follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from psmlib.machine.checks import floating, plain

ROUNDING = 2.0**-23
"""Two times whose relative difference is no larger are the same: single precision rounds by half as much."""

PREDICTIONS = ("eps", "score", "denoised", "velocity")


def as_time(t: float | Tensor, like: Tensor | None = None) -> Tensor:
    """Turns a time into a tensor: floats become 0-dimensional float64, on the device of ``like``.

    Example:
        >>> as_time(0.5).dtype
        torch.float64
    """
    if isinstance(t, Tensor):
        return t
    return torch.tensor(float(t), dtype=torch.float64, device=None if like is None else like.device)


def check_within(t: float | Tensor, T: float, what: str = "t") -> None:
    """Raises ValueError unless times lie in [0, T], or beyond it by rounding to single precision.

    Example:
        >>> check_within(1.5, 1.)
        Traceback (most recent call last):
        ...
        ValueError: t must lie in [0, 1], got 1.5
    """
    t = as_time(t)
    wrong = ~((t >= 0) & (t <= T * (1 + ROUNDING)))
    if bool(wrong.any()):
        raise ValueError(f"{what} must lie in [0, {T:g}], got {float(t[wrong][0] if t.dim() else t):g}")


def check_level(sigma: float | Tensor, top: float) -> Tensor:
    """Noise levels as a tensor, after a check that each is reached: 0 <= sigma < top.

    Example:
        >>> check_level(1., 1.)
        Traceback (most recent call last):
        ...
        ValueError: sigma must lie in [0, 1), the noise levels that are reached, got 1
    """
    sigma = as_time(sigma)
    wrong = ~((sigma >= 0) & (sigma < top))
    if bool(wrong.any()):
        worst = float(sigma[wrong][0] if sigma.dim() else sigma)
        raise ValueError(f"sigma must lie in [0, {top:g}), the noise levels that are reached, got {worst:g}")
    return sigma


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Gives a coefficient of shape () or (n,) the trailing axes it needs to multiply ``x`` of shape (n, *shape).

    Example:
        >>> expand(torch.ones(5), torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 1, 1, 1])
    """
    if c.dim() == 0:
        return c
    return c.to(x.dtype).reshape(c.shape + (1,) * (x.dim() - c.dim()))


@dataclass(frozen=True)
class Process:
    """A Gaussian path on [0, T]; the base class of all processes.

    Subclasses define :meth:`alpha`, :meth:`sigma`, :meth:`alpha_rate` and :meth:`sigma_rate`, each
    mapping times of shape () or (n,) to values of the same shape, and their inverse :meth:`time_of_log_snr`.

    Attributes:
        variable: In which its velocity is smooth, "t" or "log_snr"; solvers step in it by default.
    """

    variable = "t"

    def __post_init__(self):
        for field in fields(self):  # NumPy's numbers and whole ones would give the same process another name
            value = plain(getattr(self, field.name))
            if isinstance(value, int | float):
                if not math.isfinite(value):
                    raise ValueError(f"{type(self).__name__} needs a finite {field.name}, got {value}")
                object.__setattr__(self, field.name, float(value))

    @property
    def T(self) -> float:
        """The last time of the process."""
        return 1.0

    @property
    def prior_std(self) -> float:
        """Standard deviation per axis of the Gaussian prior, which approximates the distribution of x_T."""
        return 1.0

    def alpha(self, t: float | Tensor) -> Tensor:
        """Signal coefficient."""
        raise TypeError(f"{type(self).__name__} does not define alpha(t): use VP, SubVP, VE, RVE, OTFlow or EDM")

    def sigma(self, t: float | Tensor) -> Tensor:
        """Noise standard deviation."""
        raise TypeError(f"{type(self).__name__} does not define sigma(t): use VP, SubVP, VE, RVE, OTFlow or EDM")

    def alpha_rate(self, t: float | Tensor) -> Tensor:
        """Time derivative of alpha; by default zero, as for a variance-exploding path."""
        return torch.zeros_like(self.alpha(t))

    def sigma_rate(self, t: float | Tensor) -> Tensor:
        """Time derivative of sigma."""
        raise TypeError(f"{type(self).__name__} does not define sigma_rate(t)")

    def drift(self, t: float | Tensor) -> Tensor:
        """The factor f(t) of the linear drift f(t) x, per unit of time."""
        return self.alpha_rate(t) / self.alpha(t)

    def diffusion2(self, t: float | Tensor) -> Tensor:
        """The squared diffusion coefficient g(t)^2, per unit of time."""
        sigma = self.sigma(t)
        return 2 * sigma * self.sigma_rate(t) - 2 * self.drift(t) * sigma**2

    def log_snr(self, t: float | Tensor) -> Tensor:
        """Log signal-to-noise ratio, log(alpha^2 / sigma^2), decreasing from +inf at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def log_snr_rate(self, t: float | Tensor) -> Tensor:
        """Time derivative of log SNR, -g^2 / sigma^2 (Kingma et al., 2021)."""
        t = as_time(t)
        return -self.diffusion2(t) / self.sigma(t) ** 2

    def time_of_log_snr(self, value: float | Tensor) -> Tensor:
        """The time at which log SNR has the given value; here for a path without drift, where sigma tells it."""
        return self.time_of_sigma(torch.exp(-0.5 * as_time(value)))

    def perturb(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """Draws x_t given x_0 with the noise ``eps``.

        Args:
            x0: Data. Shape: (n, *shape).
            t: Times. Shape: () or (n,).
            eps: Standard normal noise. Shape: (n, *shape).

        Example:
            >>> from psmlib.process.families import VP
            >>> VP(0., 10.).perturb(torch.ones(1, 2), 0.0, torch.ones(1, 2))
            tensor([[1., 1.]])
        """
        x0 = floating(x0)
        t = as_time(t, x0)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def _parts(self, t: Tensor, kind: str) -> tuple[Tensor | float, Tensor | float]:
        """The pair (p, q) with prediction = p x_0 + q eps."""
        if kind == "eps":
            return 0.0, 1.0
        if kind == "denoised":
            return 1.0, 0.0
        if kind == "score":
            return 0.0, -1 / self.sigma(t)
        if kind == "velocity":
            return self.alpha_rate(t), self.sigma_rate(t)
        raise ValueError(f"unknown prediction {kind!r}: use one of {', '.join(PREDICTIONS)}")

    def conversion(self, t: float | Tensor, src: str, dst: str) -> tuple[Tensor, Tensor]:
        r"""Coefficients (a, b) with ``dst`` = a x_t + b ``src``, for conditional expectations given x_t.

        ``eps``, ``score`` :math:`=-\varepsilon/\sigma`, ``denoised`` :math:`=x_0` and ``velocity``
        :math:`=\dot\alpha x_0+\dot\sigma\varepsilon` are all linear in :math:`(x_0, \varepsilon)`, and
        :math:`x_t=\alpha x_0+\sigma\varepsilon` holds in expectation too, so any two of them determine a third.

        Raises:
            ValueError: for an unknown kind.

        Example:
            >>> from psmlib.process.families import OTFlow
            >>> a, b = OTFlow().conversion(0.25, "velocity", "denoised")    # x_0 = x - t v
            >>> float(a), float(b)
            (1.0, -0.25)
        """
        t = as_time(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        (ps, qs), (pd, qd) = self._parts(t, src), self._parts(t, dst)
        det = alpha * qs - sigma * ps
        return (pd * qs - ps * qd) / det, (alpha * qd - sigma * pd) / det

    def convert(self, x: Tensor, t: float | Tensor, value: Tensor, src: str, dst: str) -> Tensor:
        """Converts the prediction ``value`` of kind ``src`` at ``x`` to kind ``dst``.

        Args:
            x: Points x_t. Shape: (n, *shape).
            t: Times. Shape: () or (n,).
            value: The prediction. Shape: (n, *shape).
            src: One of "eps", "score", "denoised", "velocity".
            dst: Likewise.

        Example:
            >>> from psmlib.process.families import VP
            >>> p, x, eps = VP(0., 10.), torch.randn(4, 2), torch.randn(4, 2)
            >>> back = p.convert(x, .3, p.convert(x, .3, eps, "eps", "velocity"), "velocity", "eps")
            >>> torch.allclose(back, eps, atol=1e-5)
            True
        """
        x, value = floating(x), floating(value)
        if src == dst:
            return value
        a, b = self.conversion(as_time(t, x), src, dst)
        return expand(a, x) * x + expand(b, x) * value

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log density of N(0, prior_std^2 I) at ``x`` of shape (n, *shape), in nats. Shape: (n,)."""
        x = floating(x).flatten(1)
        std = self.prior_std
        return -0.5 * (x / std).square().sum(1) - x.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(std))

    def prior_sample(self, n: int, shape: tuple[int, ...], generator: torch.Generator | None = None, **kw) -> Tensor:
        """Draws x_T from the prior. Shape: (n, *shape)."""
        return self.prior_std * torch.randn(n, *shape, generator=generator, **kw)
