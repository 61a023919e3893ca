r"""Gaussian mixtures in any number of dimensions, fitted by variational Bayes with a Dirichlet-process prior.

scikit-learn's ``BayesianGaussianMixture`` fits them: the prior leaves weight only on as many components as the points
need (Rasmussen, 1999). The density is that of the posterior means of weights, means and covariances,

.. math:: p(x) = \sum_k w_k N(x; m_k, C_k),

and is computed here. ``BayesianGaussianMixture.score_samples`` returns something else, an expected log density, whose
exponential is smaller and integrates to less than one.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from psmlib.diffusion_time.noised_data import standard_normal
from psmlib.exact.components import choose, gaussian_log_probs
from psmlib.machine.checks import check_choice, check_count

COVARIANCES = ("full", "diag", "spherical")
ACTIVE = 1e-3
"""Weight above which a component counts as active."""
_VALUES = 1 << 17  # numbers (points x components x dimensions) at a time, to stay in the cache


class GaussianMixture:
    """A weighted mixture of Gaussians. Computes in float64 and returns the dtype of ``x``.

    Diagonal covariances are never stored as matrices, so images of thousands of pixels fit in memory.

    Args:
        weights: Shape: (k,).
        means: Shape: (k, d).
        covariances: Shape: (k, d, d) for "full", (k, d) for "diag", (k,) for "spherical".
        covariance: Which of these.

    Raises:
        ValueError: for an unknown covariance, shapes that do not match, a covariance that is not positive or a weight
            that is negative.

    Example:
        >>> one = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1), "spherical")
        >>> round(float(one.log_prob(torch.zeros(1, 3))), 4), one.parameters
        (-2.7568, 4)
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, covariance: str = "full"):
        check_choice("covariance", covariance, COVARIANCES)
        self.weights, self.means, self.covariances = weights.double(), means.double(), covariances.double()
        self.covariance = covariance
        k, d = means.shape
        wanted = {"full": (k, d, d), "diag": (k, d), "spherical": (k,)}[covariance]
        if tuple(weights.shape) != (k,) or tuple(covariances.shape) != wanted:
            raise ValueError(
                f"{k} components in {d} dimensions have weights of shape {(k,)} and {covariance} covariances of shape "
                f"{wanted}, got {tuple(weights.shape)} and {tuple(covariances.shape)}"
            )
        if covariance == "full":
            self._scales, bad = torch.linalg.cholesky_ex(self.covariances)
        else:
            variances = self.covariances if covariance == "diag" else self.covariances[:, None].expand(k, d)
            self._scales, bad = variances.sqrt(), ~(variances > 0)
        if bool(bad.any()) or not bool((self.weights >= 0).all()):
            raise ValueError("a mixture needs weights of 0 or more and positive covariances: fit it to more points")

    @property
    def parameters(self) -> int:
        """Number of free parameters: weights that sum to one, means and covariances."""
        k, d = self.means.shape
        return k - 1 + k * d + k * {"full": d * (d + 1) // 2, "diag": d, "spherical": 1}[self.covariance]

    @property
    def active(self) -> int:
        """Number of components with a weight above a thousandth."""
        return int((self.weights > ACTIVE).sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats. Shape: (n, d) -> (n,)."""
        log_weights, rows = self.weights.log().to(x.device), max(1, _VALUES // self.means.numel())
        each = (gaussian_log_probs(y, self.means, self._scales) + log_weights for y in x.double().split(rows))
        return torch.cat([log_probs.logsumexp(1) for log_probs in each]).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws n points, float64, on the generator's device. Shape: (n, d)."""
        which = choose(self.weights, n, generator)
        noise = standard_normal((n, self.means.shape[1]), generator)
        x, scales = self.means.to(which.device)[which], self._scales.to(which.device)
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
        components: Their largest number.
        covariance: "full", "diag" or "spherical".
        concentration: Of the Dirichlet process, smaller for fewer components; 1 / components by default.
        seed: Of the k-means clustering for the initial values.
        iterations: Their largest number.
        tolerance: The fit stops when the variational bound gains less than this, in nats per point.

    Returns:
        The mixture, and how it was fitted: the settings, the numbers of points and iterations, whether it converged.

    Raises:
        ValueError: for an unknown covariance, numbers that are not positive, or fewer points than components.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> mixture, about = fit(torch.randn(500, 2, generator=g), components=5)
        >>> len(mixture.weights), about["points"], about["converged"]
        (5, 500, True)
    """
    from sklearn.exceptions import ConvergenceWarning  # takes a second to import
    from sklearn.mixture import BayesianGaussianMixture

    check_choice("covariance", covariance, COVARIANCES)
    check_count("components", components)
    check_count("iterations", iterations)
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
        warnings.simplefilter("ignore", ConvergenceWarning)  # "converged" says it
        model.fit(x.detach().double().cpu().numpy())
    parts = (torch.as_tensor(part) for part in (model.weights_, model.means_, model.covariances_))
    about = {
        "components": components, "covariance": covariance, "concentration": concentration, "seed": seed,
        "points": len(x), "iterations": int(model.n_iter_), "converged": bool(model.converged_),
    }  # fmt: skip
    return GaussianMixture(*parts, covariance), about
