r"""Densities in closed form that a model's bits per dimension are held against.

No entropy is known for images, so a figure says little alone. Each density here is fitted on the training split (with
the mirrored images, where a network may see those), has at most one number, chosen on the validation split, and
normalises exactly: a network that does worse has not yet learnt a histogram or a covariance matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from psmlib import standard_errors
from psmlib.data.dequantisation import bits_per_dim, dequantise, quantise
from psmlib.data.images import SPLITS, Images
from psmlib.exact.finite_set import DiffusedData
from psmlib.exact.gaussian import GaussianScore
from psmlib.process import VP, Process

_PIECE = 4096  # images turned into float64 at a time


class Reference:
    """A density of dequantised images on [0, 1); a subclass fits itself when it is made, and defines log_prob.

    Args:
        images: The data set.
        seed: Of the dequantisation noise of the validation images, on which a number may be chosen.

    Attributes:
        name: For tables.
        setting: The number that was chosen, as text.
    """

    name, setting = "", ""

    def __init__(self, images: Images, *, seed: int = 0):
        self.levels, self.shape, self.dim, self.train = images.levels, images.shape, images.dim, seen(images)
        generator = torch.Generator().manual_seed(seed)
        self._validation = images.dequantise(images.validation, generator).flatten(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats of points (n, C, H, W) or (n, D). Shape: (n,)."""
        raise TypeError(f"{type(self).__name__} does not define log_prob(x)")

    def bits_per_dim(self, x_levels: Tensor, generator: torch.Generator | None = None, draws: int = 1) -> Tensor:
        """Bits per dimension of each image, the mean over draws of the dequantisation noise. Shape: (n,)."""
        each = [self.log_prob(dequantise(x_levels, self.levels, generator)) for _ in range(draws)]
        return bits_per_dim(torch.stack(each).mean(0), self.shape, self.levels)

    def _inside(self, x: Tensor, log_prob: Tensor) -> Tensor:
        return torch.where(((x >= 0) & (x < 1)).all(1), log_prob.to(x.dtype), -torch.inf)


def seen(images: Images) -> Tensor:
    """Training images as whole levels, with their mirror images where training may draw those. Shape: (n, C, H, W)."""
    return torch.cat([images.train, images.train.flip(-1)]) if images.flip else images.train


class Uniform(Reference):
    """The uniform law on the cube: log2 K bits per dimension."""

    name = "uniform"

    def log_prob(self, x: Tensor) -> Tensor:
        return self._inside(x.flatten(1), torch.zeros(len(x)))


class IndependentPixels(Reference):
    """Histograms of each pixel's levels with additive smoothing: an exact code of the levels, whatever the noise.

    Args:
        images: The data set.
        smoothing: What is added to each count; by default chosen on the validation images.
        seed: As of every :class:`Reference`.
    """

    name = "independent pixels"

    def __init__(self, images: Images, smoothing: float | None = None, *, seed: int = 0):
        super().__init__(images, seed=seed)
        self._counts = torch.zeros(self.dim, self.levels, dtype=torch.float64)
        for piece in self.train.flatten(1).split(_PIECE):
            self._counts.scatter_add_(1, piece.mT.long(), torch.ones(piece.mT.shape, dtype=torch.float64))
        if smoothing is None:
            smoothing = _best(lambda a: self._smooth(a).log_prob(self._validation), 1e-3, 1e3)
        self._smooth(smoothing)

    def _smooth(self, smoothing: float) -> IndependentPixels:
        raised, self.smoothing = self._counts + smoothing, smoothing
        self.probs, self.setting = raised / raised.sum(1, keepdim=True), f"{smoothing:.2g} added to each count"
        return self

    def cells(self, x: Tensor) -> Tensor:
        """Levels in whose cells points (n, D) lie, a row for each pixel. Shape: (D, n)."""
        return quantise(x, self.levels).mT.long()

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self._inside(x, (self.levels * self.probs.gather(1, self.cells(x))).log().sum(0))


