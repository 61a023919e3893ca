"""Closed forms of exact scores held against other ways to the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.evaluation.toys import diffused_points
from psmlib.exact.finite_set import DiffusedData
from psmlib.likelihood import log_likelihood
from psmlib.process import OTFlow, Process
from psmlib.score import Score


def two_ways(law: Mixture, process: Process, t: float, n: int = 300) -> dict[str, float]:
    """Largest differences of closed forms from other ways to the same number, relative to the largest value.

    Args:
        law: Data of the plane.
        process: The process; flow matching has a line of its own.
        t: After 0 and before 1.
        n: Number of draws of x_t.

    Returns:
        The difference by what it is of.

    Example:
        >>> from psmlib.data.toys import load_toy
        >>> from psmlib.process import VP
        >>> max(two_ways(load_toy("HG"), VP(0.0, 10.0), 0.1, n=10).values()) < 1e-9
        True
    """
    exact, straight = law.diffused(process), OTFlow()
    x, z = (diffused_points(law, p, t, n).double() for p in (process, straight))
    flow, data = law.diffused(straight), DiffusedData(law.sample(900, torch.Generator().manual_seed(6)), process)
    right = torch.tensor([[1.0, 0.0]]).to(x).expand_as(x)

    def gap(found: Tensor, wanted: Tensor) -> float:
        return float((found - wanted).abs().max() / wanted.abs().max())

    uphill = torch.func.grad(lambda y: exact.log_prob(y, t).sum())(x)
    along = torch.func.jvp(lambda y: exact.score(y, t), (x,), (right,))[1]
    through_score = -z / (1 - t) - t / (1 - t) * flow.score(z, t)
    return {
        "score: gradient of the log density": gap(exact.score(x, t), uphill),
        "Jacobian: derivative of the score": gap(exact.jacobian(x, t)[1][..., 0], along),
        "gradient of the trace": gap(exact.trace_gradient(x, t), Score.trace_gradient(exact, x, t)),
        "time derivative of the score": gap(exact.time_derivative(x, t), Score.time_derivative(exact, x, t)),
        "optimal denoiser: one softmax over all points": gap(data.eps(x, t), data.differentiable(x, t)),
        "flow matching: v = -x/(1-t) - t s/(1-t)": gap((z - flow.posterior(z, t)[0]) / t, through_score),
    }


def along_the_flow(law: Mixture, process: Process, t0: float = 0.02, n: int = 200) -> float:
    """Largest difference of the log likelihood along the exact flow from the exact log density at t0, in nats.

    Example:
        >>> from psmlib.data.toys import two_gaussians
        >>> from psmlib.process import VP
        >>> along_the_flow(two_gaussians(), VP(0.0, 10.0), n=5) < 1e-6
        True
    """
    x, exact = law.sample(n, torch.Generator().manual_seed(7)), law.diffused(process)
    # flow matching ends at the prior itself, other processes a little before it
    how = {} if isinstance(process, OTFlow) else {"prior": lambda y: exact.log_prob(y, process.T)}
    found = log_likelihood(exact, process, x, t0=t0, steps=400, grid="warped", **how)
    return float((found.log_prob - exact.log_prob(x, t0)).abs().max())
