r"""The optimal denoiser of a finite data set, without a matrix of B x N weights.

Given data :math:`y_1..y_N` and :math:`x = \alpha y + \sigma\varepsilon`
(Multistage, Prop. 1; Karras et al., 2022, App. B.3),

.. math:: w_i = \mathrm{softmax}_i\Big(-\frac{|x-\alpha y_i|^2}{2\sigma^2}\Big),\qquad
          m = \sum_i w_i y_i = E[y|x],\qquad \varepsilon^* = \frac{x - \alpha m}{\sigma}.

Data are visited block by block (:mod:`psmlib.kernels.online_posterior`), so that memory does not grow with N.
All is exact as sigma -> 0: where one point takes all the weight, m *is* that point and the variance is 0.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from psmlib.kernels.online_posterior import OnlinePosterior, check_shapes, nearest_first, read


def _without_gradients(f):
    """Raises ValueError for points that require gradients, which the blocks would silently return as zero."""

    @functools.wraps(f)
    def call(x: Tensor, *args, **kwargs):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{f.__name__} has no gradient: use optimal_denoiser or torch.no_grad")
        with torch.no_grad():
            return f(x, *args, **kwargs)

    return call


class Posterior(NamedTuple):
    """The law of the data point y that a noisy point x comes from.

    Attributes:
        mean: Expected data point E[y|x]. Shape: (B, *shape).
        eps: Expected noise. Shape: (B, *shape).
        log_density: log (1/N) sum_i N(x; alpha y_i, sigma^2 I), in nats. Shape: (B,).
        variance: Trace of the covariance of y given x. Shape: (B,).
        jvp: Derivative of ``eps`` along the tangent, or None. Shape: (B, *shape).
    """

    mean: Tensor
    eps: Tensor
    log_density: Tensor
    variance: Tensor
    jvp: Tensor | None


def optimal_denoiser_ref(x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The optimal denoiser in plain torch, with (B, N, d) intermediates; differentiable any number of times.

    Args:
        x: Points. Shape: (B, *shape).
        data: Data points. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise. Shape: () or (B,).

    Returns:
        The expected noise. Shape: (B, *shape).

    Raises:
        ValueError: when shapes, dtypes or devices do not agree.
    """
    check_shapes(x, data)
    y = data.reshape(len(data), -1)
    points = x.reshape(len(x), y.shape[1])
    alpha, sigma = (torch.as_tensor(c, dtype=torch.float64).to(x).reshape(-1, 1) for c in (alpha, sigma))
    D = (points[:, None] - alpha[:, None] * y).square().sum(2)
    above = D - D.detach().amin(1, keepdim=True)  # first, because D / sigma^2 may overflow
    mean = torch.softmax(-0.5 * above / sigma / sigma, 1) @ y
    return ((points - alpha * mean) / sigma).reshape(x.shape)


class _Derivative(torch.autograd.Function):
    """The Jacobian of the expected noise times a vector; cannot be differentiated again."""

    @staticmethod
    def forward(x, tangent, data, alpha, sigma):
        return posterior(x, data, alpha, sigma, tangent=tangent).jvp

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("optimal_denoiser has first derivatives only: use optimal_denoiser_ref for higher ones")


