r"""The interface of everything that predicts: exact mixtures, data sets, trained banks.

A :class:`Score` knows its process and one native prediction (noise, denoised point, velocity or score);
the rest are linear readings of it. Samplers, likelihoods and residuals take a Score and nothing else, so
each experiment can be run with no training error at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from psmlib.process import Process, as_time, expand

# torch's own forward mode calls its deprecated torch.jit.script when it is first used; a reader can do nothing about it
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated", category=FutureWarning)


def basis(x: Tensor) -> Iterator[Tensor]:
    """The unit vectors of the space that each point lies in, one at a time, for all points alike.

    Args:
        x: Points. Shape: (n, *shape).

    Yields:
        Tensors like ``x``, as many as a point has values.

    Example:
        >>> [e.tolist() for e in basis(torch.zeros(2, 2))]
        [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]
    """
    for j in range(x[0].numel() if len(x) else x.flatten(1).shape[1]):
        e = x.new_zeros(x.shape)  # not zeros_like: of channels last, flatten would give a copy
        e.flatten(1)[:, j] = 1
        yield e


class Score:
    """Base class. A subclass sets ``native`` and ``process`` and defines :meth:`predict`.

    It should override :meth:`predict_jvp` or :meth:`predict_jacobian` when it can do better than
    automatic differentiation.
    """

    process: Process
    native: str = "eps"

    @property
    def home(self) -> dict:
        """The dtype and device that points should have: float64 on the CPU, or a bank's own."""
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
        """The same Score with every choice of network frozen to the one that answers at time ``t``.

        Solvers call it once a step, so that a step never mixes two networks of a bank. An exact score is
        one piece and returns itself.
        """
        return self

    def clock(self, t: float | Tensor) -> float | Tensor:
        """The time whose coefficients turn a prediction at ``t`` into another: ``t``, unless the field is frozen."""
        return t

    def _read(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        return self.process.convert(x, self.clock(t), self.predict(x, t), self.native, kind)

    def whole_solve(self, x: Tensor, times: Tensor, method: str, divergence: str) -> tuple[Tensor, Tensor, int] | None:
        """A probability-flow solve in one piece, where a Score has a kernel for it; None where it has not.

        Args:
            x: Points. Shape: (n, *shape).
            times: The grid. Shape: (steps + 1,).
            method: Of :mod:`psmlib.solvers`.
            divergence: As of :func:`psmlib.likelihood.log_likelihood`.

        Returns:
            Where the points end, (n, *shape), the integrated divergence, (n,), and the evaluations; or None.
        """
        return None

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Expected noise E[eps | x_t = x]. Shape: (n, *shape)."""
        return self._read(x, t, "eps")

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Gradient of the log density of x_t. Shape: (n, *shape)."""
        return self._read(x, t, "score")

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Expected data point E[x_0 | x_t = x]. Shape: (n, *shape)."""
        return self._read(x, t, "denoised")

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Velocity of the probability-flow equation dx/dt = f x - g^2 s / 2. Shape: (n, *shape)."""
        return self._read(x, t, "velocity")

    def velocity_and_score(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Both from one evaluation. Shapes: (n, *shape)."""
        value, s = self.predict(x, t), self.clock(t)
        return tuple(self.process.convert(x, s, value, self.native, kind) for kind in ("velocity", "score"))

    def jacobian(self, x: Tensor, t: float | Tensor, kind: str = "score") -> tuple[Tensor, Tensor]:
        """A prediction of the named kind, (n, *shape), and its Jacobian, (n, D, D)."""
        value, jac = self.predict_jacobian(x, t)
        if kind == self.native:
            return value, jac
        a, b = self.process.conversion(as_time(self.clock(t), x), self.native, kind)
        eye = torch.eye(jac.shape[-1], dtype=x.dtype, device=x.device)
        return expand(a, x) * x + expand(b, x) * value, expand(a, jac) * eye + expand(b, jac) * jac

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Trace of the Jacobian of the score. Shape: (n,)."""
        return self.jacobian(x, t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        """The native prediction in operations that torch.func can differentiate, in x and in t; by default
        :meth:`predict`, which a faster way of computing must not replace here."""
        return self.predict(x, t)

    def _differentiable_score(self, x: Tensor, t: Tensor) -> Tensor:
        return self.process.convert(x, self.clock(t), self.differentiable(x, t), self.native, "score")

    def trace_gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Gradient of the trace of the score's Jacobian. Shape: (n, *shape)."""
        t = as_time(t, x)

        def trace(y: Tensor) -> Tensor:
            total = y.new_zeros(())
            for e in basis(y):
                slope = torch.func.jvp(lambda z: self._differentiable_score(z, t), (y,), (e,))[1]
                total = total + (slope * e).sum()  # points do not meet, so the sum has the gradient of each
            return total

        return torch.func.grad(trace)(x)

    def time_derivative(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Derivative of the score in time, at a fixed point. Shape: (n, *shape)."""
        t = as_time(t, x)
        return torch.func.jvp(lambda s: self._differentiable_score(x, s), (t,), (torch.ones_like(t),))[1]

    def velocity_and_divergence(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, (n, *shape), and the trace of its Jacobian, (n,): what a likelihood integrates."""
        value, jac = self.jacobian(x, t, "velocity")
        return value, jac.diagonal(dim1=-2, dim2=-1).sum(-1)

    def velocity_and_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, (n, *shape), and u^T (dv/dx) u, (n,): Hutchinson's estimate of its divergence."""
        value, slope = self.velocity_jvp(x, t, u)
        return value, (slope * u).flatten(1).sum(1)

    def _velocity(
        self, x: Tensor, t: float | Tensor, value: Tensor, form: Tensor, unit: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity and a linear form of its Jacobian, from those of the native prediction; ``unit`` is that of I."""
        if self.native == "velocity":
            return value, form
        a, b = self.process.conversion(as_time(self.clock(t), x), self.native, "velocity")
        return expand(a, x) * x + expand(b, x) * value, expand(a, form) * unit + expand(b, form) * form

    def velocity_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity and its derivative along ``u``. Shapes: (n, *shape) each."""
        value, tangent = self.predict_jvp(x, t, u)
        if self.native == "velocity":
            return value, tangent
        a, b = self.process.conversion(as_time(self.clock(t), x), self.native, "velocity")
        a, b = expand(a, x), expand(b, x)
        return a * x + b * value, a * u + b * tangent
