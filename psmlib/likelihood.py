r"""Log likelihoods by integrating the probability-flow ODE.

Along :math:`dx/dt = v(x, t)` the log density obeys :math:`d\log p/dt = -\mathrm{tr}\,\partial v/\partial x`, so

.. math:: \log p_{t_0}(x) = \log p_T(x_T) + \int_{t_0}^{T}\mathrm{tr}\frac{\partial v}{\partial x}\,dt

(Chen et al., 2018; PSM, Eq. 4). As in the paper, the data point is the state at t_0, without added noise and without a
reconstruction term: the result is :math:`\log p_{t_0}(x_0)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from psmlib.machine.checks import check_choice, check_count, check_points, floating, plain
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.process.path import check_within
from psmlib.sampling import grids
from psmlib.sampling.variables import LONGEST, fields_in, points, variable_of
from psmlib.score import Score
from psmlib.solvers import METHODS, adaptive, fixed

DIVERGENCES = ("exact", "hutchinson", "logdet")
GRIDS = ("uniform", "warped", "log_snr", "blocks")


@dataclass
class Likelihood:
    """The result of :func:`log_likelihood`.

    Attributes:
        log_prob: Log density at t_0, nats. Shape: (n,).
        nfe: Number of evaluations of the velocity.
        x_T: The points at t1. Shape: (n, *shape).
        prior: log p_T(x_T). Shape: (n,).
        change: The integrated divergence. Shape: (n,).
        process: The Gaussian path.
        t1: Where the integration ended.
    """

    log_prob: Tensor
    nfe: int
    x_T: Tensor
    prior: Tensor
    change: Tensor
    process: Process
    t1: float

    def under(self, prior) -> Tensor:
        """The log density that the same ODE solution gives with another prior at t1, in float64. Shape: (n,).

        Args:
            prior: As in :func:`log_likelihood`.

        Raises:
            ValueError: when the prior was fitted to another time or process.
        """
        return end_law(prior, self.process, self.t1)(self.x_T.double()) + self.change.double()


def time_grid(
    score: Score, process: Process, t0: float, t1: float, steps: int, grid: str | Tensor, *, adaptive: bool = False
) -> Tensor:
    """The time grid of that name, with a bank's block borders among its points.

    "blocks" gives every block the same number of steps, as the paper does. "warped" has equal steps in t^(1/3): short
    at small t, where the velocity of a VP path with linear beta changes fastest, and not too long at large t. An
    adaptive solver finds its own steps and needs only the two ends and the borders.
    """
    if not isinstance(grid, Tensor):
        check_choice("grid", grid, GRIDS)
    if adaptive:
        steps, grid = 1, "uniform"
    if isinstance(grid, Tensor):
        return grid
    partition = getattr(score, "partition", None)
    if grid == "blocks":
        return grids.per_block(t0, t1, partition or Partition([0, t1]), steps)
    if grid == "uniform":
        times = grids.uniform(t0, t1, steps)
    elif grid == "warped":
        times = grids.quadratic(t0, t1, steps, power=3.0)
    else:
        times = grids.log_snr(process, t0, t1, steps)
    return grids.with_borders(times, partition)


def log_likelihood(
    score: Score, process: Process, x: Tensor, *, t0: float, t1: float | None = None, steps: int = 100,
    method: str = "rk4", divergence: str = "exact", grid: str | Tensor = "uniform", seed: int = 0,
    fresh_probes: bool = False, rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 20000, prior=None,
    variable: str | None = None,
) -> Likelihood:  # fmt: skip
    r"""Log density of points under the model that a Score defines, with the prior at t1.

    Args:
        score: Exact or trained.
        process: Its Gaussian path.
        x: Points. Shape: (n, *shape).
        t0: Where the integration starts.
        t1: Where the integration ends; T by default.
        steps: Steps of a fixed grid (1000 in the paper).
        method: "euler", "heun", "rk4" or "adaptive" (Dormand-Prince).
        divergence: "exact" (trace of the Jacobian), "hutchinson" (estimated with one Rademacher probe, the same at all
            evaluations, so that the integrand is a function of time), or "logdet", for Euler only: log|det(I + h J)|,
            the exact change of volume of an Euler step, where "exact" has h tr J.
        grid: "uniform", "warped", "log_snr", "blocks", or the times themselves.
        seed: Seed of the Hutchinson probe.
        fresh_probes: Draw a new probe at each evaluation, also within a step of RK4, as the paper's released image
            scripts do: the mean is the same, but the integrand is no longer a function of time.
        rtol: Relative tolerance of the adaptive method.
        atol: Absolute tolerance.
        max_nfe: Most evaluations that the adaptive method may use.
        prior: The model of the law at t1: a log density, (n, *shape) -> (n,), or an object with ``log_prob``, such as
            an auxiliary model; by default the prior of the process.
        variable: What is stepped in, "t" or "log_snr": by default log SNR for the grid of that name and for a process
            that is smooth in it alone, as reciprocal VE, else t. See :mod:`psmlib.sampling.variables`.

    Returns:
        A :class:`Likelihood`.

    Raises:
        ValueError: for an unknown name, t0 outside [0, t1), a log-determinant without Euler, an auxiliary model of
            another time or process, or a variable that does not suit the process, the ends or the steps.
        RuntimeError: when the adaptive method runs out of evaluations.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> toy, vp = HG(), VP(0., 10.)
        >>> x = toy.sample(4, torch.Generator().manual_seed(0))
        >>> exact = toy.diffused(vp)
        >>> result = log_likelihood(exact, vp, x, t0=.01, steps=200, grid="warped")
        >>> torch.allclose(result.log_prob, exact.log_prob(x, .01), atol=1e-3), result.nfe
        (True, 800)
    """
    check_points(x)
    x, t0, t1 = floating(x), plain(t0), process.T if t1 is None else plain(t1)
    check_within(t1, process.T, "t1")
    if not 0 <= t0 < t1:
        raise ValueError(f"t0 must lie in [0, {t1:g}), got {t0!r}")
    check_count("steps", steps)
    check_choice("method", method, METHODS)
    check_choice("divergence", divergence, DIVERGENCES)
    if divergence == "logdet" and method != "euler":
        raise ValueError(f'divergence="logdet" needs Euler steps: use method="euler", not {method!r}')
    variable = variable_of(process, variable, grid)
    law = end_law(prior, process, t1)
    if divergence == "hutchinson":
        generator = torch.Generator().manual_seed(int(seed))
        probe = [rademacher(x, generator)]
    counter = [0]

    def field_of(piece: Score):
        def field(y: Tensor, t: float):
            counter[0] += 1
            if divergence == "hutchinson":
                if fresh_probes:
                    probe[0] = rademacher(x, generator)
                return piece.velocity_and_quadratic(y, t, probe[0])
            if divergence == "logdet":
                return piece.jacobian(y, t, "velocity")
            return piece.velocity_and_divergence(y, t)

        return field

    own_steps = method == "adaptive"
    times = time_grid(score, process, t0, t1, steps, grid, adaptive=own_steps)
    ends = points(process, times, variable, math.inf if own_steps else LONGEST)
    fields = fields_in(variable, field_of, score, process, times)
    if variable == "t" and (solved := score.whole_solve(x, times, method, divergence)):
        y, change, counter[0] = solved
    elif divergence == "logdet":
        y, change = _euler_logdet(fields, x, ends)
    elif own_steps:
        for step in adaptive(fields, x, ends, rtol=rtol, atol=atol, max_nfe=max_nfe, variable=variable):
            y, change = step[:2]
    else:
        for step in fixed(fields, x, ends, method):
            y, change = step[:2]
    log_prior = law(y)
    return Likelihood(log_prior + change, counter[0], y, log_prior, change, process, t1)


def rademacher(x: Tensor, generator: torch.Generator) -> Tensor:
    """Independent values of -1 or 1, of the shape, dtype and device of ``x``."""
    return (torch.randint(0, 2, x.shape, generator=generator, device=generator.device) * 2 - 1).to(x)


def _euler_logdet(fields, x: Tensor, times: list[float]) -> tuple[Tensor, Tensor]:
    """Euler steps with the exact log change of volume of each."""
    change = x.new_zeros(len(x))
    eye = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    for t, s in pairwise(times):
        v, jac = fields((t + s) / 2)(x, t)
        x, change = x + (s - t) * v, change + torch.linalg.slogdet(eye + (s - t) * jac)[1]
    return x, change


def end_law(prior, process: Process, T: float) -> Callable[[Tensor], Tensor]:
    """The log density of the model of the law of x_T.

    Args:
        prior: None for the prior of the process, a function (n, *shape) -> (n,), or an object with ``log_prob``. Its
            method ``check``, if it has one as :class:`psmlib.diffusion_time.auxiliary.Auxiliary` does, is called with
            the process and T.
        process: The Gaussian path.
        T: The time at which the process is stopped.

    Raises:
        ValueError: when the object was fitted to another time or process.

    Example:
        >>> from psmlib.diffusion_time.auxiliary import gaussian
        >>> from psmlib.process.families import VP
        >>> end_law(gaussian(VP(), .3, (2,)), VP(), .2)
        Traceback (most recent call last):
        ...
        ValueError: this gaussian models x_T at T = 0.3 of VP(...), not at T = 0.2 of VP(...): fit one there
    """
    if prior is None:
        return process.prior_log_prob
    if hasattr(prior, "check"):
        prior.check(process, T)
    return prior.log_prob if hasattr(prior, "log_prob") else prior