class _Shrunk(Reference):
    r"""A Gaussian in some coordinates, its covariance shrunk to its diagonal, :math:`(1-s)C + s\,\mathrm{diag}\,C`.

    (Schaefer and Strimmer, 2005, target D.) C scaled to unit diagonal and all its shrunk versions share their
    eigenvectors, so that one decomposition serves the search for s.

    Args:
        images: The data set.
        shrinkage: s, between 0 and 1; by default chosen on the validation images.
        seed: As of every :class:`Reference`.
    """

    def __init__(self, images: Images, shrinkage: float | None = None, *, seed: int = 0):
        super().__init__(images, seed=seed)
        self.mean, self._plain = self._moments(images)
        self._scale = self._plain.diagonal().sqrt()
        self._values, self._vectors = torch.linalg.eigh(self._plain / torch.outer(self._scale, self._scale))
        local, extra = self._local(self._validation)
        shrinkage = _best(lambda s: self._density(local, s) + extra, 1e-6, 1) if shrinkage is None else shrinkage
        self.shrinkage, self.setting = shrinkage, f"shrinkage {shrinkage:.2g}"

    def _moments(self, images: Images) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of the training images in these coordinates."""
        raise TypeError(f"{type(self).__name__} does not define its moments")

    def _local(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Coordinates in which all covariances are diagonal, and what the log density has besides."""
        return (x.double() - self.mean) / self._scale @ self._vectors, 0.0

    def _density(self, local: Tensor, shrinkage: float) -> Tensor:
        v = (1 - shrinkage) * self._values.clamp_min(0) + shrinkage
        return -0.5 * (local**2 / v + v.log() + math.log(2 * math.pi)).sum(1) - self._scale.log().sum()

    def log_prob(self, x: Tensor) -> Tensor:
        local, extra = self._local(x.flatten(1))
        return (self._density(local, self.shrinkage) + extra).to(x.dtype)

    @property
    def covariance(self) -> Tensor:
        """The shrunk covariance. Shape: (D, D)."""
        return torch.lerp(self._plain, self._plain.diagonal().diag(), self.shrinkage)


class Gaussian(_Shrunk):
    """One Gaussian with full covariance, shrunk; its moments are those under all dequantisation noise."""

    name = "Gaussian"

    def _moments(self, images: Images) -> tuple[Tensor, Tensor]:
        cells = (torch.arange(self.levels, dtype=torch.float64) + 0.5).expand(self.dim, -1) / self.levels
        return _moments(self.train, cells, torch.full_like(cells, 1 / (12 * self.levels**2)))

    def diffused(self, process: Process, shift: Tensor | float = 0.0, like: dict | None = None) -> GaussianScore:
        """Its exact Score on images (n, C, H, W), moved by ``shift``: -images.centre for a network of centred data."""
        mean = (self.mean.reshape(self.shape) + shift).to(**(like or {}))
        return GaussianScore(mean, self.covariance.to(mean.device), process)


