r"""Training objectives: the quantity that a network learns to predict, the noise or the velocity of flow matching.

An objective names the native prediction and makes (input, target) pairs; the loss is the mean square error
over batch and axes, unweighted, as in Parallel Score Matching (Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psmlib.process import Process, as_time, expand


@dataclass(frozen=True)
class Denoising:
    """Predict the noise: the DDPM objective (Ho et al., 2020, Eq. 14; PSM, Algorithm 1)."""

    native: str = "eps"

    def target(self, process: Process, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The regression target. Shape: (n, *shape)."""
        return eps


@dataclass(frozen=True)
class FlowMatching:
    r"""Predict the conditional velocity :math:`\dot\alpha x_0+\dot\sigma\varepsilon` (Lipman et al., 2023, Eq. 9)."""

    native: str = "velocity"

    def target(self, process: Process, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The regression target. Shape: (n, *shape)."""
        t = as_time(t, x0)
        return expand(process.alpha_rate(t), x0) * x0 + expand(process.sigma_rate(t), x0) * eps


OBJECTIVES = {objective.native: objective for objective in (Denoising(), FlowMatching())}
"""The objective that trains each native prediction."""
