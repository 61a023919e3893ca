r"""Simple closed-form densities of images, as reference values for a model's bits per dimension.

The entropy of images is unknown, so a single value of bits per dimension says little. Each density here is fitted to
the training split (with mirrored images, if training uses them), has at most one hyperparameter, chosen on the
validation split, and is exactly normalised: a network with more bits per dimension has not yet learnt a histogram or a
covariance matrix.
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

_BATCH = 4096  # images converted to float64 at a time


class Reference:
    """A density of dequantised images on [0, 1). A subclass is fitted by its constructor, and defines log_prob.

    Args:
        images: The data set.
        seed: Seed of the dequantisation noise of the validation images, on which a hyperparameter may be chosen.

    Attributes:
        name: Name in tables.
        setting: The chosen hyperparameter, as text.
    """

    name, setting = "", ""

    def __init__(self, images: Images, *, seed: int = 0):
        self.levels, self.shape, self.dim, self.train = images.levels, images.shape, images.dim, training_images(images)
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


def training_images(images: Images) -> Tensor:
    """Training images as integer levels, with their mirror images if training uses them. Shape: (n, C, H, W)."""
    return torch.cat([images.train, images.train.flip(-1)]) if images.flip else images.train


class Uniform(Reference):
    """The uniform density on the unit cube: log2 K bits per dimension."""

    name = "uniform"

    def log_prob(self, x: Tensor) -> Tensor:
        return self._inside(x.flatten(1), torch.zeros(len(x)))


class IndependentPixels(Reference):
    """Independent pixels with smoothed histograms of their levels, constant within the cell of a level.

    Args:
        images: The data set.
        smoothing: Number added to each count; by default chosen on the validation images.
        seed: As in :class:`Reference`.
    """

    name = "independent pixels"

    def __init__(self, images: Images, smoothing: float | None = None, *, seed: int = 0):
        super().__init__(images, seed=seed)
        self._counts = torch.zeros(self.dim, self.levels, dtype=torch.float64)
        for piece in self.train.flatten(1).split(_BATCH):
            self._counts.scatter_add_(1, piece.mT.long(), torch.ones(piece.mT.shape, dtype=torch.float64))
        if smoothing is None:
            smoothing = _argmax(lambda a: self._smooth(a).log_prob(self._validation), 1e-3, 1e3)
        self._smooth(smoothing)

    def _smooth(self, smoothing: float) -> IndependentPixels:
        raised, self.smoothing = self._counts + smoothing, smoothing
        self.probs, self.setting = raised / raised.sum(1, keepdim=True), f"{smoothing:.2g} added to each count"
        return self

    def cells(self, x: Tensor) -> Tensor:
        """Levels of the cells that contain points (n, D), one row for each pixel. Shape: (D, n)."""
        return quantise(x, self.levels).mT.long()

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self._inside(x, (self.levels * self.probs.gather(1, self.cells(x))).log().sum(0))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Levels of images whose every pixel is that of some training image, not smoothed. Shape: (n, C, H, W)."""
        train = self.train.flatten(1)
        pick = torch.randint(len(train), (n, self.dim), generator=generator)
        return train.gather(0, pick).reshape(n, *self.shape)


