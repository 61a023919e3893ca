"""Samples of x_T, by adding noise or by the probability-flow equation, to which a model of x_T is fitted.

Data with noise follow the distribution of x_T itself (How Much Is Enough?, Section 3.1). For densities by the
probability-flow equation the model is evaluated where that equation with the learned score takes the data, which is
another distribution unless the score is exact: fitting it there is the extension of Section 3.3, "(S)" in Table 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from psmlib.likelihood import time_grid
from psmlib.process import Process
from psmlib.sampling import last
from psmlib.sampling.ode import probability_flow
from psmlib.sampling.variables import variable_of
from psmlib.score import Score
from psmlib.training.batches import draw_points


def check_time(process: Process, T: float) -> None:
    """Checks that a time lies within the process.

    Raises:
        ValueError: when it does not.

    Example:
        >>> from psmlib.process import VP
        >>> check_time(VP(), 1.5)
        Traceback (most recent call last):
        ...
        ValueError: T must lie in (0, 1], where VP(beta_min=0.1, beta_max=20.0) runs, got 1.5
    """
    if not 0 < T <= process.T:
        raise ValueError(f"T must lie in (0, {process.T:g}], where {process!r} runs, got {T!r}")


def standard_normal(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, float64, on the generator's device.

    Example:
        >>> standard_normal((5, 2), torch.Generator().manual_seed(0)).dtype
        torch.float64
    """
    place = "cpu" if generator is None else generator.device
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=place)


def diffused_data(
    data: Tensor, process: Process, T: float, generator: torch.Generator | None = None, *, draws: int = 1
) -> Tensor:
    """Data with noise, x_T, which the plain column of Tables 3 and 4 is fitted to.

    Args:
        data: Shape: (n, *shape), floating-point numbers in the process's own coordinates.
        process: The Gaussian path.
        T: When to stop.
        generator: Of the noise.
        draws: Noise samples for each data point.

    Returns:
        The data set with a first noise sample for each point, then with a second, ... Shape: (draws * n, *shape).

    Raises:
        ValueError: when T lies outside (0, process.T], or the data are not floating-point numbers.

    Example:
        >>> from psmlib.process import VP
        >>> diffused_data(torch.zeros(5, 2), VP(), .4, torch.Generator().manual_seed(0), draws=3).shape
        torch.Size([15, 2])
    """
    check_time(process, T)
    if not data.is_floating_point():
        raise ValueError(f"data must be of a floating-point dtype, got {data.dtype}: dequantise and scale them first")
    x_0 = data.repeat(draws, *(1 for _ in data.shape[1:]))
    return process.perturb(x_0, T, standard_normal(x_0.shape, generator).to(x_0))


def diffused_batches(data, process: Process, T: float) -> Callable[[int, torch.Generator], Tensor]:
    """A function (n, generator) -> x_T that draws data and noise afresh each time.

    Args:
        data: A density with ``sample(n, generator)``, or a tensor to draw from. Shape: (N, *shape).
        process: The Gaussian path.
        T: When to stop.

    Example:
        >>> from psmlib.process import VP
        >>> diffused_batches(torch.zeros(5, 1, 8, 8), VP(), .4)(3, torch.Generator()).shape
        torch.Size([3, 1, 8, 8])
    """
    return lambda n, generator: diffused_data(draw_points(data, n, generator), process, T, generator)


def ode_ends(
    score: Score, process: Process, x: Tensor, T: float, *, t0: float, steps: int = 100, method: str = "rk4",
    grid: str | Tensor = "uniform", rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 20000,
    variable: str | None = None,
) -> Tensor:  # fmt: skip
    """Where the probability-flow equation with this score takes the data, which the (S) column is fitted to.

    The ``x_T`` of :func:`psmlib.likelihood.log_likelihood` with the same arguments, without computing the divergence.

    Args:
        score: Exact or trained.
        process: Its Gaussian path.
        x: Data. Shape: (n, *shape).
        T: When to stop.
        t0: Time at which the data are inserted.
        steps: Steps of a fixed grid.
        method: "euler", "heun", "rk4" or "adaptive".
        grid: "uniform", "warped", "log_snr", "blocks", or the times themselves.
        rtol: Relative tolerance of the adaptive method.
        atol: Absolute tolerance.
        max_nfe: Evaluations after which the adaptive method gives up.
        variable: What is stepped in, "t" or "log_snr".

    Returns:
        Shape: (n, *shape).

    Raises:
        ValueError: for T outside (0, process.T], t0 outside [0, T), an unknown name, or a variable that does not suit.
        RuntimeError: when the adaptive method runs out of evaluations.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> x = HG().sample(4, torch.Generator().manual_seed(0))
        >>> ode_ends(HG().diffused(VP()), VP(), x, .4, t0=1e-3, steps=20).shape
        torch.Size([4, 2])
    """
    check_time(process, T)
    if not 0 <= t0 < T:
        raise ValueError(f"t0 must lie in [0, {T:g}), got {t0!r}")
    times = time_grid(score, process, t0, T, steps, grid, adaptive=method == "adaptive")
    how = dict(method=method, rtol=rtol, atol=atol, max_nfe=max_nfe, variable=variable_of(process, variable, grid))
    return last(probability_flow(score, x, times, **how)).x
