r"""Bounds on :math:`\mathrm{KL}[p_T\,\|\,N(0, s^2I)]` (Lemma 1), and how fast it decays with T.

With :math:`a^2 = \alpha^2(T)/s^2`, which is :math:`\exp(-\int_0^T\beta)` for VP and
:math:`1/(\sigma^2(T)-\sigma^2(0))` for VE, Lemma 1 of Franzese et al. (*How Much Is Enough?*) states
:math:`\mathrm{KL}\le C a^2` for both. The bound is sharp for N(m, I). Expanding the density of :math:`x_T/s` in
Hermite polynomials, with :math:`h_n = E\,\mathrm{He}_n(x_0)`, for VP

.. math:: \mathrm{KL} = \sum_n \frac{|h_n|^2}{2\,n!}\,a^{2n} + \dots

to leading order, so the first moment in which the data differ from N(0, I) sets the exponent: 1 for the mean,
2 for the covariance, 3 for skewness, 4 if that vanishes too, for example by symmetry. For VE the data become small
relative to :math:`N(0, s^2I)`, whose variance does not include theirs: the exponent is 1, or 2 for centred data.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.diffusion_time.prior_kl import prior_kl, prior_kl_rate
from psmlib.exact.expectations import Quadrature
from psmlib.process import Process, Shortened


def signal_share(process: Process, T: float) -> float:
    r""":math:`a^2 = \alpha^2(T)/s^2`, with s the standard deviation of the prior at T.

    Example:
        >>> from psmlib.process import VP
        >>> round(-math.log(signal_share(VP(.1, 20.), 1.)), 6)             # the integral of beta
        10.05
    """
    return float(process.alpha(T) / Shortened(process, T).prior_std) ** 2


def second_moment(toy: Mixture) -> float:
    """E|x_0|^2.

    Example:
        >>> second_moment(Mixture(gaussians=[(1., [2., 0.], 1.5)]))
        7.0
    """
    return float(toy.cov.trace() + toy.mean.square().sum())


def _check(process: Process) -> bool:
    """Whether the process has a drift; raises ValueError if it has one that does not leave N(0, I) invariant."""
    t = 0.01 * process.T  # early, where sub-VP differs from VP
    f, g2 = float(process.drift(t)), float(process.diffusion2(t))
    if f and abs(g2 + 2 * f) > 1e-12 * g2:
        raise ValueError(f"Lemma 1 is for VP and for processes without drift, not for {process}: use convexity_bound")
    return f != 0


def lemma_constant(toy: Mixture, process: Process) -> float:
    """C1 = KL[p_data || N(0, I)] for a process with a drift, C2 = E|x_0|^2 / 2 for one without.

    Example:
        >>> from psmlib.process import VE, VP
        >>> unit = Mixture(gaussians=[(1., [1.], 1.)])
        >>> round(lemma_constant(unit, VP()), 9), lemma_constant(unit, VE())
        (0.5, 1.0)
    """
    return prior_kl(toy, process, 0.0)[0] if _check(process) else 0.5 * second_moment(toy)


def lemma_bound(toy: Mixture, process: Process, T: float, constant: float | None = None) -> float:
    r"""Lemma 1: :math:`C_1\exp(-\int_0^T\beta)` for VP, :math:`C_2/(\sigma^2(T)-\sigma^2(0))` for VE.

    The first follows from the log-Sobolev inequality of N(0, I): VP is the gradient flow of the KL, sub-VP is not.

    Args:
        toy: The distribution of x_0.
        process: VP or a process without drift.
        T: Where it is stopped.
        constant: :func:`lemma_constant`, if it is known already.

    Raises:
        ValueError: for another process.

    Example:
        >>> from psmlib.process import VP
        >>> toy = Mixture(gaussians=[(.3, [1.], .01), (.7, [3.], .25)])
        >>> lemma_bound(toy, VP(), .6) > prior_kl(toy, VP(), .6)[0]
        True
    """
    _check(process)
    return (lemma_constant(toy, process) if constant is None else constant) * signal_share(process, T)


def convexity_bound(second: float, dim: int, process: Process, T: float) -> float:
    r"""A bound by the second moment alone: KL is convex, so at most the mean over x_0 of the KL of the kernel.

    .. math:: \mathrm{KL}[p_T\,\|\,N(0, s^2I)] \le \tfrac12\left[\frac{\alpha^2E|x_0|^2 + D\sigma^2}{s^2} - D
              - D\log\frac{\sigma^2}{s^2}\right],

    for VP :math:`\tfrac12[m^2(E|x_0|^2-D)-D\log(1-m^2)]` with :math:`m=\alpha`, for VE :math:`C_2/\sigma^2`. It holds
    for any data, also for a finite set, for which C1 is infinite.

    Args:
        second: E|x_0|^2.
        dim: D.
        process: Any.
        T: Where it is stopped.

    Example:
        >>> from psmlib.process import VP
        >>> unit = Mixture(gaussians=[(1., [1.], 1.)])
        >>> convexity_bound(second_moment(unit), 1, VP(), .6) > prior_kl(unit, VP(), .6)[0]
        True
    """
    share = float(process.sigma(T) / Shortened(process, T).prior_std) ** 2
    return 0.5 * (signal_share(process, T) * second + dim * (share - 1) - dim * math.log(share))


def _symmetric(parts: Tensor, axes: int) -> Tensor:
    """The mean over all orders of the last axes."""
    first = parts.dim() - axes
    orders = [[*range(first), *(first + i for i in order)] for order in itertools.permutations(range(axes))]
    return sum(parts.permute(order) for order in orders) / len(orders)


def hermite_moment(toy: Mixture, n: int) -> Tensor:
    r"""The tensor :math:`h_n = E\,\mathrm{He}_n(x_0)`, n = 1 to 4, in closed form. Shape: (d,) * n.

    The moment of the data after I is subtracted from every covariance, so it vanishes for N(0, I).

    Example:
        >>> float(hermite_moment(Mixture(gaussians=[(1., [2.], 1.5)]), 2))    # x^2 - 1
        4.5
    """
    if n not in (1, 2, 3, 4):
        raise ValueError(f"Hermite moments are known for n = 1 to 4, got {n}")
    m, A = toy.centres, toy._factors
    k = len(toy.gauss_weight)
    unit = torch.cat([torch.ones_like(toy.gauss_weight), torch.full_like(toy.box_weight, 1 / 3)])
    S = unit[:, None, None] * A @ A.mT - torch.eye(toy.dim, dtype=m.dtype)
    if n == 1:
        each = m
    elif n == 2:
        each = torch.einsum("ki,kj->kij", m, m) + S
    elif n == 3:
        each = torch.einsum("ki,kj,kl->kijl", m, m, m) + 3 * torch.einsum("ki,kjl->kijl", m, S)
    else:
        each = torch.einsum("ki,kj,kl,kp->kijlp", m, m, m, m) + 6 * torch.einsum("ki,kj,klp->kijlp", m, m, S)
        each = each + 3 * torch.einsum("kij,klp->kijlp", S, S)
        side = A[k:]  # a uniform variable on [-1, 1] has the fourth cumulant -2/15
        each[k:] -= 2 / 15 * torch.einsum("kia,kja,kla,kpa->kijlp", side, side, side, side)
    return _symmetric(torch.einsum("k,k...->...", toy.weights, each), n)


def leading_term(toy: Mixture, process: Process) -> tuple[int, float]:
    r"""Exponent n and coefficient c of :math:`\mathrm{KL}\to c\,a^{2n}`.

    Args:
        toy: The distribution of x_0.
        process: VP or a process without drift.

    Raises:
        ValueError: for another process, or when the first four moments of the data are those of N(0, I).

    Example:
        >>> from psmlib.process import VE, VP
        >>> toy = Mixture(gaussians=[(.3, [1.], .01), (.7, [3.], .25)])
        >>> n, c = leading_term(toy, VP())                                     # half the squared mean
        >>> n, round(c, 9), leading_term(toy.centred(), VP())[0], leading_term(toy.centred(), VE())[0]
        (1, 2.88, 2, 2)
    """
    if not _check(process):
        mean = 0.5 * float(toy.mean.square().sum())
        return (1, mean) if mean > 1e-20 * second_moment(toy) else (2, 0.25 * float(toy.cov.square().sum()))
    for n in (1, 2, 3, 4):
        size = float(hermite_moment(toy, n).square().sum())
        if size > 1e-18 * (1 + second_moment(toy)) ** n:
            return n, size / (2 * math.factorial(n))
    raise ValueError(f"{toy.name} has the first four moments of N(0, I): no rate to order 4 can be told")


def local_rate(toy: Mixture, process: Process, T: float, rule: Quadrature | None = None) -> float:
    r"""The exponent of KL at T, :math:`d\log\mathrm{KL}/d\log a^2`; for VP the decay per unit of :math:`\int\beta`.

    Example:
        >>> from psmlib.process import VP
        >>> apart, narrow = Mixture(gaussians=[(1., [2.], .5)]), Mixture(gaussians=[(1., [0.], .5)])
        >>> round(local_rate(apart, VP(), 1.), 2), round(local_rate(narrow, VP(), 1.), 2)
        (1.0, 2.0)
    """
    short = Shortened(process, T)
    slope = 2 * (float(process.drift(T)) - short.prior_std_rate / short.prior_std)
    return prior_kl_rate(toy, process, T, rule)[0] / (prior_kl(toy, process, T, rule=rule)[0] * slope)
