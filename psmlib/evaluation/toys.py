r"""Test NLL and excess denoising loss on toys, against the exact score.

The true log density of a toy is known at every point, and so is its mean, what the exact score is quoted under the same
protocol. It is a control variate for a model's test NLL:

.. math:: \mathrm{NLL} = \overline{-\log\hat p} - \beta\,\bigl(\overline{-\log p_{t_0}} - E[-\log p_{t_0}]\bigr)

with the regression coefficient beta (:func:`psmlib.standard_errors.controlled`). Near the truth beta is 1, and most of
the sampling noise cancels, so that a thousand points are as accurate as a hundred thousand in a plain average; far
from it beta is nearly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psmlib import standard_errors
from psmlib.data.toys import Mixture
from psmlib.exact.cross_entropy import cross_entropy
from psmlib.likelihood import log_likelihood
from psmlib.process import Process
from psmlib.score import Score
from psmlib.score_pde import per_log_snr, residual

SCORED_POINTS = {"TY": 27_050, "HG": 30_000}
"""Test points of the scripts that the authors of parallel score matching have released."""


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

    def test_points(self, toy: Mixture) -> Tensor:
        """The test points, float64, on the CPU. Shape: (points, d)."""
        return toy.sample(self.points, torch.Generator().manual_seed(self.seed))

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
    x = protocol.test_points(toy)
    solver = dict(t0=protocol.t0, steps=protocol.steps, method=protocol.method, grid=protocol.grid)
    found = log_likelihood(score, process, x.to(**score.tensor_options), **solver)
    exact = toy.diffused(process).log_prob(x.to(score.tensor_options["device"]), protocol.t0)
    return (exact - found.log_prob.double()).cpu()


@dataclass(frozen=True)
class Reference:
    """What a test NLL is held against, in nats, with the exact log densities that go with it.

    Attributes:
        exact: NLL of the exact score under the same protocol, :math:`-E\\log p_{t_0}(x_0)`.
        entropy: Entropy of the data, which no normalised model is below on average. A model can be below `exact`.
        gaussian: NLL of the Gaussian with the mean and covariance of the data, the best without training.
        log_prob: Exact log density at the protocol's test points. Shape: (points,).
    """

    exact: float
    entropy: float
    gaussian: float
    log_prob: Tensor


def reference(toy: Mixture, process: Process, protocol: Protocol) -> Reference:
    """What the NLL of models of a toy is held against, under a protocol.

    Example:
        >>> from psmlib.data.toys import load_toy
        >>> from psmlib.process import VP
        >>> known = reference(load_toy("HG"), VP(0., 10.), Protocol(points=10))
        >>> round(known.entropy, 3), round(known.exact, 3), round(known.gaussian, 3)
        (0.954, 0.963, 2.695)
    """
    log_prob = toy.diffused(process).log_prob(protocol.test_points(toy), protocol.t0)
    gaussian = 0.5 * (toy.dim * math.log(2 * math.pi * math.e) + float(torch.logdet(toy.cov)))
    return Reference(cross_entropy(toy, process, protocol.t0)[0], toy.entropy, gaussian, log_prob)


@dataclass(frozen=True)
class Nll:
    """A test NLL, in nats.

    Attributes:
        value: Its estimate.
        stderr: Standard error over test points and seeds, with `df` degrees of freedom.
        df: Degrees of freedom of the error.
        n: Number of test points.
        seeds: Number of independently trained networks.
        reference: What it is held against.
        plain: Standard error without the control variate.
    """

    value: float
    stderr: float
    df: float
    n: int
    seeds: int
    reference: Reference
    plain: float

    @property
    def exact(self) -> float:
        """NLL of the exact score under the same protocol."""
        return self.reference.exact

    @property
    def bound(self) -> float:
        """The entropy of the data."""
        return self.reference.entropy

    @property
    def excess(self) -> float:
        """How far it is above the exact score's."""
        return self.value - self.exact

    @property
    def learned(self) -> standard_errors.Estimate:
        """By how much the model beats the best Gaussian, which takes no training."""
        return standard_errors.estimate(self.reference.gaussian).minus(self)


def summarise(ratios: Sequence[Tensor], known: Reference) -> Nll:
    """One NLL from the log ratios of several seeds at the same test points.

    The error is that of :func:`psmlib.standard_errors.controlled`, over seeds and points.

    Args:
        ratios: log p - log p_hat, one tensor of shape (points,) for each seed.
        known: The reference of the same toy, process and protocol.

    Raises:
        ValueError: when a ratio is not finite, because the ODE solution diverged.

    Example:
        >>> known = Reference(exact=.5, entropy=.4, gaussian=2., log_prob=torch.tensor([0., -1., -2.]))
        >>> nll = summarise([torch.tensor([.1, .1, .1]), torch.tensor([.3, .3, .3])], known)
        >>> round(nll.value, 3), round(nll.excess, 3), nll.seeds
        (0.7, 0.2, 2)
    """
    table = torch.stack([r.double() for r in ratios])  # (seeds, points)
    if bad := int((~table.isfinite()).sum()):
        raise ValueError(f"{bad} of {table.numel()} log likelihoods are not finite: train longer, or use more steps")
    surprise = -known.log_prob.double().cpu()
    found = standard_errors.controlled(table + surprise, surprise, known.exact)
    plain = standard_errors.average(table + surprise).stderr
    return Nll(found.value, found.stderr, found.df, found.n, found.seeds, known, plain)


