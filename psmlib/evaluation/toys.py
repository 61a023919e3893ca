r"""Test NLL and excess denoising loss on toys, by paired differences from the exact score.

The true log density of a toy is known at every point, so that a model's test NLL is computed as

.. math:: \mathrm{NLL} = \underbrace{-E\log p_{t_0}(x_0)}_{\text{exact floor}} +
          \underbrace{E[\log p_{t_0}(x_0) - \log\hat p_{t_0}(x_0)]}_{\text{excess, from test points}} .

Most of the sampling noise is common to both logarithms and cancels in the second term (a control variate with known
mean), so that a thousand points are as accurate as a hundred thousand in a plain average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psmlib import standard_errors
from psmlib.data.toys import Mixture
from psmlib.exact.floors import nll_floor
from psmlib.likelihood import log_likelihood
from psmlib.process import Process
from psmlib.score import Score


@dataclass(frozen=True)
class Protocol:
    """Settings of a likelihood measurement, the same for all methods that are compared.

    Args:
        t0: First time of the integration, at which the state is the test point itself.
        steps: Steps of the solver, not counting added block borders.
        method: Method of :mod:`psmlib.solvers`.
        grid: Time grid of :func:`psmlib.likelihood.log_likelihood`.
        points: Number of test points.
        seed: Seed of the test points.
    """

    t0: float = 1e-3
    steps: int = 40
    method: str = "rk4"
    grid: str = "warped"
    points: int = 1000
    seed: int = 10**6

    def at(self, t0: float | Tensor, **changes) -> Protocol:
        """The same protocol with another t0."""
        return replace(self, t0=float(t0), **changes)

    def __str__(self) -> str:
        solver = f"{self.method} with {self.steps} {self.grid} steps"
        return f"t0 = {self.t0:g}, {solver}, exact trace, {self.points:,} points"


def log_ratio(score: Score, toy: Mixture, process: Process, protocol: Protocol) -> Tensor:
    """log p(x) - log p_hat(x) at the protocol's test points. Shape: (points,).

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> vp = VP(0., 10.)
        >>> bool(log_ratio(HG().diffused(vp), HG(), vp, Protocol(points=50)).abs().mean() < .01)
        True
    """
    x = toy.sample(protocol.points, torch.Generator().manual_seed(protocol.seed))
    solver = dict(t0=protocol.t0, steps=protocol.steps, method=protocol.method, grid=protocol.grid)
    found = log_likelihood(score, process, x.to(**score.tensor_options), **solver)
    exact = toy.diffused(process).log_prob(x.to(score.tensor_options["device"]), protocol.t0)
    return (exact - found.log_prob.double()).cpu()


@dataclass(frozen=True)
class Nll:
    """A test NLL, in nats.

    Attributes:
        value: Floor plus excess.
        stderr: Standard error over test points and seeds.
        floor: NLL of a perfect score under the same protocol.
        excess: Mean of log p - log p_hat.
        seeds: Number of independently trained networks.
    """

    value: float
    stderr: float
    floor: float
    excess: float
    seeds: int


def summarise(ratios: Sequence[Tensor], floor: float) -> Nll:
    """One NLL from the log ratios of several seeds at the same test points.

    The error is that of :func:`psmlib.standard_errors.average`, over seeds and points.

    Args:
        ratios: One tensor of shape (points,) for each seed.
        floor: The exact floor.

    Raises:
        ValueError: when a ratio is not finite, because the ODE solution diverged.

    Example:
        >>> nll = summarise([torch.tensor([.1, .3]), torch.tensor([.3, .5])], .5)
        >>> round(nll.value, 3), nll.seeds
        (0.8, 2)
    """
    table = torch.stack([r.double() for r in ratios])  # (seeds, points)
    if bad := int((~table.isfinite()).sum()):
        raise ValueError(f"{bad} of {table.numel()} log likelihoods are not finite: train longer, or use more steps")
    excess, stderr = standard_errors.average(table)
    return Nll(floor + excess, stderr, floor, excess, len(table))


def diffused_points(toy: Mixture, process: Process, t: float, n: int, seed: int | torch.Generator = 0) -> Tensor:
    """Independent draws of x_t, from a seed or a generator, which is advanced. Shape: (n, d)."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    x0 = toy.sample(n, generator)
    return process.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))


def status(nll: Nll, profile: str, printed: float | None) -> str:
    """The status of a result; only a run at the paper's own settings is compared with the paper's printed value.

    Two values agree if they differ by at most two standard errors, or by half a unit of the second, last printed
    decimal.
    """
    if profile != "paper":
        return "scaled_down"
    if printed is None:
        return "reproduced"
    gap = abs(nll.value - printed)
    return "reproduced" if gap <= 0.005 else "within_noise" if gap <= max(0.005, 2 * nll.stderr) else "differs"


def floor_of(toy: Mixture, process: Process, protocol: Protocol) -> float:
    """The exact floor of a protocol, in nats."""
    return nll_floor(toy, process, protocol.t0)[0]


def excess_loss(score: Score, toy: Mixture, process: Process, times: Tensor, n: int = 1000, seed: int = 0) -> Tensor:
    """Mean squared error of a native prediction from the exact one at each time, per dimension. Shape: (len(times),).

    The denoising loss is this plus the irreducible loss (:func:`psmlib.exact.floors.irreducible_loss`), whose sampling
    noise is avoided here.
    """
    generator, exact, out = torch.Generator().manual_seed(seed), toy.diffused(process), []
    for t in times.tolist():
        x = diffused_points(toy, process, t, n, generator).to(score.tensor_options["device"])
        truth = exact.velocity(x, t) if score.native == "velocity" else exact.eps(x, t)
        out.append((score.predict(x.to(**score.tensor_options), t) - truth).square().mean().cpu())
    return torch.stack(out)