class _ShrunkGaussian(Reference):
    r"""A Gaussian in some coordinates with shrunk covariance, :math:`(1-s)C + s\,\mathrm{diag}\,C`.

    (Schaefer and Strimmer, 2005, target D.) The correlation matrix has the same eigenvectors for all s, so that one
    eigendecomposition suffices for the search for s. A subclass defines ``_moments(images)``: mean (D,) and covariance
    (D, D) of the training images in its coordinates.

    Args:
        images: The data set.
        shrinkage: s, between 0 and 1; by default chosen on the validation images.
        seed: As in :class:`Reference`.
    """

    def __init__(self, images: Images, shrinkage: float | None = None, *, seed: int = 0):
        super().__init__(images, seed=seed)
        self.mean, self._plain = self._moments(images)
        self._scale = self._plain.diagonal().sqrt()
        self._values, self._vectors = torch.linalg.eigh(self._plain / torch.outer(self._scale, self._scale))
        z, extra = self._coordinates(self._validation)
        shrinkage = _argmax(lambda s: self._density(z, s) + extra, 1e-6, 1) if shrinkage is None else shrinkage
        self.shrinkage, self.setting = shrinkage, f"shrinkage {shrinkage:.2g}"

    def _coordinates(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Coordinates in which all covariances are diagonal, and a term to add to the log density."""
        return (x.double() - self.mean) / self._scale @ self._vectors, 0.0

    def _density(self, z: Tensor, shrinkage: float) -> Tensor:
        v = (1 - shrinkage) * self._values.clamp_min(0) + shrinkage
        return -0.5 * (z**2 / v + v.log() + math.log(2 * math.pi)).sum(1) - self._scale.log().sum()

    def log_prob(self, x: Tensor) -> Tensor:
        z, extra = self._coordinates(x.flatten(1))
        return (self._density(z, self.shrinkage) + extra).to(x.dtype)

    @property
    def covariance(self) -> Tensor:
        """The shrunk covariance. Shape: (D, D)."""
        return torch.lerp(self._plain, self._plain.diagonal().diag(), self.shrinkage)


class Gaussian(_ShrunkGaussian):
    """A Gaussian with full, shrunk covariance; its moments are averaged exactly over the dequantisation noise."""

    name = "Gaussian"

    def _moments(self, images: Images) -> tuple[Tensor, Tensor]:
        cells = (torch.arange(self.levels, dtype=torch.float64) + 0.5).expand(self.dim, -1) / self.levels
        return _moments(self.train, cells, torch.full_like(cells, 1 / (12 * self.levels**2)))

    def diffused(self, process: Process, shift: Tensor | float = 0.0) -> GaussianScore:
        """Its exact Score on images (n, C, H, W) shifted by ``shift``, -images.centre for centred data."""
        return GaussianScore(self.mean.reshape(self.shape) + shift, self.covariance, process)


class GaussianCopula(_ShrunkGaussian):
    r"""A Gaussian copula of the pixels' histograms: each pixel becomes normal, :math:`z=\Phi^{-1}(F(x))`.

    .. math:: \log p(x) = \sum_d\log p_d(x_d) + \log N(z; m, S) - \log N(z; 0, I)

    with p_d and F the smoothed histograms (Liu et al., 2009). Given its level, z is a truncated normal variable, and so
    m and S are averaged exactly over the dequantisation noise.
    """

    name = "Gaussian copula"

    def _moments(self, images: Images) -> tuple[Tensor, Tensor]:
        self.pixels = IndependentPixels(images)
        probs = self.pixels.probs
        self._below = (probs.cumsum(1) - probs).clamp_min(0)
        low, high = (_normal_quantile(below) for below in (self._below, self._below + probs))
        at_low, at_high = (torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) for z in (low, high))
        mean = (at_low - at_high) / probs
        return _moments(self.train, mean, 1 + (low * at_low - high * at_high) / probs - mean**2)

    def _coordinates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.pixels.cells(x)
        within = x.double().mT * self.levels - cells
        z = _normal_quantile(self._below.gather(1, cells) + within * self.pixels.probs.gather(1, cells)).mT
        flat = 0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
        return super()._coordinates(z)[0], flat + self.pixels.log_prob(x)


class KernelDensity(Reference):
    r"""The training set diffused to a time: Gaussian kernels of bandwidth :math:`\sigma/\alpha` at the cell centres.

    :math:`\log p(x) = \log p_t(\alpha x) + D\log\alpha` with :math:`p_t` of the optimal denoiser's law. Each training
    image is the centre of a kernel, so that the value on the training split measures memorisation only.

    Args:
        images: The data set.
        t: The time; by default chosen on the validation images.
        process: The process.
        seed: As in :class:`Reference`.
    """

    name = "kernel density"

    def __init__(self, images: Images, t: float | None = None, *, process: Process | None = None, seed: int = 0):
        super().__init__(images, seed=seed)
        self.process = process or VP(0.0, 10.0)
        self._law = DiffusedData((self.train.flatten(1).double() + 0.5) / self.levels, self.process)
        end = 0.9 * self.process.T  # flow matching has no signal left at T
        some = subsample(self._validation, 256)  # each is compared with all training images a dozen times
        self.t = _argmax(lambda s: self._density(some, s), 1e-3 * end, end) if t is None else t
        bandwidth = float(self.process.sigma(self.t) / self.process.alpha(self.t))
        self.setting = f"t = {self.t:.2g}, bandwidth {bandwidth:.2g}"

    def _density(self, x: Tensor, t: float) -> Tensor:
        alpha = float(self.process.alpha(t))
        return self._law.log_prob(alpha * x.double(), t) + self.dim * math.log(alpha)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._density(x.flatten(1), self.t).to(x.dtype)


def _moments(train: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by n, of variables with given moments at each level, (D, K)."""
    total, square, spread = 0.0, 0.0, 0.0
    for piece in train.flatten(1).split(_BATCH):
        cells = piece.mT.long()
        rows = mean.gather(1, cells)
        total, square = total + rows.sum(1), square + rows @ rows.mT
        spread = spread + variance.gather(1, cells).sum(1)
    total, square, spread = total / len(train), square / len(train), spread / len(train)
    return total, square - torch.outer(total, total) + spread.diag()


def _normal_quantile(level: Tensor) -> Tensor:
    """Quantiles of the standard normal law; finite also for levels rounded to 0 or 1."""
    return torch.special.ndtri(level.clamp(1e-16, 1 - 1e-16))


def _argmax(f: Callable[[float], Tensor], low: float, high: float) -> float:
    """The argument in [low, high] with the largest mean of f, by a bounded search on a logarithmic scale."""
    settings = dict(bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 0.02})
    return math.exp(minimize_scalar(lambda s: -float(f(math.exp(s)).mean()), **settings).x)


REFERENCES: tuple[type[Reference], ...] = (Uniform, IndependentPixels, Gaussian, GaussianCopula, KernelDensity)


def references(images: Images, *, seed: int = 0, draws: int = 1, limit: int = 1500) -> list[dict]:
    """Bits per dimension of every reference on every split, with standard errors over images.

    Args:
        images: The data set.
        seed: Seed of the dequantisation noise, the same for all references.
        draws: Draws of that noise, over which each image is averaged.
        limit: Most images of a split; from a larger split that many are taken at even distances.

    Returns:
        One row for each reference, as for ``pandas.DataFrame``: "reference", "setting", and for each split its value
        under the split's name and the standard error under "<split>_stderr".

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
            x = subsample(getattr(images, split), limit)
            bits = reference.bits_per_dim(x, torch.Generator().manual_seed(seed + 1), draws)
            row[split], row[f"{split}_stderr"] = standard_errors.mean(bits)
        rows.append(row)
    return rows


def subsample(x: Tensor, limit: int) -> Tensor:
    """At most ``limit`` rows, at even distances."""
    return x if len(x) <= limit else x[torch.linspace(0, len(x) - 1, limit).long()]
