r"""The exact law of a diffused data set: the score that a network would learn from those points and no others.

After time t a finite set :math:`y_1..y_N` has become a mixture of N Gaussians of width :math:`\sigma(t)`, whose score
is known (:mod:`psmlib.kernels.optimal_denoiser`). It is the minimiser of the training loss; a network that is better
on new data than this has not learned its training data less well, but differently.
"""

from __future__ import annotations

from torch import Tensor

from psmlib.kernels.optimal_denoiser import (
    Posterior,
    optimal_denoiser,
    optimal_denoiser_ref,
    posterior,
    score_divergence,
    top_weights,
)
from psmlib.process import Process, as_time, expand
from psmlib.score import Score


class DiffusedData(Score):
    """The exact Score of a finite data set under a process.

    Args:
        data: The points; their dtype and device are those that x must have. Shape: (N, *shape).
        process: The process.

    Raises:
        ValueError: for data of integers, with bad values, or none at all; later for x of another shape or dtype, and
            for times at which there is no noise.

    Example:
        >>> import torch
        >>> from psmlib.process import VP
        >>> two = DiffusedData(torch.tensor([[-1.], [1.]], dtype=torch.float64), VP(0., 10.))
        >>> two.denoised(torch.tensor([[.9]], dtype=torch.float64), .1).round(decimals=6)
        tensor([[1.]], dtype=torch.float64)
    """

    native = "eps"

    def __init__(self, data: Tensor, process: Process):
        usable = data.is_floating_point() and data.dim() and data.numel()
        if not usable or not bool(data.isfinite().all()):
            raise ValueError("data must be finite floating-point numbers, one point or more: convert and clean them")
        self.data, self.process = data, process

    @property
    def home(self) -> dict:
        return {"dtype": self.data.dtype, "device": self.data.device}

    def _coefficients(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t, x).double()  # near 0 both coefficients would lose their digits in single precision
        return self.process.alpha(t), self.process.sigma(t)

    def posterior(self, x: Tensor, t: float | Tensor, tangent: Tensor | None = None) -> Posterior:
        """Everything that one pass over the data tells about x_0 given x_t = x."""
        return posterior(x, self.data, *self._coefficients(x, t), tangent=tangent)

    def top_weights(self, x: Tensor, t: float | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k data points that x most probably comes from: probabilities and indices. Shapes: (n, k)."""
        return top_weights(x, self.data, *self._coefficients(x, t), k)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Log density of x_t, in nats. Shape: (n, *shape) -> (n,)."""
        return self.posterior(x, t).log_density

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return optimal_denoiser(x, self.data, *self._coefficients(x, t))

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        return -self.predict(x, t) / expand(self._coefficients(x, t)[1], x)  # also where alpha is 0 and a flow ends

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.posterior(x, t).mean

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        found = self.posterior(x, t, u)
        return found.eps, found.jvp

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        return score_divergence(x, self.data, *self._coefficients(x, t))

    def _flow(self, x: Tensor, t: float | Tensor) -> tuple[Posterior, Tensor, Tensor, Tensor]:
        """Posterior, velocity and the rates of alpha and sigma; without a division by alpha."""
        t = as_time(t, x).double()
        found, down, up = self.posterior(x, t), self.process.alpha_rate(t), self.process.sigma_rate(t)
        return found, expand(down, x) * found.mean + expand(up, x) * found.eps, down, up

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._flow(x, t)[1]

    def velocity_and_score(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        found, velocity, _, _ = self._flow(x, t)
        return velocity, -found.eps / expand(self._coefficients(x, t)[1], x)

    def velocity_and_divergence(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        (found, velocity, down, up), (alpha, sigma) = self._flow(x, t), self._coefficients(x, t)
        # traces of the Jacobians of the expected data point, alpha C / sigma^2, and of the expected noise
        slope = alpha / sigma**2 * found.variance.double()
        return velocity, (down * slope + up / sigma * (self.data[0].numel() - alpha * slope)).to(x.dtype)

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        return optimal_denoiser_ref(x, self.data, *self._coefficients(x, t))
