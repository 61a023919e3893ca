r"""The exact law of a diffused toy: density, score, Jacobian and posterior at every time.

Each component of a :class:`~psmlib.data.toys.Mixture` is a product of one-dimensional densities in a rotated
frame, and so is its diffusion; :mod:`psmlib.axis_laws` has those of one axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from psmlib.axis_laws import Axis, gaussian_axis, uniform_axis
from psmlib.gaussian_path import Process, as_time
from psmlib.score import Score

if TYPE_CHECKING:
    from psmlib.data.toys import Mixture

_CHUNK = 8192


class DiffusedMixture(Score):
    """The exact Score of a mixture under a process; made by ``mixture.diffused(process)``.

    Works in float64 inside and returns the dtype of ``x``. Times may be floats or of shape (n,); at t = 0 the
    limit from the right is returned.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> exact = HG().diffused(VP(0., 10.))
        >>> x = torch.tensor([[.45, .8]], dtype=torch.float64)
        >>> exact.score(x, 1e-3).abs().max() < 1e-6        # deep inside a bar nothing pulls
        tensor(True)
    """

    native = "eps"

    def __init__(self, mixture: Mixture, process: Process):
        self.mixture, self.process = mixture, process
        values, vectors = torch.linalg.eigh(mixture.gauss_cov)
        self._gauss = (mixture.gauss_mean, vectors, values)
        self._boxes = (mixture.box_centre, mixture.box_rotation, mixture.box_half)
        self._frames = torch.cat([vectors, mixture.box_rotation])
        self._log_weights = mixture.weights.log()

    def _axes(self, x: Tensor, t: float | Tensor) -> tuple[Axis, Tensor, Tensor]:
        """Every axis of every component, with the signal and noise coefficients of shape () or (n, 1, 1)."""
        t = as_time(t, x).double()
        alpha, sigma = self.process.alpha(t), self.process.sigma(t).clamp_min(1e-9)
        if alpha.dim():
            alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        parts = []
        for (centre, frame, size), law in ((self._gauss, gaussian_axis), (self._boxes, uniform_axis)):
            if len(centre):
                shifted = x[:, None, :] - alpha * centre.to(x.device)
                local = (shifted[..., :, None] * frame.to(x.device)).sum(-2)
                parts.append(law(local, size.to(x.device), alpha, sigma))
        return Axis(*(torch.cat(p, 1) for p in zip(*parts, strict=True))), alpha, sigma

    def _weigh(self, axis: Axis) -> tuple[Tensor, Tensor]:
        """Log density (n,) and the posterior probability of each component (n, k)."""
        logits = axis.log_density.sum(-1) + self._log_weights.to(axis.log_density.device)
        total = torch.logsumexp(logits, 1)
        return total, (logits - total[:, None]).exp()

    def _turn(self, local: Tensor) -> Tensor:
        """Vectors from component frames to the plane: (n, k, d) -> (n, k, d)."""
        return torch.einsum("nke,kde->nkd", local, self._frames.to(local.device))

    def _spread(self, diagonal: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum of component matrices given by their diagonals in component frames: -> (n, d, d)."""
        frames = self._frames.to(diagonal.device)
        return torch.einsum("nke,kde,kfe->ndf", weight[..., None] * diagonal, frames, frames)

    def _in_chunks(self, f, x: Tensor, t: float | Tensor):
        """Applies f(x, t) piece by piece: a piece of (n, k, d) intermediates stays in the cache."""
        if x.dim() != 2 or x.shape[1] != self.mixture.dim:
            raise ValueError(f"x must have shape (n, {self.mixture.dim}) for {self.mixture.name}, got {tuple(x.shape)}")
        t = as_time(t, x).double()  # 1 - alpha would lose its digits in single precision
        step = max(1, _CHUNK // len(self._log_weights) * 8)
        pieces = [f(x[i : i + step].double(), t[i : i + step] if t.dim() else t) for i in range(0, len(x), step)]
        if not pieces:
            pieces = [f(x.double(), t)]
        if isinstance(pieces[0], tuple):
            return tuple(torch.cat(p).to(x.dtype) for p in zip(*pieces, strict=True))
        return torch.cat(pieces).to(x.dtype)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Log density of x_t, in nats. Shape: (n, d) -> (n,)."""
        return self._in_chunks(lambda y, s: self._weigh(self._axes(y, s)[0])[0], x, t)

    def _score(self, x: Tensor, t: Tensor) -> Tensor:
        axis, _, _ = self._axes(x, t)
        weight = self._weigh(axis)[1]
        return (weight[..., None] * self._turn(axis.score)).sum(1)

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._in_chunks(self._score, x, t)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._in_chunks(lambda y, s: -self._score(y, s) * self.process.sigma(s).reshape(-1, 1), x, t)

    def _score_jacobian(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        axis, _, _ = self._axes(x, t)
        weight = self._weigh(axis)[1]
        each = self._turn(axis.score)
        score = (weight[..., None] * each).sum(1)
        apart = each - score[:, None]
        outer = torch.einsum("nk,nkd,nke->nde", weight, apart, apart)
        return score, self._spread(axis.curvature, weight) + outer

    def predict_jacobian(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        def f(y, s):
            score, jac = self._score_jacobian(y, s)
            sigma = self.process.sigma(s).reshape(-1, 1)
            return -sigma * score, -sigma[..., None] * jac

        return self._in_chunks(f, x, t)

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, jac = self.predict_jacobian(x, t)
        return value, (jac @ u[..., None])[..., 0]

    def _posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        axis, _, _ = self._axes(x, t)
        weight = self._weigh(axis)[1]
        each = self.mixture.centres.to(x.device) + self._turn(axis.mean)
        mean = (weight[..., None] * each).sum(1)
        apart = each - mean[:, None]
        return mean, self._spread(axis.variance, weight) + torch.einsum("nk,nkd,nke->nde", weight, apart, apart)

    def posterior(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n, d) and covariance (n, d, d) of x_0 given x_t = x."""
        return self._in_chunks(self._posterior, x, t)

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.posterior(x, t)[0]

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.jacobian(x, t, "velocity")[0]

    def velocity_and_score(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(x, t), self.score(x, t)

    def jacobian(self, x: Tensor, t: float | Tensor, kind: str = "score") -> tuple[Tensor, Tensor]:
        if kind == "score":
            return self._in_chunks(self._score_jacobian, x, t)
        if kind not in ("velocity", "denoised"):
            return super().jacobian(x, t, kind)

        def f(y, s):
            if kind == "velocity" and bool((self.process.alpha(s) > 1e-6).all()):
                score, jac = self._score_jacobian(y, s)
                drift, half = self.process.drift(s).reshape(-1, 1), 0.5 * self.process.diffusion2(s).reshape(-1, 1)
                eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
                return drift * y - half * score, drift[..., None] * eye - half[..., None] * jac
            # Through the posterior, because the drift divides by alpha, which flow matching lets go to 0
            mean, cov = self._posterior(y, s)
            alpha, sigma = (
                self.process.alpha(s).reshape(-1, 1, 1),
                self.process.sigma(s).clamp_min(1e-9).reshape(-1, 1, 1),
            )
            mean_jac = alpha / sigma**2 * cov
            if kind == "denoised":
                return mean, mean_jac
            up, down = self.process.sigma_rate(s).reshape(-1, 1, 1), self.process.alpha_rate(s).reshape(-1, 1, 1)
            eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
            eps = (y - alpha[..., 0] * mean) / sigma[..., 0]
            return down[..., 0] * mean + up[..., 0] * eps, down * mean_jac + up * (eye - alpha * mean_jac) / sigma

        return self._in_chunks(f, x, t)

    def velocity_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, jac = self.jacobian(x, t, "velocity")
        return value, (jac @ u[..., None])[..., 0]
