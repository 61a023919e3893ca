r"""The divergence of x_T from its prior, KL[p_T || nu], its derivative in T, and the expectations that make it up.

The density of a mixture is known at every time, so all are expectations of closed forms
(:mod:`psmlib.exact.expectations`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.exact.expectations import Quadrature, estimate, expectation, weighted_sum
from psmlib.likelihood import end_law
from psmlib.process import Process, Shortened


class Density(Protocol):
    """A model of the distribution of x_T."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Shape: (n, d) -> (n,)."""


def mean_log_density(toy: Mixture, process: Process, t: float, rule: Quadrature | None = None) -> tuple[float, float]:
    """E log p_t(x_t), the negative entropy of x_t, with its standard error; t = 0 stands for the data.

    Example:
        >>> from psmlib.process import VE
        >>> unit = Mixture(gaussians=[(1., [0.], 1.)])
        >>> round(mean_log_density(unit, VE(), 0.)[0], 6)                  # -log(2 pi e) / 2
        -1.418939
    """
    return estimate(log_density_by_repeat(rule or Quadrature(toy), process, t))


def log_density_by_repeat(rule: Quadrature, process: Process, t: float) -> Tensor:
    """E log p_t(x_t) for each repeat of a rule. Shape: (r,)."""
    if t == 0:
        return weighted_sum(rule.data(), rule.toy.log_prob)
    law = rule.law(process)
    return expectation(rule, process, t, lambda x: law.log_prob(x, t))


def fisher_information(toy: Mixture, process: Process, t: float, rule: Quadrature | None = None) -> tuple[float, float]:
    """E|grad log p_t|^2 with its standard error.

    Example:
        >>> from psmlib.process import VP
        >>> round(fisher_information(Mixture(gaussians=[(1., [1.], 1.)]), VP(), .3)[0], 9)      # the variance stays 1
        1.0
    """
    rule = rule or Quadrature(toy)
    return estimate(expectation(rule, process, t, lambda x: rule.law(process).score(x, t).square().sum(1)))


def prior_kl(
    toy: Mixture, process: Process, T: float, *, prior: Density | None = None, rule: Quadrature | None = None
) -> tuple[float, float]:
    """KL[p_T || prior] in nats, with its standard error.

    Args:
        toy: The distribution of x_0.
        process: The process, not stopped.
        T: Where it is stopped; at 0 the data are compared with the prior.
        prior: A model of the distribution of x_T; by default the prior of the process stopped at T.
        rule: Quadrature for expectations.

    Example:
        >>> from psmlib.process import VP
        >>> unit = Mixture(gaussians=[(1., [1.], 1.)])                  # |mean|^2 / 2 = exp(-B) / 2
        >>> round(prior_kl(unit, VP(), .3)[0] / float(VP().alpha(.3) ** 2), 9)
        0.5
    """
    return estimate(kl_by_repeat(rule or Quadrature(toy), process, T, log_prior_of(process, T, prior)))


def log_prior_of(process: Process, T: float, prior: Density | None) -> Callable[[Tensor], Tensor]:
    """The log density of a model of x_T, by default of the prior of the process stopped at T."""
    return end_law(prior, process if T == 0 else Shortened(process, T), T)


def kl_by_repeat(rule: Quadrature, process: Process, T: float, log_prior: Callable[[Tensor], Tensor]) -> Tensor:
    """KL[p_T || prior] for each repeat of a rule. Shape: (r,)."""
    # the difference at the same points: the errors of two separate entropies would exceed a small divergence
    if T == 0:
        return weighted_sum(rule.data(), lambda x: rule.toy.log_prob(x) - log_prior(x).to(x))
    law = rule.law(process)
    return expectation(rule, process, T, lambda x: law.log_prob(x, T) - log_prior(x).to(x))


def prior_kl_rate(toy: Mixture, process: Process, T: float, rule: Quadrature | None = None) -> tuple[float, float]:
    r"""Derivative of :func:`prior_kl` in T for the process's own prior :math:`N(0, s^2(T) I)`, with its standard error.

    By de Bruijn's identity the entropy grows by :math:`\tfrac12 g^2 J + f D` with J the Fisher information, and
    :math:`E\log\nu_T` changes by
    :math:`-\tfrac{1}{2s^2}(2 f M + g^2 D) + \tfrac{\dot s}{s}(M/s^2 - D)` with :math:`M = E|x_T|^2`.

    Shape: two floats, in nats per unit of time.

    Example:
        >>> from psmlib.process import VP
        >>> unit = Mixture(gaussians=[(1., [1.], 1.)])                         # KL = exp(-B) / 2
        >>> abs(prior_kl_rate(unit, VP(), .3)[0] / prior_kl(unit, VP(), .3)[0] + float(VP().beta(.3))) < 1e-9
        True
    """
    rule, short = rule or Quadrature(toy), Shortened(process, T)
    law = rule.law(process)
    f, g2, s = float(process.drift(T)), float(process.diffusion2(T)), short.prior_std

    def rate(x: Tensor) -> Tensor:
        J, M = law.score(x, T).square().sum(1), x.square().sum(1)
        entropy = 0.5 * g2 * J + f * toy.dim
        cross = -(f * M + 0.5 * g2 * toy.dim) / s**2 + short.prior_std_rate / s * (M / s**2 - toy.dim)
        return -entropy - cross

    return estimate(expectation(rule, process, T, rate))
