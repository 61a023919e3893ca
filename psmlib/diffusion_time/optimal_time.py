r"""The diffusion time that maximises the evidence bound: by search where the law is known, by gradient from samples.

.. math:: \frac{dL}{dT} = -\tfrac12 g^2(T)\,E|s(x_T,T)-\nabla\log p_T|^2 - \frac{d}{dT}\mathrm{KL}[p_T\,\|\,\nu_T]

(Franzese et al., *How Much Is Enough?*, Appendix H). The exact score gains as long as there is noise to add; any error
that goes on costing makes the optimum finite. Only the noise level at the end counts, not the schedule that leads to it
(Appendix J): see :class:`Retimed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.diffusion_time.elbo import ELBO, elbo, elbo_curve, gap_slope
from psmlib.diffusion_time.prior_kl import noise_kl_rate
from psmlib.exact.expectations import Quadrature
from psmlib.machine.streams import stream
from psmlib.process import Process, Shortened
from psmlib.score import Score


def slope(
    toy: Mixture, process: Process, T: float, *, score: Score | None = None, rule: Quadrature | None = None
) -> tuple[float, float]:
    """dL/dT by quadrature, in nats per unit of time, with its standard error.

    Example:
        >>> from psmlib.process import VP
        >>> slope(Mixture(gaussians=[(1., [1.], 1.)]), VP(), .5)[0] > 0        # more noise is better for a true score
        True
    """
    kl, kl_error = noise_kl_rate(toy, process, T, rule)
    cost, cost_error = gap_slope(score, toy, process, T, rule) if score is not None else (0.0, 0.0)
    return -cost - kl, math.hypot(kl_error, cost_error)


@dataclass(frozen=True)
class Optimum:
    """Where the bound is highest.

    Attributes:
        T: The time.
        bound: The bound there, with its parts.
        inner: Whether the bound falls beyond T; else T is the longest time there is.
    """

    T: float
    bound: ELBO
    inner: bool


def maximise(
    toy: Mixture, process: Process, *, score: Score | None = None, times: Sequence[float] | None = None,
    eps: float | None = None, rule: Quadrature | None = None,
) -> Optimum:  # fmt: skip
    """T* by a grid of bounds and the root of the slope beside the best.

    Args:
        toy: The law of x_0.
        process: The whole process.
        score: Trained or exact; the true score when left out.
        times: The grid, ascending; by default 20 equal steps to the end.
        eps: Where integrals over time start.
        rule: How expectations are taken.

    Example:
        >>> from psmlib.exact.known_error import Perturbed
        >>> from psmlib.process import VP
        >>> toy, vp = Mixture(gaussians=[(1., [1.], 1.)]), VP()
        >>> off = Perturbed(toy.diffused(vp), lambda t: .1 * vp.sigma(t))    # slopes .01 beta/2 and exp(-B) beta/2
        >>> best = maximise(toy, vp, score=off)
        >>> best.inner, round(float(vp.integral(best.T)) - math.log(100), 9)
        (True, 0.0)
    """
    grid = [process.T * i / 20 for i in range(1, 21)] if times is None else list(times)
    curve = elbo_curve(toy, process, grid, score=score, eps=eps, rule=rule)
    i = max(range(len(grid)), key=lambda j: curve[j].decomposed)

    def rate(T: float) -> float:
        return slope(toy, process, T, score=score, rule=rule)[0]

    if i == len(grid) - 1 and rate(grid[i]) >= 0:
        return Optimum(grid[i], curve[i], False)
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    T = brentq(rate, low, high, xtol=1e-10 * process.T) if rate(low) > 0 > rate(high) else grid[i]
    return Optimum(T, elbo(toy, process, T, score=score, eps=eps, rule=rule), True)


def slope_estimate(
    score: Score, process: Process, x0: Tensor, T: float, generator: torch.Generator | None = None
) -> tuple[float, float]:
    r"""dL/dT from samples of the data alone, with its standard error.

    .. math:: E\left[f\,x\cdot\nabla\log\nu + \tfrac12g^2\Delta\log\nu + \partial_T\log\nu
              - \tfrac12g^2|s-\nabla\log p(x|x_0)|^2\right] + \tfrac{D}{2}(g^2/\sigma^2 + 2f), \qquad x = x_T,

    with :math:`\nu_T=N(0, s^2(T)I)`; its third term, which VE alone has, because its prior widens with T.

    Args:
        score: Trained or exact, of images too.
        process: The whole process.
        x0: Independent points of the data. Shape: (n, \*shape).
        T: The time.
        generator: Of the noise.

    Example:
        >>> from psmlib.process import VP
        >>> toy = Mixture(gaussians=[(1., [1.], 1.)])
        >>> x0 = toy.sample(4000, torch.Generator().manual_seed(0))
        >>> mean, error = slope_estimate(toy.diffused(VP()), VP(), x0, .3, torch.Generator().manual_seed(1))
        >>> abs(mean - slope(toy, VP(), .3)[0]) < 4 * error
        True
    """
    short = Shortened(process, T)
    f, g2, sigma, s = (float(v) for v in (process.drift(T), process.diffusion2(T), process.sigma(T), short.prior_std))
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    x = process.perturb(x0, T, noise)
    with torch.no_grad():
        error = score.score(x.to(**score.home), T).to(x) + noise / sigma
    second, d = x.double().flatten(1).square().sum(1), x[0].numel()
    prior = -(f * second + 0.5 * g2 * d) / s**2 + short.prior_std_rate / s * (second / s**2 - d)
    value = prior - 0.5 * g2 * error.double().flatten(1).square().sum(1) + 0.5 * d * (g2 / sigma**2 + 2 * f)
    return float(value.mean()), float(value.std() / len(value) ** 0.5)


@dataclass(frozen=True)
class Ascent:
    """The course of :func:`ascend`.

    Attributes:
        times: T before each update and after the last. Length: updates + 1.
        slopes: The estimates of dL/dT that were followed. Length: updates.
        stderrs: Their standard errors.
        T: The geometric mean of the last third, over which the noise of the estimates averages out.
    """

    times: list[float]
    slopes: list[float]
    stderrs: list[float]
    T: float


def ascend(
    score: Score, process: Process, data, *, start: float, updates: int = 200, batch_size: int = 1024,
    lr: float = 0.05, shortest: float | None = None, seed: int = 0,
) -> Ascent:  # fmt: skip
    """Gradient ascent on T by Adam on log T, from samples of the data (Appendix H).

    Each update is held within [shortest, process.T]. The step falls like a cosine to a hundredth.

    Args:
        score: Trained or exact on all of [0, process.T].
        process: The whole process.
        data: Has ``sample(n, generator)``.
        start: T to begin with.
        updates: Number of updates.
        batch_size: Points for each estimate of the slope.
        lr: The first step in log T.
        shortest: The least T allowed; by default a thousandth of the process's length.
        seed: Of data and noise.

    Raises:
        ValueError: when start lies outside [shortest, process.T].

    Example:
        >>> from psmlib.process import VP
        >>> toy, vp = Mixture(gaussians=[(1., [1.], 1.)]), VP()
        >>> course = ascend(toy.diffused(vp), vp, toy, start=.3, updates=5, batch_size=200)
        >>> len(course.times), course.T > .3                  # with the true score, more noise is better
        (6, True)
    """
    shortest = 1e-3 * process.T if shortest is None else shortest
    if not 0 < shortest <= start <= process.T:
        raise ValueError(f"start = {start:g} lies outside [{shortest:g}, {process.T:g}]: start within it")
    log_T = torch.tensor(math.log(start), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_T], lr=lr, maximize=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, updates, eta_min=lr / 100)
    generator, course, slopes, errors = stream(seed), [float(start)], [], []
    for _ in range(updates):
        T = course[-1]
        mean, error = slope_estimate(score, process, data.sample(batch_size, generator), T, generator)
        log_T.grad = torch.tensor(T * mean, dtype=torch.float64)  # dL / d log T
        adam.step()
        decay.step()
        with torch.no_grad():
            log_T.clamp_(math.log(shortest), math.log(process.T))
        course.append(min(process.T, math.exp(log_T.item())))
        slopes.append(mean)
        errors.append(error)
    tail = course[-max(1, updates // 3) :]
    return Ascent(course, slopes, errors, math.exp(math.fsum(map(math.log, tail)) / len(tail)))
