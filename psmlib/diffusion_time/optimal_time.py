r"""The diffusion time that maximises the evidence bound, by quadrature for known densities or by stochastic gradients.

.. math:: \frac{dL}{dT} = -\tfrac12 g^2(T)\,E|s(x_T,T)-\nabla\log p_T|^2 - \frac{d}{dT}\mathrm{KL}[p_T\,\|\,\nu_T]

(Franzese et al., *How Much Is Enough?*, Appendix H). With the exact score the bound grows with T; an error of the score
at large T makes the optimum finite. The bound depends on the noise level at the end, not on the schedule that leads to
it (Appendix J): see :class:`psmlib.process.Retimed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from psmlib import standard_errors
from psmlib.data.toys import Mixture
from psmlib.diffusion_time.elbo import ELBO, elbo, elbo_curve, gap_slope
from psmlib.diffusion_time.prior_kl import prior_kl_rate
from psmlib.exact.expectations import Quadrature
from psmlib.machine.streams import stream
from psmlib.process import Process, Shortened
from psmlib.score import Score


def elbo_slope(
    toy: Mixture, process: Process, T: float, *, score: Score | None = None, rule: Quadrature | None = None
) -> tuple[float, float]:
    """dL/dT by quadrature, in nats per unit of time, with its standard error.

    Example:
        >>> from psmlib.process import VP
        >>> elbo_slope(Mixture(gaussians=[(1., [1.], 1.)]), VP(), .5)[0] > 0      # the true score gains by more noise
        True
    """
    kl, kl_error = prior_kl_rate(toy, process, T, rule)
    cost, cost_error = gap_slope(score, toy, process, T, rule) if score is not None else (0.0, 0.0)
    return -cost - kl, math.hypot(kl_error, cost_error)


@dataclass(frozen=True)
class Optimum:
    """The maximum of the bound.

    Attributes:
        T: The time.
        bound: The bound there, with its terms.
        inner: Whether the bound falls beyond T; otherwise T is the last time of the grid.
    """

    T: float
    bound: ELBO
    inner: bool


def maximise_elbo(
    toy: Mixture, process: Process, *, score: Score | None = None, times: Sequence[float] | None = None,
    eps: float | None = None, rule: Quadrature | None = None,
) -> Optimum:  # fmt: skip
    """The optimal T: the best of a grid, refined to the root of the slope next to it.

    Args:
        toy: The distribution of x_0.
        process: The process, not stopped.
        score: Trained or exact; the true score by default.
        times: The grid, ascending; by default 20 equal steps to the end.
        eps: Where integrals over time start.
        rule: Quadrature for expectations.

    Example:
        >>> from psmlib.exact.known_error import ScoreWithError
        >>> from psmlib.process import VP
        >>> toy, vp = Mixture(gaussians=[(1., [1.], 1.)]), VP()
        >>> off = ScoreWithError(toy.diffused(vp), lambda t: .1 * vp.sigma(t))    # slopes .01 beta/2 and exp(-B) beta/2
        >>> best = maximise_elbo(toy, vp, score=off)
        >>> best.inner, round(float(vp.integral(best.T)) - math.log(100), 9)
        (True, 0.0)
    """
    grid = [process.T * i / 20 for i in range(1, 21)] if times is None else list(times)
    curve = elbo_curve(toy, process, grid, score=score, eps=eps, rule=rule)
    i = max(range(len(grid)), key=lambda j: curve[j].decomposed)

    def rate(T: float) -> float:
        return elbo_slope(toy, process, T, score=score, rule=rule)[0]

    if i == len(grid) - 1 and rate(grid[i]) >= 0:
        return Optimum(grid[i], curve[i], False)
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    T = brentq(rate, low, high, xtol=1e-10 * process.T) if rate(low) > 0 > rate(high) else grid[i]
    return Optimum(T, elbo(toy, process, T, score=score, eps=eps, rule=rule), True)


def elbo_slope_estimate(
    score: Score, process: Process, x0: Tensor, T: float, generator: torch.Generator | None = None
) -> tuple[float, float]:
    r"""dL/dT from samples of the data alone, with its standard error.

    .. math:: E\left[f\,x\cdot\nabla\log\nu + \tfrac12g^2\Delta\log\nu + \partial_T\log\nu
              - \tfrac12g^2|s-\nabla\log p(x|x_0)|^2\right] + \tfrac{D}{2}(g^2/\sigma^2 + 2f), \qquad x = x_T,

    with :math:`\nu_T=N(0, s^2(T)I)`. The third term vanishes unless the prior widens with T, as for VE.

    Args:
        score: Trained or exact, also of images.
        process: The process, not stopped.
        x0: Independent points of the data. Shape: (n, \*shape).
        T: The time.
        generator: Of the noise.

    Example:
        >>> from psmlib.process import VP
        >>> toy = Mixture(gaussians=[(1., [1.], 1.)])
        >>> x0 = toy.sample(4000, torch.Generator().manual_seed(0))
        >>> mean, error = elbo_slope_estimate(toy.diffused(VP()), VP(), x0, .3, torch.Generator().manual_seed(1))
        >>> abs(mean - elbo_slope(toy, VP(), .3)[0]) < 4 * error
        True
    """
    short = Shortened(process, T)
    f, g2, sigma, s = (float(v) for v in (process.drift(T), process.diffusion2(T), process.sigma(T), short.prior_std))
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    x = process.perturb(x0, T, noise)
    with torch.no_grad():
        error = score.score(x.to(**score.tensor_options), T).to(x) + noise / sigma
    second, d = x.double().flatten(1).square().sum(1), x[0].numel()
    prior = -(f * second + 0.5 * g2 * d) / s**2 + short.prior_std_rate / s * (second / s**2 - d)
    value = prior - 0.5 * g2 * error.double().flatten(1).square().sum(1) + 0.5 * d * (g2 / sigma**2 + 2 * f)
    return standard_errors.mean(value)


@dataclass(frozen=True)
class Ascent:
    """The iterates of :func:`ascend_elbo`.

    Attributes:
        times: T before each update and after the last. Length: updates + 1.
        slopes: The estimates of dL/dT. Length: updates.
        stderrs: Their standard errors.
        T: The geometric mean of the last third of the iterates, which averages their noise.
    """

    times: list[float]
    slopes: list[float]
    stderrs: list[float]
    T: float


def ascend_elbo(
    score: Score, process: Process, data, *, start: float, updates: int = 200, batch_size: int = 1024,
    lr: float = 0.05, shortest: float | None = None, seed: int = 0,
) -> Ascent:  # fmt: skip
    """Gradient ascent on T by Adam on log T, from samples of the data (Appendix H).

    T is clamped to [shortest, process.T]; the learning rate falls to a hundredth along a cosine.

    Args:
        score: Trained or exact on all of [0, process.T].
        process: The process, not stopped.
        data: Has ``sample(n, generator)``.
        start: The first T.
        updates: Number of updates.
        batch_size: Points for each estimate of the slope.
        lr: The first learning rate, for log T.
        shortest: The smallest T allowed; by default a thousandth of the process's length.
        seed: Of data and noise.

    Raises:
        ValueError: when start lies outside [shortest, process.T].

    Example:
        >>> from psmlib.process import VP
        >>> toy, vp = Mixture(gaussians=[(1., [1.], 1.)]), VP()
        >>> course = ascend_elbo(toy.diffused(vp), vp, toy, start=.3, updates=5, batch_size=200)
        >>> len(course.times), course.T > .3                  # the true score gains by more noise
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
        mean, error = elbo_slope_estimate(score, process, data.sample(batch_size, generator), T, generator)
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
