r"""A score with a known error, which shows the trade-off of diffusion time without training.

:math:`\delta(t)` is added to the predicted noise along a fixed direction, so the loss of evidence is known:

.. math:: G = \frac12\int_\epsilon^T \frac{g^2}{\sigma^2}\,\delta^2\,dt .

A constant :math:`\delta` costs :math:`\delta^2/2` for each unit of log SNR, which diverges as :math:`\epsilon\to0`; an
error :math:`\delta = c\,\sigma(t)`, which is c in the score at all times, costs :math:`\tfrac12c^2\int g^2`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from psmlib.exact.expectations import EPS, time_rule
from psmlib.process import as_time, expand
from psmlib.score import Score


class ScoreWithError(Score):
    """A Score that predicts noise, plus a vector of known length.

    Args:
        score: Exact or trained.
        size: The length of the error in the predicted noise: a number, or a function of times of shape () or (n,).
        direction: Of the error, normalised here; by default equal along all axes. Shape: (\\*shape).

    Raises:
        ValueError: when the score does not predict noise, or the direction is zero.

    Example:
        >>> from psmlib.data.toys import Mixture
        >>> from psmlib.process import VP
        >>> vp = VP()
        >>> off = ScoreWithError(Mixture(gaussians=[(1., [0.], 1.)]).diffused(vp), lambda t: .5 * vp.sigma(t))
        >>> float(off.score(torch.zeros(1, 1, dtype=torch.float64), .3))
        -0.5
        >>> abs(off.gap(1., eps=1e-6) - .5**2 / 2 * float(vp.integral(1.) - vp.integral(1e-6))) < 1e-9
        True
    """

    native = "eps"

    def __init__(
        self, score: Score, size: float | Callable[[Tensor], Tensor], direction: Sequence | Tensor | None = None
    ):
        if score.native != "eps":
            raise ValueError(f"only a score that predicts eps can be perturbed here, this one predicts {score.native}")
        self.exact, self.process, self.size = score, score.process, size
        self.partition = getattr(score, "partition", None)
        self.direction = None if direction is None else torch.as_tensor(direction, dtype=torch.float64)
        if self.direction is not None and not float(self.direction.norm()) > 0:
            raise ValueError(f"direction must have a length, got {direction}: leave it out for all axes alike")

    @property
    def tensor_options(self) -> dict:
        return self.exact.tensor_options

    def on_block(self, t: float) -> ScoreWithError:
        other = copy.copy(self)
        other.exact = self.exact.on_block(t)
        return other

    def coefficient_time(self, t: float | Tensor) -> float | Tensor:
        return self.exact.coefficient_time(t)

    def _length(self, t: Tensor) -> Tensor:
        return self.size(t) if callable(self.size) else torch.full_like(t, self.size)

    def error(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The error added to the predicted noise. Shape: (n, *shape)."""
        way = x.new_ones(x.shape[1:]) if self.direction is None else self.direction.to(x)
        return expand(self._length(as_time(t, x)), x) * (way / way.norm()).expand_as(x)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.exact.predict(x, t) + self.error(x, t).to(x.dtype)

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.exact.predict_jvp(x, t, u)
        return value + self.error(x, t).to(x.dtype), slope

    def predict_jacobian(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        value, jac = self.exact.predict_jacobian(x, t)
        return value + self.error(x, t).to(x.dtype), jac

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        return self.exact.differentiable(x, t) + self.error(x, t).to(x.dtype)

    def gap(self, T: float, *, eps: float | None = None) -> float:
        """The loss of evidence G on [eps, T] in nats, if the underlying score is exact: an integral over time.

        Raises:
            ValueError: unless 0 < eps < T <= process.T.
        """
        eps = EPS * self.process.T if eps is None else eps
        if not 0 < eps < T <= self.process.T:
            raise ValueError(f"the gap needs 0 < eps < T <= {self.process.T:g}, got eps = {eps:g} and T = {T:g}")
        t, weight, _ = time_rule(self.process, [eps, T])
        return 0.5 * math.fsum((weight * self._length(t) ** 2).tolist())