class GaussianCopula(_Shrunk):
    r"""Independent pixels tied by a Gaussian: each becomes normal, :math:`z=\Phi^{-1}(F(x))`, and those correlate.

    .. math:: \log p(x) = \sum_d\log p_d(x_d) + \log N(z; m, S) - \log N(z; 0, I)

    with p_d and F the smoothed histograms (Liu et al., 2009). Given its level, z is normal between two bounds, so m
    and S are known under all dequantisation noise.
    """

    name = "Gaussian copula"

    def _moments(self, images: Images) -> tuple[Tensor, Tensor]:
        self.pixels = IndependentPixels(images)
        probs = self.pixels.probs
        self._below = (probs.cumsum(1) - probs).clamp_min(0)
        low, high = (_normal(below) for below in (self._below, self._below + probs))
        at_low, at_high = (torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) for z in (low, high))
        mean = (at_low - at_high) / probs
        return _moments(self.train, mean, 1 + (low * at_low - high * at_high) / probs - mean**2)

    def _local(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.pixels.cells(x)
        depth = x.double().mT * self.levels - cells
        z = _normal(self._below.gather(1, cells) + depth * self.pixels.probs.gather(1, cells)).mT
        flat = 0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
        return super()._local(z)[0], flat + self.pixels.log_prob(x)


class KernelDensity(Reference):
    r"""The training set diffused to a time: Gaussian kernels of bandwidth :math:`\sigma/\alpha` on the cells' middles.

    :math:`\log p(x) = \log p_t(\alpha x) + D\log\alpha` with :math:`p_t` of the optimal denoiser's law. Each training
    image is a centre, so its figure on the training split says how much is remembered and nothing else.

    Args:
        images: The data set.
        t: The time; by default chosen on the validation images.
        process: The process.
        seed: As of every :class:`Reference`.
    """

    name = "kernel density"

    def __init__(self, images: Images, t: float | None = None, *, process: Process | None = None, seed: int = 0):
        super().__init__(images, seed=seed)
        self.process = process or VP(0.0, 10.0)
        self._law = DiffusedData((self.train.flatten(1).double() + 0.5) / self.levels, self.process)
        end = 0.9 * self.process.T  # flow matching has no signal left at its end
        some = thinned(self._validation, 256)  # each image is compared with all others a dozen times
        self.t = _best(lambda s: self._density(some, s), 1e-3 * end, end) if t is None else t
        bandwidth = float(self.process.sigma(self.t) / self.process.alpha(self.t))
        self.setting = f"t = {self.t:.2g}, bandwidth {bandwidth:.2g}"

    def _density(self, x: Tensor, t: float) -> Tensor:
        alpha = float(self.process.alpha(t))
        return self._law.log_prob(alpha * x.double(), t) + self.dim * math.log(alpha)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._density(x.flatten(1), self.t).to(x.dtype)


def _moments(train: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by n, of values whose moments given a pixel's level are (D, K)."""
    total, square, spread = 0.0, 0.0, 0.0
    for piece in train.flatten(1).split(_PIECE):
        cells = piece.mT.long()
        rows = mean.gather(1, cells)
        total, square = total + rows.sum(1), square + rows @ rows.mT
        spread = spread + variance.gather(1, cells).sum(1)
    total, square, spread = total / len(train), square / len(train), spread / len(train)
    return total, square - torch.outer(total, total) + spread.diag()


def _normal(level: Tensor) -> Tensor:
    """Quantiles of the normal law, never infinite for levels that rounding took to an end."""
    return torch.special.ndtri(level.clamp(1e-16, 1 - 1e-16))


def _best(f: Callable[[float], Tensor], low: float, high: float) -> float:
    """The argument in [low, high] with the largest mean of f, by a bounded search on a logarithmic scale."""
    bounds = (math.log(low), math.log(high))
    found = minimize_scalar(
        lambda s: -float(f(math.exp(s)).mean()), bounds=bounds, method="bounded", options={"xatol": 0.02}
    )
    return math.exp(found.x)


REFERENCES: tuple[type[Reference], ...] = (Uniform, IndependentPixels, Gaussian, GaussianCopula, KernelDensity)


def references(images: Images, *, seed: int = 0, draws: int = 1, limit: int = 1500) -> list[dict]:
    """Bits per dimension of every reference on every split, with standard errors over images.

    Args:
        images: The data set.
        seed: Of the dequantisation noise, the same for all references.
        draws: Draws of that noise for each image, which are averaged first.
        limit: Of more images than that in a split, so many are taken at even distances.

    Returns:
        One row for each reference, as ``pandas.DataFrame`` takes them: "reference", "setting", and for each split its
        figure under the split's name and the standard error under "<split>_stderr".

    Example:
        >>> from psmlib.data.images import load
        >>> for row in references(load("digits")):
        ...     print(f"{row['reference']:<20} {row['test']:.2f} +- {row['test_stderr']:.2f}")
        uniform              4.09 +- 0.00
        independent pixels   2.43 +- 0.01
        Gaussian             2.93 +- 0.01
        Gaussian copula      2.15 +- 0.01
        kernel density       3.33 +- 0.02
    """
    rows = []
    for kind in REFERENCES:
        reference = kind(images, seed=seed)
        row = {"reference": reference.name, "setting": reference.setting}
        for split in SPLITS:
            x = thinned(getattr(images, split), limit)
            bits = reference.bits_per_dim(x, torch.Generator().manual_seed(seed + 1), draws)
            row[split], row[f"{split}_stderr"] = standard_errors.mean(bits)
        rows.append(row)
    return rows


def thinned(x: Tensor, limit: int) -> Tensor:
    """At most ``limit`` rows at even distances."""
    return x if len(x) <= limit else x[torch.linspace(0, len(x) - 1, limit).long()]