@dataclass(frozen=True)
class Scored:
    """Runs at the same test points, which are compared over the seeds that they share: a night may lack some.

    Args:
        ratios: log p - log p_hat by toy, seed and method, each of shape (points,).
        known: The reference of each toy.

    Example:
        >>> known = Reference(exact=.5, entropy=.4, gaussian=2., log_prob=torch.tensor([0., -1., -2.]))
        >>> runs = {("TY", seed, "one"): torch.tensor([.3, .3, .4]) for seed in range(3)}
        >>> scored = Scored(runs | {("TY", 0, "four"): torch.tensor([.1, .1, .1])}, {"TY": known})
        >>> scored.has("TY", "one", "four"), scored.has("HG", "one"), round(scored.gain("TY", "four", "one").value, 3)
        (True, False, 0.233)
    """

    ratios: Mapping[tuple, Tensor]
    known: Mapping[str, Reference]

    def has(self, toy: str, *methods) -> bool:
        """Whether there is a seed that has them all."""
        return bool(self._seeds(toy, methods))

    def nll(self, toy: str, method) -> Nll:
        """The NLL of a method."""
        return summarise(self._table(toy, method, self._seeds(toy, [method])), self.known[toy])

    def gain(self, toy: str, better, worse) -> standard_errors.Estimate:
        """By how many nats one method is better than another."""
        seeds = self._seeds(toy, (better, worse))
        return standard_errors.difference(self._table(toy, worse, seeds), self._table(toy, better, seeds))

    def learned(self, toy: str, methods: Mapping) -> dict[str, standard_errors.Estimate]:
        """By how much methods, by title, beat the best Gaussian, as :meth:`psmlib.book.results.Results.claim` asks."""
        return {f"{title} over the best Gaussian": self.nll(toy, m).learned for title, m in methods.items()}

    def _seeds(self, toy: str, methods: Sequence) -> list:
        every = dict.fromkeys(seed for name, seed, _ in self.ratios if name == toy)
        return [seed for seed in every if all((toy, seed, method) in self.ratios for method in methods)]

    def _table(self, toy: str, method, seeds: Sequence) -> Tensor:
        return torch.stack([self.ratios[toy, seed, method] for seed in seeds])


def diffused_points(toy: Mixture, process: Process, t: float, n: int, seed: int | torch.Generator = 0) -> Tensor:
    """Independent draws of x_t, from a seed or a generator, which is advanced. Shape: (n, d)."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    x0 = toy.sample(n, generator)
    return process.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))


def excess_loss(score: Score, toy: Mixture, process: Process, times: Tensor, n: int = 1000, seed: int = 0) -> Tensor:
    """Mean squared error of a native prediction from the exact one at each time, per dimension. Shape: (len(times),).

    The denoising loss is this plus the irreducible loss (:mod:`psmlib.exact.irreducible_loss`), whose sampling
    noise is avoided here.
    """
    generator, exact, out = torch.Generator().manual_seed(seed), toy.diffused(process), []
    for t in times.tolist():
        x = diffused_points(toy, process, t, n, generator).to(score.tensor_options["device"])
        truth = exact.velocity(x, t) if score.native == "velocity" else exact.eps(x, t)
        out.append((score.predict(x.to(**score.tensor_options), t) - truth).square().mean().cpu())
    return torch.stack(out)


def residual_squares(score: Score, toy: Mixture, process: Process, t: float, n: int = 1000) -> Tensor:
    """Squared residual of the score equation per unit of log SNR, mean over axes, at n draws of x_t. Shape: (n,).

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> vp = VP(0., 10.)
        >>> bool(residual_squares(HG().diffused(vp), HG(), vp, .3, n=5).max() < 1e-12)
        True
    """
    x = diffused_points(toy, process, t, n).to(score.tensor_options["device"])
    return per_log_snr(residual(score, process, x, t), process, t).square().mean(1).cpu()


def residual_by_density(
    score: Score, toy: Mixture, process: Process, t: float, n: int = 1000, parts: int = 4
) -> Tensor:  # fmt: skip
    """The :func:`residual_squares` at draws sorted by the density of x_t, lowest first. Shape: (parts, n)."""
    density = toy.diffused(process).log_prob(diffused_points(toy, process, t, parts * n), t)
    return residual_squares(score, toy, process, t, parts * n)[density.argsort()].reshape(parts, n)


def border_squares(
    score: Score, toy: Mixture, process: Process, edges: Sequence[float], n: int = 1000, t0: float = 1e-3
) -> dict[float, dict[str, Tensor]]:  # fmt: skip
    """How two networks meet at each border of blocks: their jump, their errors, and their residuals there and inside.

    Args:
        score: The score of a bank.
        toy: The data.
        process: The process.
        edges: Of the blocks.
        n: Number of draws of x_t.
        t0: Where the first block is taken to begin; middles are geometric.

    Returns:
        By border, by what it is: squares of the predicted noise (jump, error) or of the residual per unit of log SNR at
        the border and in the middle of the block, mean over axes. Shape of each: (n,).
    """
    exact, found = toy.diffused(process), {}
    for low, border, high in zip(edges, edges[1:], edges[2:], strict=False):
        ends = {"left": (low, border), "right": (border, high)}
        middles = {side: max(a * b, t0 * b) ** 0.5 for side, (a, b) in ends.items()}
        nets = {side: score.on_block((a + b) / 2) for side, (a, b) in ends.items()}
        x = diffused_points(toy, process, border, n)
        eps = {side: net.eps(x.to(net.tensor_options["device"]), border).cpu() for side, net in nets.items()}
        parts = {"jump": eps["right"] - eps["left"]}
        parts |= {f"error {side}": value - exact.eps(x, border) for side, value in eps.items()}
        squares = {what: part.square().mean(1) for what, part in parts.items()}
        for side, net in nets.items():
            squares[f"at the border, {side}"] = residual_squares(net, toy, process, border, n)
            squares[f"mid-block, {side}"] = residual_squares(net, toy, process, middles[side], n)
        found[border] = squares
    return found
