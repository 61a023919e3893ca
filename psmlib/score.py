r"""The Score interface: noise, denoised point, score and velocity predicted at (x, t), with their derivatives.

A :class:`Score` has a process and one native prediction (of the noise, the denoised point, the velocity or the score);
the other three are linear functions of it and of x. Exact mixtures, finite data sets and trained banks are all Scores,
and samplers, likelihoods and residuals take any Score, so that each experiment can be repeated without training error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from psmlib.process import Process, as_time, expand

# torch's own forward mode calls the deprecated torch.jit.script on first use; users can do nothing about it
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated", category=FutureWarning)


def basis(x: Tensor) -> Iterator[Tensor]:
    """The standard basis vectors of the space of one point, one at a time, repeated for every point of a batch.

    Args:
        x: Points. Shape: (n, *shape).

    Yields:
        Tensors shaped like ``x``, one for each coordinate of a point.

    Example:
        >>> [e.tolist() for e in basis(torch.zeros(2, 2))]
        [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]
    """
    for j in range(x[0].numel() if len(x) else x.flatten(1).shape[1]):
        e = x.new_zeros(x.shape)  # not zeros_like: with channels last, flatten would return a copy
        e.flatten(1)[:, j] = 1
        yield e


class Score:
    """Base class. A subclass sets ``native`` and ``process`` and defines :meth:`predict`.

    It should override :meth:`predict_jvp` or :meth:`predict_jacobian` where something is faster than automatic
    differentiation.
    """

    process: Process
    native: str = "eps"

    @property
    def tensor_options(self) -> dict:
        """The dtype and device that points should have: those of a bank's parameters, else float64 on the CPU."""
        return {"dtype": torch.float64, "device": torch.device("cpu")}

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The native prediction. Shape: (n, *shape)."""
        raise TypeError(f"{type(self).__name__} does not define predict(x, t)")

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The native prediction and its derivative along ``u``. Shapes: (n, *shape) each."""
        return torch.func.jvp(lambda y: self.predict(y, t), (x,), (u,))

    def predict_jacobian(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The native prediction, (n, *shape), and its Jacobian, (n, D, D), row = output, axes flattened to D."""
        columns = []
        for e in basis(x):
            value, column = self.predict_jvp(x, t, e)
            columns.append(column.flatten(1))
        return value, torch.stack(columns, -1)

    def on_block(self, t: float) -> Score:
        """The same Score with the choice of network fixed to the one responsible for time ``t``.

        Solvers call it once a step, so that a step never mixes two networks of a bank. A Score without blocks returns
        itself.
        """
        return self

    def coefficient_time(self, t: float | Tensor) -> float | Tensor:
        """The time whose alpha and sigma convert a prediction at ``t``: ``t``, or a discrete block's own time."""
        return t

    def _predict_as(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        return self.process.convert(x, self.coefficient_time(t), self.predict(x, t), self.native, kind)

    def whole_solve(self, x: Tensor, times: Tensor, method: str, divergence: str) -> tuple[Tensor, Tensor, int] | None:
        """Solves the probability-flow ODE in one kernel, where a Score has one; else returns None.

        Args:
            x: Points. Shape: (n, *shape).
            times: Time grid. Shape: (steps + 1,).
            method: A method of :mod:`psmlib.solvers`.
            divergence: As of :func:`psmlib.likelihood.log_likelihood`.

        Returns:
            Final points, (n, *shape), integrated divergence, (n,), and number of evaluations; or None.
        """
        return None

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Expected noise E[eps | x_t = x]. Shape: (n, *shape)."""
        return self._predict_as(x, t, "eps")

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Gradient of the log density of x_t. Shape: (n, *shape)."""
        return self._predict_as(x, t, "score")

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Expected data point E[x_0 | x_t = x]. Shape: (n, *shape)."""
        return self._predict_as(x, t, "denoised")

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Velocity of the probability-flow ODE dx/dt = f x - g^2 s / 2. Shape: (n, *shape)."""
        return self._predict_as(x, t, "velocity")

    def velocity_and_score(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and score from one evaluation. Shapes: (n, *shape) each."""
        value, s = self.predict(x, t), self.coefficient_time(t)
        return tuple(self.process.convert(x, s, value, self.native, kind) for kind in ("velocity", "score"))

    def jacobian(self, x: Tensor, t: float | Tensor, kind: str = "score") -> tuple[Tensor, Tensor]:
        """The prediction of the given kind, (n, *shape), and its Jacobian, (n, D, D)."""
        value, jac = self.predict_jacobian(x, t)
        return self._convert(x, t, value, jac, torch.eye(jac.shape[-1], dtype=x.dtype, device=x.device), kind)

    def _convert(self, x, t, value, form, unit, kind: str = "velocity") -> tuple[Tensor, Tensor]:
        """Converts the native prediction and a linear function of its Jacobian; ``unit`` is that function of I."""
        if kind == self.native:
            return value, form
        a, b = self.process.conversion(as_time(self.coefficient_time(t), x), self.native, kind)
        return expand(a, x) * x + expand(b, x) * value, expand(a, form) * unit + expand(b, form) * form

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Trace of the Jacobian of the score. Shape: (n,)."""
        return self.jacobian(x, t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        """The native prediction in operations that torch.func can differentiate in x and in t.

        By default :meth:`predict`; a Score whose predict runs a kernel without derivatives must override it.
        """
        return self.predict(x, t)

    def _differentiable_score(self, x: Tensor, t: Tensor) -> Tensor:
        return self.process.convert(x, self.coefficient_time(t), self.differentiable(x, t), self.native, "score")

    def trace_gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Gradient of the trace of the score's Jacobian. Shape: (n, *shape)."""
        t = as_time(t, x)

        def trace(y: Tensor) -> Tensor:
            total = y.new_zeros(())
            for e in basis(y):
                slope = torch.func.jvp(lambda z: self._differentiable_score(z, t), (y,), (e,))[1]
                total = total + (slope * e).sum()  # points are independent: the sum's gradient is each point's own
            return total

        return torch.func.grad(trace)(x)

    def time_derivative(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Derivative of the score in time, at a fixed point. Shape: (n, *shape)."""
        t = as_time(t, x)
        return torch.func.jvp(lambda s: self._differentiable_score(x, s), (t,), (torch.ones_like(t),))[1]

    def velocity_and_divergence(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, (n, *shape), and its divergence, the trace of its Jacobian, (n,)."""
        value, jac = self.jacobian(x, t, "velocity")
        return value, jac.diagonal(dim1=-2, dim2=-1).sum(-1)

    def velocity_and_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, (n, *shape), and u^T (dv/dx) u, (n,): Hutchinson's estimate of its divergence."""
        value, slope = self.velocity_jvp(x, t, u)
        return value, (slope * u).flatten(1).sum(1)

    def velocity_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity and its derivative along ``u``. Shapes: (n, *shape) each."""
        return self._convert(x, t, *self.predict_jvp(x, t, u), u)
