r"""The exact distribution of a diffused mixture: density, score, their derivatives and the posterior at every time.

Each component of a mixture is a product of one-dimensional densities in a rotated frame, and stays one under diffusion;
:mod:`psmlib.exact.axis_laws` gives the densities along one axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.exact.axis_laws import Axis, gaussian_axis, gaussian_third, uniform_axis, uniform_third
from psmlib.exact.components import Components
from psmlib.machine.checks import floating
from psmlib.process import Process, as_time
from psmlib.score import Score

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
        >>> exact.score(x, 1e-3).abs().max() < 1e-6        # the density is flat deep inside a bar
        tensor(True)
    """

    native = "eps"

    def __init__(self, mixture: Components, process: Process):
        self.mixture, self.process = mixture, process
        values, vectors = torch.linalg.eigh(mixture.gauss_cov)
        self._gauss = (mixture.gauss_mean, vectors, values)
        self._boxes = (mixture.box_centre, mixture.box_rotation, mixture.box_half)
        self._frames = torch.cat([vectors, mixture.box_rotation])
        self._log_weights = mixture.weights.log()
        self._local_centres = torch.einsum("kd,kde->ke", mixture.centres, self._frames)

    def _each(self, x: Tensor, t: Tensor, gaussian, uniform) -> tuple[list[Tensor], Tensor, Tensor]:
        """One function for Gaussian axes and one for uniform axes, applied to all; alpha, sigma: () or (n, 1, 1)."""
        t = as_time(t, x).double()
        alpha, sigma = self.process.alpha(t), self.process.sigma(t).clamp_min(1e-9)
        if alpha.dim():
            alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        parts = []
        for (centre, frame, size), law in ((self._gauss, gaussian), (self._boxes, uniform)):
            if len(centre):
                shifted = x[:, None, :] - alpha * centre.to(x.device)
                local = (shifted[..., :, None] * frame.to(x.device)).sum(-2)
                parts.append(law(local, size.to(x.device), alpha, sigma))
        return parts, alpha, sigma

    def _axes(self, x: Tensor, t: float | Tensor) -> tuple[Axis, Tensor, Tensor]:
        """Density and posterior along every axis of every component, and the coefficients alpha and sigma."""
        parts, alpha, sigma = self._each(x, t, gaussian_axis, uniform_axis)
        return Axis(*(torch.cat(p, 1) for p in zip(*parts, strict=True))), alpha, sigma

    def _third(self, x: Tensor, t: Tensor) -> Tensor:
        """Third central moment of the data along every axis of every component, given x. Shape: (n, k, d)."""
        return torch.cat(self._each(x, t, gaussian_third, uniform_third)[0], 1)

    def _weigh(self, axis: Axis) -> tuple[Tensor, Tensor]:
        """Log density (n,) and the posterior probability of each component (n, k)."""
        logits = axis.log_density.sum(-1) + self._log_weights.to(axis.log_density.device)
        # softmax, because far from all components the rounding of total keeps exp(logits - total) from summing to one
        return torch.logsumexp(logits, 1), torch.softmax(logits, 1)

    def _turn(self, local: Tensor) -> Tensor:
        """Rotates vectors from the components' frames to the common one: (n, k, d) -> (n, k, d)."""
        return torch.einsum("nke,kde->nkd", local, self._frames.to(local.device))

    def _spread(self, diagonal: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum over components of matrices that are diagonal in their frames: -> (n, d, d)."""
        frames = self._frames.to(diagonal.device)
        return torch.einsum("nke,kde,kfe->ndf", weight[..., None] * diagonal, frames, frames)

    def _in_chunks(self, f, x: Tensor, t: float | Tensor):
        """Applies f(x, t) to pieces of x so small that intermediates of shape (n, k, d) fit in the cache."""
        if x.dim() != 2 or x.shape[1] != self.mixture.dim:
            raise ValueError(f"x must have shape (n, {self.mixture.dim}) for {self.mixture.name}, got {tuple(x.shape)}")
        x = floating(x)
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

    def _trace_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        axis, alpha, sigma = self._axes(x, t)
        weight = self._weigh(axis)[1]
        each = self._turn(axis.score)
        apart = each - (weight[..., None] * each).sum(1, keepdim=True)
        # rotations leave traces unchanged: tr H_k is the sum of the curvatures; H_k a is computed in the frame of k
        local = torch.einsum("nkd,kde->nke", apart, self._frames.to(x.device))
        trace = (axis.curvature + local**2).sum(-1, keepdim=True)
        slope = (alpha / sigma**2) ** 3 * self._third(x, t) + 2 * axis.curvature * local
        return (weight[..., None] * (trace * apart + self._turn(slope))).sum(1)

    def trace_gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""Gradient of the trace of the score's Jacobian, in cumulants of the components' scores.

        .. math:: \nabla\,\mathrm{tr} J = \sum_k w_k\,[\,a_k(\mathrm{tr} H_k + |a_k|^2)
                  + 2 H_k a_k + \nabla\,\mathrm{tr} H_k\,], \qquad a_k = s_k - s

        from :math:`J = \sum_k w_k (H_k + a_k a_k^\top)`, :math:`\nabla w_k = w_k a_k` and
        :math:`\partial a_k = H_k - J`, with H_k the Hessian of the log density of component k.

        Shape: (n, d) -> (n, d).
        """
        return self._in_chunks(self._trace_gradient, x, t)

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and of sigma^2 / 2. Shapes: () or (n, 1, 1)."""
        down, up = self.process.alpha_rate(t), self.process.sigma(t) * self.process.sigma_rate(t)
        return (down[:, None, None], up[:, None, None]) if down.dim() else (down, up)

    def _each_log_prob_rate(self, axis: Axis, alpha: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
        """Time derivative of the log density of every component at a fixed x. Shape: (n, k)."""
        down, up = self._rates(t)
        mean = self._local_centres.to(axis.mean.device) + axis.mean
        fade = mean * axis.score + alpha / sigma**2 * axis.variance
        return (up * (axis.score**2 + axis.curvature) - down * fade).sum(-1)

    def _log_prob_rate(self, x: Tensor, t: Tensor) -> Tensor:
        axis, alpha, sigma = self._axes(x, t)
        return (self._weigh(axis)[1] * self._each_log_prob_rate(axis, alpha, sigma, t)).sum(1)

    def log_prob_rate(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""Time derivative of the log density at a fixed x, in nats per unit of time.

        By Fisher's identity it is the posterior mean of that of the kernel :math:`N(x; \alpha y, \sigma^2 I)`:

        .. math:: \partial_t \log p = E\left[\frac{\dot\alpha}{\sigma^2}\,y\cdot(x-\alpha y)
                  + \frac{\dot\sigma}{\sigma}\left(\frac{|x-\alpha y|^2}{\sigma^2} - d\right)\Big|\,x\right]

        which does not use the Fokker-Planck equation. Along an axis of a component, let s and c be the slope and
        curvature of its log density, M and V the posterior mean and variance. With :math:`x-\alpha M=-\sigma^2 s` and
        :math:`\alpha^2V/\sigma^2 - 1=\sigma^2c` the axis contributes
        :math:`\sigma\dot\sigma(s^2 + c) - \dot\alpha(M s + \alpha V/\sigma^2)`, without cancellation. (For constant
        alpha this is the heat equation; an independent check is the difference of log_prob in time.)

        Shape: (n, d) -> (n,).

        Raises:
            ValueError: where sigma(t) = 0, because the derivative does not exist at the edge of a box.

        Example:
            >>> from psmlib.data.toys import Mixture
            >>> from psmlib.process import EDM
            >>> unit = Mixture(gaussians=[(1., [0., 0.], 1.)]).diffused(EDM())    # N(0, 1 + t^2)
            >>> float(unit.log_prob_rate(torch.zeros(1, 2), 1.))    # of -log(1 + t^2)
            -1.0
        """
        self._refuse_no_noise(x, t)
        return self._in_chunks(self._log_prob_rate, x, t)

    def _time_derivative(self, x: Tensor, t: Tensor) -> Tensor:
        axis, alpha, sigma = self._axes(x, t)
        weight, (down, up) = self._weigh(axis)[1], self._rates(t)
        mean, third, gain = self._local_centres.to(x.device) + axis.mean, self._third(x, t), alpha / sigma**2
        # d/dx of the terms of each_log_prob_rate: dM/dx = gain V, dV/dx = gain K, dc/dx = gain^3 K
        fade = gain * axis.variance * axis.score + mean * axis.curvature + gain**2 * third
        slope = up * (2 * axis.score * axis.curvature + gain**3 * third) - down * fade
        rate = self._each_log_prob_rate(axis, alpha, sigma, t)
        rate = rate - (weight * rate).sum(1, keepdim=True)
        each = self._turn(axis.score)
        apart = each - (weight[..., None] * each).sum(1, keepdim=True)
        return (weight[..., None] * (rate[..., None] * apart + self._turn(slope))).sum(1)

    def time_derivative(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""Time derivative of the score at a fixed x: the gradient of :meth:`log_prob_rate`.

        .. math:: \partial_t s = \sum_k w_k\,[\,(\tau_k - \tau)(s_k - s) + \nabla\tau_k\,],
                  \qquad \tau = \sum_k w_k\tau_k = \partial_t\log p

        Shape: (n, d) -> (n, d).

        Raises:
            ValueError: where sigma(t) = 0.
        """
        self._refuse_no_noise(x, t)
        return self._in_chunks(self._time_derivative, x, t)

    def _refuse_no_noise(self, x: Tensor, t: float | Tensor) -> None:
        t = as_time(t, x).double()
        bad = t[self.process.sigma(t) == 0].flatten()
        if len(bad):
            raise ValueError(f"sigma is 0 at t = {float(bad[0]):g}, where no time derivative exists: give a later time")

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
