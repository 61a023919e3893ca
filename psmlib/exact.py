r"""The exact law of a diffused toy: density, score, Jacobian and posterior at every time.

Each component of a :class:`~psmlib.data.toys.Mixture` is a product of one-dimensional densities in a rotated
frame, and so is its diffusion. For a uniform axis, :math:`\alpha U(-h, h) + \sigma\varepsilon` has density
:math:`[\Phi(z+\delta)-\Phi(z-\delta)]/(2\alpha h)` with :math:`z = u/\sigma`, :math:`\delta=\alpha h/\sigma`.
Far from a box the difference of two :math:`\Phi` underflows, and for small :math:`\delta` it cancels; both are
met here, so density and score are good to about ten digits from t = 0 to the end of any process. (The posterior
variance in a box that lies hundreds of noise levels away is good to four.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from psmlib.process import Process, as_time
from psmlib.score import Score

if TYPE_CHECKING:
    from psmlib.data.toys import Mixture

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_CHUNK = 8192


class Axis(NamedTuple):
    """What one axis of one component knows about u = alpha y + sigma eps; all of shape (n, k, d)."""

    log_density: Tensor
    score: Tensor  # d log q / du
    curvature: Tensor  # d^2 log q / du^2
    mean: Tensor  # E[y | u]
    variance: Tensor  # Var[y | u]


def gaussian_axis(u: Tensor, variance: Tensor, alpha: Tensor, sigma: Tensor) -> Axis:
    """y ~ N(0, variance)."""
    total = alpha**2 * variance + sigma**2
    log_density = -0.5 * u**2 / total - 0.5 * total.log() - _LOG_SQRT_2PI
    ones = torch.ones_like(u)
    return Axis(
        log_density, -u / total, -ones / total, alpha * variance / total * u, variance * sigma**2 / total * ones
    )


def _mills(a: Tensor) -> Tensor:
    """Phi(-a) / phi(a) for a >= 0."""
    return math.sqrt(0.5 * math.pi) * torch.special.erfcx(a * math.sqrt(0.5))


def uniform_axis(u: Tensor, half: Tensor, alpha: Tensor, sigma: Tensor) -> Axis:
    """y ~ U(-half, half)."""
    z, delta = u / sigma, alpha * half / sigma
    small = (delta < 0.03) & (delta * z.abs() < 0.3)
    wide = torch.where(small, delta.clamp_min(0.01), delta)  # keeps the branch that is not taken free of 0/0
    # By symmetry look at the left side only, at near and far, the distances to the two ends. Outside the box
    # phi(near) is divided out of everything: Phi(-near) - Phi(-far) = phi(near) (mills(near) - falloff mills(far))
    near, far = z.abs() - wide, z.abs() + wide
    falloff = torch.exp(-2 * wide * z.abs())  # phi(far) / phi(near)
    outer = near.clamp_min(0)
    gap = _mills(outer) - falloff * _mills(far)
    inner = near.clamp_max(0)
    mass = torch.special.ndtr(-inner) - torch.special.ndtr(-far)
    outside = near > 0
    log_diff = torch.where(outside, gap.log() - 0.5 * outer**2 - _LOG_SQRT_2PI, mass.log())
    ratio = torch.where(outside, 1 / gap, torch.exp(-0.5 * inner**2 - _LOG_SQRT_2PI) / mass)
    slope = -ratio * torch.expm1(-2 * wide * z.abs())  # sigma d log q/du at -|z|
    spread = 1 + ratio * (near - far * falloff) - slope**2
    # Far out y is exponential on the box, and the line above would cancel
    remote = 1 / outer.clamp_min(1) ** 2 - falloff * (2 * wide / torch.expm1(-2 * wide * z.abs())) ** 2
    spread = torch.where(near > 600, remote, spread)
    slope = torch.where(z > 0, -slope, slope)
    # Narrow box: q = phi(z) [1 + delta^2 He_2/3! + delta^4 He_4/5! + delta^6 He_6/7! + delta^8 He_8/9! + ...]
    d2, z2 = delta**2, z**2
    he4, he6 = z2 * (z2 - 6) + 3, z2 * (z2 * (z2 - 15) + 45) - 15
    he8 = z2 * (z2 * (z2 * (z2 - 28) + 210) - 420) + 105
    odd = (z2 * (z2 - 10) + 15) / 840 + d2 * (z2 * (z2 * (z2 - 21) + 105) - 105) / 45360
    p0 = d2 * ((z2 - 1) / 6 + d2 * (he4 / 120 + d2 * (he6 / 5040 + d2 * he8 / 362880)))
    p1 = d2 * z * (1 / 3 + d2 * ((z2 - 3) / 30 + d2 * odd)) / (1 + p0)
    p2 = d2 * (1 / 3 + d2 * ((z2 - 1) / 10 + d2 * (he4 / 168 + d2 * he6 / 6480))) / (1 + p0)
    series = -0.5 * z2 - _LOG_SQRT_2PI - sigma.log() + torch.log1p(p0)
    log_density = torch.where(small, series, log_diff - (2 * wide * sigma).log())
    lift = torch.where(small, p1, slope + z)  # sigma d log q/du + z = delta E[y]/half
    rise = torch.where(small, p2 - p1**2, spread)  # delta^2 Var[y]/half^2
    # delta may be exactly 0 (no signal left); E[y]/half -> 0 and Var[y]/half^2 -> 1/3 there
    safe = torch.where(delta > 0, delta, torch.ones_like(delta))
    mean = half * lift / safe
    variance = half**2 * torch.where(delta > 0, rise / safe**2, torch.full_like(rise, 1 / 3))
    score = torch.where(small, p1 - z, slope) / sigma
    return Axis(log_density, score, (rise - 1) / sigma**2, mean, variance)


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


def component_average(
    mixture: Mixture, f, *, process: Process | None = None, t: float = 0.0, m: int | None = None, repeats: int = 8
) -> tuple[float, float]:
    """Expectation of f(x_t) under the exact law, by scrambled Sobol points in each component in turn.

    Args:
        mixture: The law of x_0.
        f: Maps points (n, d) to values (n,).
        process: How x_0 is diffused; needed for t > 0.
        t: The time.
        m: 2^m points a component and repeat; by default about 2^14 points a repeat in all.
        repeats: Independent scramblings, which give the standard error.

    Returns:
        The mean and its standard error, floats.

    Example:
        >>> from psmlib.data.toys import HG
        >>> mean, se = component_average(HG(), lambda x: x[:, 0])
        >>> abs(mean) < 1e-4
        True
    """
    d, k = mixture.dim, len(mixture.weights)
    m = max(8, 14 - int(math.log2(k))) if m is None else m
    alpha, sigma = (1.0, 0.0) if process is None else (float(process.alpha(t)), float(process.sigma(t)))
    gaussian = (torch.arange(k) < len(mixture.gauss_weight))[:, None, None]
    totals = []
    for r in range(repeats):
        cube = torch.quasirandom.SobolEngine(2 * d, scramble=True, seed=r).draw(2**m, dtype=torch.float64)
        cube = cube.clamp(1e-12, 1 - 1e-12)
        local, eps = cube[:, :d], torch.special.ndtri(cube[:, d:])
        local = torch.where(gaussian, torch.special.ndtri(local), 2 * local - 1)  # (k, 2^m, d)
        x0 = mixture.centres[:, None] + local @ mixture._factors.mT
        values = f((alpha * x0 + sigma * eps).reshape(-1, d)).reshape(k, -1).mean(1)
        totals.append(mixture.weights @ values)
    totals = torch.stack(totals)
    return float(totals.mean()), float(totals.std() / repeats**0.5)


def nll_floor(mixture: Mixture, process: Process, t0: float, **kw) -> tuple[float, float]:
    r"""What a perfect score would report: :math:`-E\log p_{t_0}(x_0)`, x_0 fed in at t_0 without noise.

    Returns:
        The floor and its standard error, in nats.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> round(nll_floor(HG(), VP(0., 12.), .01)[0], 2)          # the released protocol of SA-DPM
        1.05
    """
    exact = mixture.diffused(process)
    mean, stderr = component_average(mixture, lambda x: exact.log_prob(x, t0), **kw)
    return -mean, stderr


def irreducible_loss(mixture: Mixture, process: Process, t: float, kind: str = "eps", **kw) -> tuple[float, float]:
    r"""The denoising loss of the exact score per axis, :math:`E|y - E[y|x_t]|^2/d`, for y the ``kind`` of target.

    With posterior covariance C, x_0 = given x_t leaves eps = (x_t - alpha x_0)/sigma and the velocity a linear
    function of x_0, so the loss is a multiple of E tr C.

    Returns:
        The loss and its standard error.
    """
    exact = mixture.diffused(process)
    s = as_time(t)
    factor = float(process.conversion(s, "denoised", kind)[1] ** 2) / mixture.dim

    def trace(x):
        return exact.posterior(x, t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)

    mean, stderr = component_average(mixture, trace, process=process, t=t, **kw)
    return factor * mean, factor * stderr
