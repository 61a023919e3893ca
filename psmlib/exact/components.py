"""The parts of a mixture: their tensors, draws from them and their density."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from psmlib.kernels.philox import normal, uniform


def _rotation(degrees: float) -> list[list[float]]:
    """Columns are the box's own axes seen in the plane."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[c, -s], [s, c]]


class Components:
    r"""Weighted Gaussians and uniform densities on rotated boxes: tensors, draws and the density of a mixture.

    .. math:: p(x) = \sum_k w_k N(x; m_k, C_k) + \sum_j v_j\, U(R_j^\top(x - c_j) \in [-h_j, h_j])

    Args:
        gaussians: Entries (weight, mean, covariance); the covariance is a float (isotropic) or a d x d list.
        boxes: Entries (weight, centre, half widths, rotation in degrees), in the plane.
        name: What tables call it.

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
    def weights(self) -> Tensor:
        """All weights, Gaussians first. Shape: (k,)."""
        return torch.cat([self.gauss_weight, self.box_weight])

    @property
    def centres(self) -> Tensor:
        """All component means. Shape: (k, d)."""
        return torch.cat([self.gauss_mean, self.box_centre])

    @cached_property
    def _factors(self) -> Tensor:
        """A_k with component k = centre + A_k (standard normal, or uniform on [-1, 1]^d). Shape: (k, d, d)."""
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
        """Draws n independent points, float64. Shape: (n, d).

        Example:
            >>> from psmlib.data.toys import HG
            >>> HG().sample(3, torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        cdf = self.weights.cumsum(0)
        pick = torch.rand(n, generator=generator, dtype=torch.float64).mul_(cdf[-1])
        k = torch.searchsorted(cdf, pick, right=True).clamp_(max=len(cdf) - 1)
        return self._draw(k, generator)

    def _draw(self, k: Tensor, generator: torch.Generator | None) -> Tensor:
        """One point from each named component."""
        local = torch.rand(len(k), self.dim, generator=generator, dtype=torch.float64).mul_(2).sub_(1)
        normal = torch.randn(len(k), self.dim, generator=generator, dtype=torch.float64)
        local = torch.where((k < len(self.gauss_weight))[:, None], normal, local)
        # the d products are written out: a batched matrix-vector product of 2 x 2 blocks is ten times slower
        A = self._factors
        x = self.centres[k]
        for j in range(self.dim):
            x += A[k, :, j] * local[:, j : j + 1]
        return x

    def of_words(self, pick: Tensor, local: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Points made of random words, on whatever device these are: equal words make equal points.

        Args:
            pick: Words that choose the component, in [0, 2^32). Shape: (...).
            local: Words that place the point in it, two for each pair of axes. Shape: (2 ceil(d/2), ...).
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
        y, parts = x.double(), []
        if len(self.gauss_weight):
            mean, chol, weight = (v.to(x.device) for v in (self.gauss_mean, self.gauss_chol, self.gauss_weight))
            normal = torch.distributions.MultivariateNormal(mean, scale_tril=chol)
            parts.append(normal.log_prob(y[:, None]) + weight.log())
        if len(self.box_weight):
            centre, frame, half = (v.to(x.device) for v in (self.box_centre, self.box_rotation, self.box_half))
            local = torch.einsum("nkd,kde->nke", y[:, None] - centre, frame)
            height = (self.box_weight.log() - (2 * self.box_half).log().sum(-1)).to(x.device)
            parts.append(torch.where((local.abs() <= half).all(-1), height, -torch.inf))
        return torch.logsumexp(torch.cat(parts, -1), -1).to(x.dtype)