class _Denoiser(torch.autograd.Function):
    """The kernel with derivatives: the Jacobian of the expected noise is symmetric, so both modes are one product."""

    @staticmethod
    def forward(x, data, alpha, sigma):
        given = read(x, data, alpha, sigma)
        found = OnlinePosterior(given, moments=False)
        eps = torch.empty_like(given.x)
        for part in found.distances.chunks():
            _, gap, step = found.nearest_points(part)
            eps[part] = gap.sub_(given.alpha[part, None] * step).div_(given.sigma[part, None])
        return eps.view(x.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, *rest = ctx.saved_tensors
        return _Derivative.apply(x, grad, *rest), None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        x, *rest = ctx.saved_tensors
        return _Derivative.apply(x, tangent, *rest)


def optimal_denoiser(x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The expected noise in x, if x is a scaled data point plus noise: the minimiser of the denoising loss.

    It can be differentiated once in ``x``, in either mode; :func:`optimal_denoiser_ref` in all arguments and again.

    Args:
        x: Points, float32 or float64. Shape: (B, *shape).
        data: Data points, of the same dtype. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise, positive. Shape: () or (B,).

    Returns:
        The expected noise. Shape: (B, *shape).

    Raises:
        ValueError: when shapes, dtypes or devices do not agree, for values that are not finite, and for sigma = 0.

    Example:
        >>> data, x = torch.tensor([[-1.], [1.]]), torch.tensor([[0.], [.5]])
        >>> optimal_denoiser(x, data, 1., .01).tolist()                     # undecided, and certain
        [[0.0], [-50.0]]
    """
    alpha, sigma = torch.as_tensor(alpha, dtype=torch.float64), torch.as_tensor(sigma, dtype=torch.float64)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (data, alpha, sigma)):
        raise ValueError("data, alpha and sigma must not require gradients: detach them, or use optimal_denoiser_ref")
    return _Denoiser.apply(x, data, alpha, sigma)


@_without_gradients
def posterior(
    x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor, *, tangent: Tensor | None = None
) -> Posterior:
    r"""Mean, noise, density, variance and a derivative, in one pass over the data; without gradients.

    With :math:`r_i = (x - \alpha y_i)/\sigma`, the Jacobian of the expected noise is symmetric,
    :math:`(I - \mathrm{Cov}_w(r))/\sigma`, and :math:`\mathrm{Cov}_w(r) = \alpha^2\mathrm{Cov}(y|x)/\sigma^2`.

    Args:
        x: Points. Shape: (B, *shape).
        data: Data points. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise, positive. Shape: () or (B,).
        tangent: Directions for the derivative. Shape: (B, *shape).

    Raises:
        ValueError: as :func:`optimal_denoiser`.

    Example:
        >>> data, x = torch.tensor([[-1.], [1.]]), torch.tensor([[0.], [.5]])
        >>> found = posterior(x, data, 1., .01, tangent=torch.ones_like(x))
        >>> found.mean.tolist(), found.variance.tolist()
        ([[0.0], [1.0]], [1.0, 0.0])
        >>> [round(value) for value in found.jvp[:, 0].tolist()]            # (1 - 1/.01^2)/.01 and 1/.01
        [-999900, 100]
    """
    given = read(x, data, alpha, sigma)
    if tangent is not None:
        check_shapes(x, data, tangent)
        tangent = tangent.reshape(given.x.shape)
    found = OnlinePosterior(given, tangent)
    mean, jvp, eps = found.mean, found.turned, torch.empty_like(given.x)
    log_density, variance = given.x.new_empty(len(x)), given.x.new_empty(len(x))
    for part in found.distances.chunks():
        alpha, sigma, total = given.alpha[part, None], given.sigma[part, None], found.total[part]
        nearest, gap, step = found.nearest_points(part)
        if jvp is not None:  # (u - Cov(r, r.u)) / sigma, in an order in which 0 stays 0 at the least sigma
            cov = (jvp[part] - found.slope[part, None] * (mean[part] / total[:, None])) / total[:, None]
            jvp[part] = (tangent[part] + cov / sigma * alpha / sigma) / sigma
        torch.add(nearest, step, out=mean[part])
        torch.div(gap - alpha * step, sigma, out=eps[part])
        apart = (gap / sigma).square_().sum(1)
        log_density[part] = total.log() - apart / 2 - given.log_sigma[part].to(apart) * given.x.shape[1]
        variance[part] = found.variance(part, nearest, gap, step)
    log_density -= math.log(len(data)) + given.x.shape[1] / 2 * math.log(2 * math.pi)
    jvp = None if jvp is None else jvp.view(x.shape)
    return Posterior(mean.view(x.shape), eps.view(x.shape), log_density, variance, jvp)


@_without_gradients
def score_divergence(x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    r"""Divergence of the score: :math:`(\alpha^2 v/\sigma^2 - d)/\sigma^2` with v the posterior variance.

    Args:
        x: Points. Shape: (B, *shape).
        data: Data points. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise, positive. Shape: () or (B,).

    Returns:
        Divergences. Shape: (B,).

    Raises:
        ValueError: as :func:`optimal_denoiser`.

    Example:
        >>> score_divergence(torch.zeros(1, 3), torch.zeros(1, 3), 1., .1).round()      # one point: -d / sigma^2
        tensor([-300.])
    """
    given = read(x, data, alpha, sigma)
    ratio = given.alpha / given.sigma
    excess = posterior(x, data, alpha, sigma).variance * ratio * ratio
    return (excess - given.x.shape[1]) / given.sigma / given.sigma


@_without_gradients
def top_weights(x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The data points that x most probably comes from.

    Args:
        x: Points. Shape: (B, *shape).
        data: Data points. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise, positive. Shape: () or (B,).
        k: How many.

    Returns:
        Posterior probabilities, descending, and indices into ``data``. Shapes: (B, k). Points of equal weight, or of
        weights that round to 0, are ordered by their distances, as far as those are known.

    Raises:
        ValueError: as :func:`optimal_denoiser`, and when there are fewer than k data points.

    Example:
        >>> data = torch.tensor([[-1.], [1.], [2.]])
        >>> weights, indices = top_weights(torch.tensor([[1.2]]), data, 1., .1, k=2)
        >>> indices.tolist(), weights.sum() <= 1
        ([[1, 2]], tensor(True))
    """
    given = read(x, data, alpha, sigma)
    if not 1 <= k <= len(data):
        raise ValueError(f"k must be between 1 and the number of data points, {len(data)}, got {k}")
    return nearest_first(given, k)
