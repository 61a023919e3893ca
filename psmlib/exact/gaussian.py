r"""The exact score of a diffused Gaussian, a linear function of x, in the eigenbasis of the covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from psmlib.process import Process, as_time
from psmlib.score import Score


class GaussianScore(Score):
    r"""The exact Score of a diffused Gaussian: with :math:`C = V\Lambda V^\top`,

    .. math:: x_t\sim N(\alpha m, \alpha^2 C+\sigma^2 I),\qquad
              \varepsilon^* = V\,\frac{\sigma}{\alpha^2\Lambda+\sigma^2}\,V^\top(x_t-\alpha m),

    two matrix products at any time. Every other prediction differs in the diagonal matrix alone.

    Args:
        mean: Its dtype and device are the Score's ``tensor_options``. Shape: (\*shape).
        covariance: Shape: (d, d), d the number of values in ``mean``.
        process: The process.

    Raises:
        ValueError: when the covariance is not a symmetric positive definite matrix of that size; later for points of
            another shape.

    Example:
        >>> from psmlib.process import VP
        >>> unit = GaussianScore(torch.zeros(1, 2, 2), torch.eye(4), VP(0., 10.))
        >>> unit.score(torch.ones(1, 1, 2, 2), .3).flatten().tolist()               # VP leaves N(0, I) unchanged
        [-1.0, -1.0, -1.0, -1.0]
    """

    native = "eps"

    def __init__(self, mean: Tensor, covariance: Tensor, process: Process):
        d, wide = mean.numel(), covariance.double()
        symmetric = wide.shape == (d, d) and bool((wide - wide.mT).abs().max() <= 1e-6 * wide.abs().max())
        values, vectors = torch.linalg.eigh(wide) if symmetric and wide.isfinite().all() else (wide.new_zeros(1), None)
        if not bool((values > 0).all()):
            raise ValueError(
                f"covariance must be symmetric, positive definite and of shape ({d}, {d}) as mean has {d} values: "
                "shrink it towards its diagonal"
            )
        self.mean, self.process, self.values, self.vectors = mean, process, values, vectors
        self._kept: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def tensor_options(self) -> dict:
        return {"dtype": self.mean.dtype, "device": self.mean.device}

    def _law(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (d,) and eigenvectors in the dtype of x, eigenvalues in float64, all where x is."""
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"x must have shape (n, {', '.join(map(str, self.mean.shape))}), got {tuple(x.shape)}")
        key = (x.dtype, x.device)
        if key not in self._kept:
            self._kept[key] = (self.mean.flatten().to(x), self.vectors.to(x), self.values.to(x.device))
        return self._kept[key]

    def _gain(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor | float, Tensor]:
        """Diagonal of the linear map from x - alpha m to a prediction, factor of m in it, and alpha: (1 or n, d or 1).

        In float64, because near t = 0 the coefficients lose their digits in single precision.
        """
        t, values = as_time(t, x).double().reshape(-1, 1), self._law(x)[2]
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        total = alpha**2 * values + sigma**2
        if kind == "eps":
            return sigma / total, 0.0, alpha
        if kind == "score":
            return -1 / total, 0.0, alpha
        if kind == "denoised":
            return alpha * values / total, 1.0, alpha
        down, up = self.process.alpha_rate(t), self.process.sigma_rate(t)  # of a velocity; nothing divides by alpha
        return (down * alpha * values + up * sigma) / total, down, alpha

    def _map(self, x: Tensor, gain: Tensor, u: Tensor) -> Tensor:
        vectors = self._law(x)[1]
        return (u.flatten(1) @ vectors * gain.to(x.dtype)) @ vectors.mT

    def _predict_as(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        (gain, start, alpha), mean = self._gain(x, t, kind), self._law(x)[0]
        shift = (start * torch.ones_like(alpha)).to(x.dtype) * mean
        return (shift + self._map(x, gain, x.flatten(1) - alpha.to(x.dtype) * mean)).reshape(x.shape)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._predict_as(x, t, "eps")

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x, t), self._map(x, self._gain(x, t, "eps")[0], u).reshape(x.shape)

    def velocity_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(x, t), self._map(x, self._gain(x, t, "velocity")[0], u).reshape(x.shape)

    def velocity_and_score(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(x, t), self.score(x, t)

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._gain(x, t, "score")[0].sum(1).to(x.dtype).expand(len(x))

    def velocity_and_divergence(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(x, t), self._gain(x, t, "velocity")[0].sum(1).to(x.dtype).expand(len(x))

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Log density of x_t, in nats. Shape: (n, *shape) -> (n,)."""
        mean, vectors, _ = self._law(x.double())
        gain, _, alpha = self._gain(x, t, "score")
        local = (x.double().flatten(1) - alpha * mean) @ vectors
        return (0.5 * (gain * local**2 + (-gain).log() - math.log(2 * math.pi)).sum(1)).to(x.dtype)
