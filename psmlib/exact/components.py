"""The components of a mixture: their parameters, random draws from them, and the density that they add up to."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from psmlib.kernels.philox import normal, uniform
from psmlib.machine.checks import floating
from psmlib.machine.fingerprints import digest


def _rotation(degrees: float) -> list[list[float]]:
    """A rotation matrix, whose columns are the axes of a rotated box."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[c, -s], [s, c]]


def choose(weights: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws the component of each of n points, on the generator's device. Shape: (n,).

    Args:
        weights: Of the components; they need not sum to one. Shape: (k,).
        n: How many points.
        generator: Source of randomness.

    Example:
        >>> choose(torch.tensor([0., 1., 0.], dtype=torch.float64), 4).tolist()
        [1, 1, 1, 1]
    """
    device = "cpu" if generator is None else generator.device
    cdf = weights.to(device).cumsum(0)
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=device).mul_(cdf[-1])
    return torch.searchsorted(cdf, u, right=True).clamp_(max=len(cdf) - 1)


def gaussian_log_probs(x: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Log density of each of k Gaussians at each point, in nats. Shape: (n, k).

    Args:
        x: Points. Shape: (n, d).
        means: Shape: (k, d).
        scales: Cholesky factors of the covariances, (k, d, d), or the standard deviation along each axis, (k, d).

    Example:
        >>> gaussian_log_probs(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[-1.8379]])
    """
    means, scales = means.to(x.device), scales.to(x.device)
    if scales.dim() == 3:
        return MultivariateNormal(means, scale_tril=scales, validate_args=False).log_prob(x[:, None])
    return Normal(means, scales, validate_args=False).log_prob(x[:, None]).sum(-1)


class Components:
    r"""Weighted Gaussians and uniform densities on rotated boxes: tensors, draws and the density of a mixture.

    .. math:: p(x) = \sum_k w_k N(x; m_k, C_k) + \sum_j v_j\, U(R_j^\top(x - c_j) \in [-h_j, h_j])

    Args:
        gaussians: Entries (weight, mean, covariance); the covariance is a float (isotropic) or a d x d list.
        boxes: Entries (weight, centre, half widths, rotation in degrees), in the plane.
        name: Its name in tables and messages.

    Weights need not sum to one. All tensors are float64.

    Raises:
        ValueError: when there is no component, or a weight, covariance or width is not positive.

    Example:
        >>> m = Components(gaussians=[(1., [0., 0.], 1.)])
        >>> round(float(m.log_prob(torch.zeros(1, 2))), 6) == round(-math.log(2 * math.pi), 6)
        True
    """

    def __init__(self, *, gaussians=(), boxes=(), name: str = "mixture"):
        if not gaussians and not boxes:
            raise ValueError("a Mixture needs at least one component, in gaussians= or boxes=")
        self.name = name
        self.dim = len(gaussians[0][1]) if gaussians else len(boxes[0][1])
        f64 = dict(dtype=torch.float64)
        weights = torch.tensor([g[0] for g in gaussians] + [b[0] for b in boxes], **f64)
        if not bool((weights > 0).all()):
            raise ValueError(f"the weights of {name} must be positive, got {weights.tolist()}")
        weights = weights / weights.sum()
        self.gauss_weight, self.box_weight = weights[: len(gaussians)], weights[len(gaussians) :]
        self.gauss_mean = torch.tensor([list(g[1]) for g in gaussians], **f64).reshape(-1, self.dim)
        eye = torch.eye(self.dim, **f64)
        covs = [g[2] * eye if isinstance(g[2], int | float) else torch.tensor(g[2], **f64) for g in gaussians]
        self.gauss_cov = torch.stack(covs) if covs else torch.zeros(0, self.dim, self.dim, **f64)
        self.gauss_chol, bad = torch.linalg.cholesky_ex(self.gauss_cov)
        self.box_centre = torch.tensor([list(b[1]) for b in boxes], **f64).reshape(-1, self.dim)
        self.box_half = torch.tensor([list(b[2]) for b in boxes], **f64).reshape(-1, self.dim)
        rotations = [_rotation(b[3]) for b in boxes]
        self.box_rotation = torch.tensor(rotations, **f64).reshape(-1, self.dim, self.dim)
        if bool(bad.any()) or not bool((self.box_half > 0).all()):
            raise ValueError(f"{name} has a covariance or a box width that is not positive")

    @property
    def fingerprint(self) -> str:
        """A digest of all components."""
        return digest(len(self.gauss_weight), self.weights, self.centres, self._factors, digits=10)

    @property
    def weights(self) -> Tensor:
        """All weights, Gaussians first. Shape: (k,)."""
        return torch.cat([self.gauss_weight, self.box_weight])

    @property
    def centres(self) -> Tensor:
        """All component means. Shape: (k, d)."""
        return torch.cat([self.gauss_mean, self.box_centre])

    @cached_property
    def _factors(self) -> Tensor:
        """A_k, where component k is centre_k + A_k z, z standard normal or uniform on [-1, 1]^d. Shape: (k, d, d)."""
        return torch.cat([self.gauss_chol, self.box_rotation * self.box_half[:, None, :]])

    @property
    def mean(self) -> Tensor:
        """Shape: (d,)."""
        return self.weights @ self.centres

    @property
    def cov(self) -> Tensor:
        """Covariance. Shape: (d, d)."""
        A, dev = self._factors, self.centres - self.mean
        unit = torch.cat([torch.ones_like(self.gauss_weight), torch.full_like(self.box_weight, 1 / 3)])
        inner = A @ A.mT * unit[:, None, None] + dev[:, :, None] * dev[:, None, :]
        return (self.weights[:, None, None] * inner).sum(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation per axis. Shape: (d,)."""
        return self.cov.diagonal().sqrt()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws n independent points, float64, on the generator's device. Shape: (n, d).

        Example:
            >>> from psmlib.data.toys import HG
            >>> HG().sample(3, torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        k = choose(self.weights, n, generator)
        how = dict(generator=generator, dtype=torch.float64, device=k.device)
        local = torch.rand(n, self.dim, **how).mul_(2).sub_(1)
        local = torch.where((k < len(self.gauss_weight))[:, None], torch.randn(n, self.dim, **how), local)
        # the d products are written out: a batched matrix-vector product of 2 x 2 blocks is ten times slower
        A, x = self._factors.to(k.device), self.centres.to(k.device)[k]
        for j in range(self.dim):
            x += A[k, :, j] * local[:, j : j + 1]
        return x

    def of_words(self, pick: Tensor, local: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Points computed from random 32-bit words, on the words' device: equal words give equal points.

        Args:
            pick: Words that select the component, in [0, 2^32). Shape: (...).
            local: Words that give the position within it, two for each pair of axes. Shape: (2 ceil(d/2), ...).
            dtype: Of the points.

        Returns:
            Points. Shape: (..., d).

        Example:
            >>> from psmlib.data.toys import HG
            >>> from psmlib.kernels.philox import words
            >>> w = words(torch.tensor([1]), 0, 1, 20000, 1)
            >>> bool((HG().of_words(w[0], w[1:3]).std((0, 1, 2)) - HG().std).abs().max() < .02)
            True
        """
        bounds = (self.weights.cumsum(0)[:-1] * 2.0**32).long().to(pick.device)
        k = torch.bucketize(pick, bounds, right=True)
        axes = range(self.dim)
        gauss = torch.stack([normal(local[j - j % 2], local[j - j % 2 + 1], dtype)[j % 2] for j in axes], -1)
        box = torch.stack([2 * uniform(local[j], dtype) - 1 for j in axes], -1)
        at = torch.where((k < len(self.gauss_weight))[..., None], gauss, box)
        factors, x = self._factors.to(pick.device, dtype)[k], self.centres.to(pick.device, dtype)[k]
        for j in axes:
            x = x + factors[..., j] * at[..., j, None]
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats; -inf outside the support of a mixture of boxes only. Shape: (n, d) -> (n,)."""
        x = floating(x)
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (n, {self.dim}) for {self.name}, got {tuple(x.shape)}")
        y, parts = x.double(), []
        if len(self.gauss_weight):
            parts.append(gaussian_log_probs(y, self.gauss_mean, self.gauss_chol) + self.gauss_weight.log().to(x.device))
        if len(self.box_weight):
            centre, frame, half = (v.to(x.device) for v in (self.box_centre, self.box_rotation, self.box_half))
            local = torch.einsum("nkd,kde->nke", y[:, None] - centre, frame)
            height = (self.box_weight.log() - (2 * self.box_half).log().sum(-1)).to(x.device)
            parts.append(torch.where((local.abs() <= half).all(-1), height, -torch.inf))
        return torch.logsumexp(torch.cat(parts, -1), -1).to(x.dtype)
