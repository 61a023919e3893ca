r"""Discrete Parallel Score Matching, interpolated linearly in time between the networks of neighbouring time points.

Haxholli and Lorenzi (PSM, Appendix H) hold the field constant between the points, coefficients included, and say that
precise likelihoods need interpolation. :class:`Interpolated` computes

.. math:: \hat\varepsilon(x, t) = (1-w)\,\hat\varepsilon_i(x) + w\,\hat\varepsilon_{i+1}(x), \qquad
          w = \frac{t - t_i}{t_{i+1} - t_i},

with the coefficients of the process at t. Below the first point only the first network is used.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from psmlib.bank.block_score import BlockScore, in_order
from psmlib.process import as_time
from psmlib.score import Score


class Interpolated(Score):
    """A discrete bank's Score, linear in time between its time points.

    Args:
        score: Of a bank on ``Partition.points(...)``.

    Raises:
        ValueError: when the partition is not one of time points.

    Example:
        >>> import torch
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import Partition
        >>> from psmlib.process import VP
        >>> ends = Bank(Plain(times=0), 2).score(Partition.points(2), VP(0., 10.))
        >>> x = torch.ones(1, 2)
        >>> middle = Interpolated(ends).eps(x, .75)
        >>> torch.allclose(middle, (ends.predict(x, .5) + ends.predict(x, 1.)) / 2)
        True
    """

    def __init__(self, score: BlockScore):
        if not score.partition.discrete:
            raise ValueError(f"only networks of time points can be interpolated, not those of {score.partition!r}")
        self.points, self.partition, self.process, self.native = score, score.partition, score.process, score.native

    @property
    def tensor_options(self) -> dict:
        return self.points.tensor_options

    def _neighbours(self, t: float) -> list[tuple[BlockScore, float]]:
        """The one or two networks that are used at a time, with their weights."""
        k, times = int(self.partition.block_of(t)), self.partition.times
        w = 1.0 if k == 0 else (t - times[k - 1]) / (times[k] - times[k - 1])
        pieces = self._around(k)
        return [(piece, v) for piece, v in zip(pieces, (1 - w, w)[-len(pieces) :], strict=True) if v]

    def _around(self, k: int) -> list[BlockScore]:
        """The networks at the two ends of block k; for the first block, only the one at its end."""
        return [self.points.on_block(s) for s in self.partition.times[max(k - 1, 0) : k + 1]]

    def _each_time(self, f: Callable, x: Tensor, t: float | Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Calls f(x, t, *more) for each distinct time, and puts the results back in order."""
        t = as_time(t, x)
        if t.dim() == 0:
            return f(x, float(t), *more)
        times = t.unique() if len(t) else [self.process.T]  # without points any time gives the shape
        sets = ((float(s), (t == s).nonzero()[:, 0]) for s in times)
        return in_order(x, ((at, f(x[at], s, *(m[at] for m in more))) for s, at in sets))

    def _mixed(self, name: str, x: Tensor, t: float | Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """The weighted sum of what the networks' method ``name`` gives, each evaluated at its own time point."""

        def mixture(y: Tensor, s: float, *rest: Tensor) -> tuple[Tensor, ...]:
            total = None
            for piece, weight in self._neighbours(s):
                found = getattr(piece, name)(y, self.partition.times[piece.block], *rest)
                found = tuple(weight * f for f in (found if isinstance(found, tuple) else (found,)))
                total = found if total is None else tuple(a + b for a, b in zip(total, found, strict=True))
            return total

        return self._each_time(mixture, x, t, *more)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._mixed("predict", x, t)[0]

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed("predict_jvp", x, t, u)

    def predict_jacobian(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed("predict_jacobian", x, t)

    def predict_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed("predict_quadratic", x, t, u)

    def predict_trace(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed("predict_trace", x, t)

    velocity_and_divergence = BlockScore.velocity_and_divergence
    velocity_and_quadratic = BlockScore.velocity_and_quadratic

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        if t.dim():
            raise ValueError("an interpolated score is differentiated at one time: call it once for each")
        k, times = int(self.partition.block_of(float(t))), self.partition.times
        *before, here = (piece.differentiable(x, as_time(times[piece.block], x)) for piece in self._around(k))
        if not before:  # constant in time
            return here
        return before[0] + (t - times[k - 1]) / (times[k] - times[k - 1]) * (here - before[0])

    def trace_gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._each_time(lambda y, s: self._differentiated(Score.trace_gradient, y, s), x, t)[0]

    def time_derivative(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._each_time(lambda y, s: self._differentiated(Score.time_derivative, y, s), x, t)[0]

    def _differentiated(self, f: Callable, x: Tensor, t: float) -> tuple[Tensor]:
        self._around(int(self.partition.block_of(t)))  # made now: within a torch.func transformation they cannot be
        return (f(self, x, t),)
