r"""Gaussian mixtures in any number of dimensions, fitted by variational Bayes under a Dirichlet process.

scikit-learn's ``BayesianGaussianMixture`` does the fitting: of many components the process keeps those that the points
ask for (Rasmussen, 1999). The density is that of the posterior means of weights, means and covariances,

.. math:: p(x) = \sum_k w_k N(x; m_k, C_k),

and is worked out here. It is not what ``BayesianGaussianMixture.score_samples`` returns: that is the exponential of an
expected log density, which lies below it and integrates to less than one.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

COVARIANCES = ("full", "diag", "spherical")
ACTIVE = 1e-3
"""Weight above which a component counts."""


class GaussianMixture:
    """A weighted mixture of Gaussians. Works in float64 inside and returns the dtype of ``x``.

    Args:
        weights: Shape: (k,).
        means: Shape: (k, d).
        covariances: Shape: (k, d, d) for "full", (k, d) for "diag", (k,) for "spherical".
        covariance: Which of these.

    Raises:
        ValueError: for an unknown covariance, shapes that do not fit, or a covariance or weight that is not positive.

    Example:
        >>> one = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1), "spherical")
        >>> round(float(one.log_prob(torch.zeros(1, 3))), 4), one.parameters
        (-2.7568, 4)
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, covariance: str = "full"):
        if covariance not in COVARIANCES:
            raise ValueError(f"unknown covariance {covariance!r}: use one of {', '.join(COVARIANCES)}")
        self.weights, self.means, self.covariances = weights.double(), means.double(), covariances.double()
        self.covariance = covariance
        k, d = means.shape
        wanted = {"full": (k, d, d), "diag": (k, d), "spherical": (k,)}[covariance]
        if tuple(weights.shape) != (k,) or tuple(covariances.shape) != wanted:
            raise ValueError(
                f"{k} components in {d} dimensions have weights of shape {(k,)} and {covariance} covariances of shape "
                f"{wanted}, got {tuple(weights.shape)} and {tuple(covariances.shape)}"
            )
        self._scales = self._roots()
        if not bool((self.weights >= 0).all()) or not bool((self._stretches() > 0).all()):
            raise ValueError("a mixture needs weights of 0 or more and positive covariances: fit it to more points")

    def _roots(self) -> Tensor:
        """Cholesky factors, (k, d, d), or standard deviations, (k, d)."""
        if self.covariance == "full":
            chol, bad = torch.linalg.cholesky_ex(self.covariances)
            return torch.where(bad[:, None, None] > 0, 0.0, chol)
        wide = self.covariances if self.covariance == "diag" else self.covariances[:, None].expand_as(self.means)
        return wide.sqrt()

    def _stretches(self) -> Tensor:
        """Diagonals of the roots. Shape: (k, d)."""
        return self._scales.diagonal(dim1=1, dim2=2) if self.covariance == "full" else self._scales

    @property
    def parameters(self) -> int:
        """How many numbers are free: weights that sum to one, means and covariances."""
        k, d = self.means.shape
        return k - 1 + k * d + k * {"full": d * (d + 1) // 2, "diag": d, "spherical": 1}[self.covariance]

    @property
    def active(self) -> int:
        """Components that weigh more than a thousandth."""
        return int((self.weights > ACTIVE).sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats. Shape: (n, d) -> (n,)."""
        y, parts = x.double(), []
        means, scales, stretches = (v.to(x.device) for v in (self.means, self._scales, self._stretches()))
        for mean, scale in zip(means, scales, strict=True):
            away = y - mean
            if self.covariance == "full":
                away = torch.linalg.solve_triangular(scale, away.T, upper=False).T
            else:
                away = away / scale
            parts.append(-0.5 * away.square().sum(1))
        heights = self.weights.log().to(x.device) - stretches.log().sum(1)
        total = torch.logsumexp(torch.stack(parts, 1) + heights, 1)
        return (total - 0.5 * x.shape[1] * math.log(2 * math.pi)).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws n points, float64, on the generator's device. Shape: (n, d)."""
        place = torch.device("cpu") if generator is None else generator.device
        cdf = self.weights.cumsum(0).to(place)
        pick = torch.rand(n, generator=generator, dtype=torch.float64, device=place) * cdf[-1]
        which = torch.searchsorted(cdf, pick, right=True).clamp_(max=len(cdf) - 1)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64, device=place)
        x, scales = self.means.to(place)[which], self._scales.to(place)
        if self.covariance != "full":
            return x + scales[which] * noise
        for k in which.unique().tolist():
            rows = which == k
            x[rows] += noise[rows] @ scales[k].T
        return x


def fit(
    x: Tensor, *, components: int = 20, covariance: str = "full", concentration: float | None = None, seed: int = 0,
    iterations: int = 500, tolerance: float = 1e-3,
) -> tuple[GaussianMixture, dict]:  # fmt: skip
    """Fits a Dirichlet-process mixture to points by variational Bayes.

    Args:
        x: Points. Shape: (n, d).
        components: No more than these.
        covariance: "full", "diag" or "spherical".
        concentration: Of the process, smaller for fewer components; 1 / components by default.
        seed: Of the k-means clustering that it starts from.
        iterations: No more than these.
        tolerance: Gain of the variational bound below which it stops, nats per point.

    Returns:
        The mixture, and how it was fitted: the settings, how many points and iterations, whether it converged.

    Raises:
        ValueError: for an unknown covariance, numbers that are not positive, or fewer points than components.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> mixture, about = fit(torch.randn(500, 2, generator=g), components=5)
        >>> len(mixture.weights), about["points"], about["converged"]
        (5, 500, True)
    """
    from sklearn.exceptions import ConvergenceWarning  # a second to import: only those who fit pay it
    from sklearn.mixture import BayesianGaussianMixture

    if covariance not in COVARIANCES:
        raise ValueError(f"unknown covariance {covariance!r}: use one of {', '.join(COVARIANCES)}")
    for name, value in (("components", components), ("iterations", iterations)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if concentration is not None and not concentration > 0:
        raise ValueError(f"concentration must be positive, got {concentration!r}")
    if len(x) < max(2, components):
        raise ValueError(f"{components} components need as many points, and at least 2, got {len(x)}: draw more")
    if not bool(x.isfinite().all()):
        raise ValueError("the points of a mixture must be finite numbers: look at where they come from")
    model = BayesianGaussianMixture(
        n_components=components, covariance_type=covariance, weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=concentration, random_state=seed, max_iter=iterations, tol=tolerance,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is told in what is returned
        model.fit(x.detach().double().cpu().numpy())
    parts = (torch.as_tensor(part) for part in (model.weights_, model.means_, model.covariances_))
    about = {
        "components": components, "covariance": covariance, "concentration": concentration, "seed": seed,
        "points": len(x), "iterations": int(model.n_iter_), "converged": bool(model.converged_),
    }  # fmt: skip
    return GaussianMixture(*parts, covariance), about
