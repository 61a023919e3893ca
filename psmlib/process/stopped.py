r"""Processes derived from others: one stopped earlier, one continued beyond its end, and one on another time scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from psmlib.machine.checks import plain
from psmlib.process.path import ROUNDING, Process, as_time


@dataclass(frozen=True)
class _Ended(Process):
    """The coefficients of a process on [0, T]."""

    process: Process
    T: float = math.nan  # no default: it hides the property of Process, and is refused by the subclasses

    @property
    def variable(self) -> str:
        return self.process.variable

    @property
    def prior_std(self) -> float:
        return self.process.prior_std if float(self.drift(self.T)) else float(self.sigma(self.T))

    @property
    def prior_std_rate(self) -> float:
        """Derivative of the prior's standard deviation in T."""
        return 0.0 if float(self.drift(self.T)) else float(self.sigma_rate(self.T))

    def alpha(self, t):
        return self.process.alpha(t)

    def sigma(self, t):
        return self.process.sigma(t)

    def alpha_rate(self, t):
        return self.process.alpha_rate(t)

    def sigma_rate(self, t):
        return self.process.sigma_rate(t)

    def drift(self, t):
        return self.process.drift(t)

    def diffusion2(self, t):
        return self.process.diffusion2(t)

    def time_of_sigma(self, sigma):
        """The time at which the noise level is ``sigma``; beyond T for a level that is not reached."""
        return self.process.time_of_sigma(sigma)

    def time_of_log_snr(self, value):
        return self.process.time_of_log_snr(value)


@dataclass(frozen=True)
class Shortened(_Ended):
    r"""A process restricted to [0, T], with the same coefficients.

    Its prior is, with a drift, the stationary distribution of the process, N(0, I) for VP; without a drift
    :math:`N(0, \sigma^2(T) I)`, with :math:`\sigma(0)` subtracted (Franzese et al., Table 1).

    Args:
        process: The process; if it is itself a shortened one, its original is taken.
        T: The new end.

    Raises:
        ValueError: when T lies outside (0, process.T].

    Example:
        >>> from psmlib.process import VE, VP
        >>> Shortened(VP(0., 10.), .4)
        Shortened(process=VP(beta_min=0.0, beta_max=10.0), T=0.4)
        >>> Shortened(VP(), .4).prior_std, round(Shortened(VE(.01, 100.), .5).prior_std, 2)
        (1.0, 1.0)
        >>> Shortened(VP(), 1.5)
        Traceback (most recent call last):
        ...
        ValueError: T = 1.5 lies outside (0, 1], where VP(beta_min=0.1, beta_max=20.0) runs: give a time within it
    """

    def __post_init__(self):
        object.__setattr__(self, "T", plain(self.T))
        if not 0 < self.T <= self.process.T * (1 + ROUNDING):
            raise ValueError(
                f"T = {self.T:g} lies outside (0, {self.process.T:g}], where {self.process} runs: give a time within it"
            )
        object.__setattr__(self, "T", min(float(self.T), self.process.T))
        if isinstance(self.process, Shortened):
            object.__setattr__(self, "process", self.process.process)


@dataclass(frozen=True)
class Lengthened(_Ended):
    r"""A process continued to T beyond its end by the same formulas, such as VP with its linear :math:`\beta(t)`.

    Args:
        process: The process.
        T: The new end.

    Raises:
        ValueError: when T is not beyond the end, or the formulas do not continue as far, as those of flow matching.

    Example:
        >>> from psmlib.process import VE, VP
        >>> longer = Lengthened(VP(0., 10.), 2.)
        >>> float(longer.diffusion2(1.5)), longer.T
        (15.0, 2.0)
        >>> round(Lengthened(VE(.01, 1.), 2.).prior_std)                             # 100 times as much for each unit
        100
    """

    def __post_init__(self):
        object.__setattr__(self, "T", plain(self.T))
        if not self.process.T < self.T < math.inf:
            raise ValueError(
                f"T = {self.T:g} is not beyond {self.process.T:g}, the end of {self.process}: "
                "give a later time, or use Shortened"
            )
        if not float(self.process.alpha(self.T)) > 0:
            raise ValueError(f"{self.process} has no signal left before T = {self.T:g}: give a time closer to its end")
        object.__setattr__(self, "T", float(self.T))


@dataclass(frozen=True)
class Retimed(Process):
    r"""The same path on another time scale: :math:`\tilde x_t = x_u` with :math:`u/T = (t/T)^{power}`.

    Integrals over time keep their values at the transformed end: L~(t) = L(u) for the evidence bound L.

    Args:
        process: The process.
        power: Above 1 the noise grows more slowly at first.

    Raises:
        ValueError: when power is not positive.

    Example:
        >>> from psmlib.process import VP
        >>> slow = Retimed(VP(), 2.)
        >>> bool(slow.sigma(.5) == VP().sigma(.25))
        True
    """

    process: Process
    power: float

    def __post_init__(self):
        super().__post_init__()
        if not self.power > 0:
            raise ValueError(f"Retimed needs a positive power, got {self.power}")

    @property
    def T(self) -> float:
        return self.process.T

    @property
    def variable(self) -> str:
        # for a power below 1 the clock starts infinitely fast
        return self.process.variable if self.power >= 1 else "log_snr"

    @property
    def prior_std(self) -> float:
        return self.process.prior_std

    def clock(self, t: float | Tensor) -> Tensor:
        """The time u of the original process."""
        return self.T * (as_time(t) / self.T) ** self.power

    def _pace(self, t: float | Tensor) -> Tensor:
        return self.power * (as_time(t) / self.T) ** (self.power - 1)

    def alpha(self, t):
        return self.process.alpha(self.clock(t))

    def sigma(self, t):
        return self.process.sigma(self.clock(t))

    def alpha_rate(self, t):
        return self._pace(t) * self.process.alpha_rate(self.clock(t))

    def sigma_rate(self, t):
        return self._pace(t) * self.process.sigma_rate(self.clock(t))

    def drift(self, t):
        return self._pace(t) * self.process.drift(self.clock(t))

    def diffusion2(self, t):
        return self._pace(t) * self.process.diffusion2(self.clock(t))

    def time_of_sigma(self, sigma):
        """The time at which the noise level is ``sigma``."""
        return self._own(self.process.time_of_sigma(sigma))

    def time_of_log_snr(self, value):
        return self._own(self.process.time_of_log_snr(value))

    def _own(self, u: Tensor) -> Tensor:
        """The time at which the clock shows u."""
        return self.T * (u / self.T) ** (1 / self.power)
