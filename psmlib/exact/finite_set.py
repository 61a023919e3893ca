r"""The exact score of a diffused finite data set, the minimiser of the training loss on that set.

At time t the points :math:`y_1..y_N` have become a mixture of N Gaussians of width :math:`\sigma(t)`, whose score is
known (:mod:`psmlib.kernels.optimal_denoiser`). A network that does better than this on new data generalises: it differs
from the minimiser of its training loss.
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
        data: The points; x must have their dtype and device. Shape: (N, *shape).
        process: The process.

    Raises:
        ValueError: for integer, infinite, NaN or empty data; later for x of another shape or dtype, and for times at
            which there is no noise.

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
    def tensor_options(self) -> dict:
        return {"dtype": self.data.dtype, "device": self.data.device}

    def _coefficients(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t, x).double()  # near t = 0 both coefficients lose their digits in single precision
        return self.process.alpha(t), self.process.sigma(t)

    def posterior(self, x: Tensor, t: float | Tensor, tangent: Tensor | None = None) -> Posterior:
        """The posterior of x_0 given x_t = x, from one pass over the data."""
        return posterior(x, self.data, *self._coefficients(x, t), tangent=tangent)

    def top_weights(self, x: Tensor, t: float | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k data points with the largest posterior probability given x, and their indices. Shapes: (n, k)."""
        return top_weights(x, self.data, *self._coefficients(x, t), k)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Log density of x_t, in nats. Shape: (n, *shape) -> (n,)."""
        return self.posterior(x, t).log_density

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return optimal_denoiser(x, self.data, *self._coefficients(x, t))

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        return -self.predict(x, t) / expand(self._coefficients(x, t)[1], x)  # valid also where alpha is 0

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.posterior(x, t).mean

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        found = self.posterior(x, t, u)
        return found.eps, found.jvp

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        return score_divergence(x, self.data, *self._coefficients(x, t))

    def _flow(self, x: Tensor, t: float | Tensor) -> tuple[Posterior, Tensor, Tensor, Tensor]:
        """Posterior, velocity and the rates of alpha and sigma, computed without dividing by alpha."""
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
