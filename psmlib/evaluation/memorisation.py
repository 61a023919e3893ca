r"""Memorisation: distances from samples to their nearest training images, and posteriors of the optimal denoiser.

Images are compared as integer grey levels divided by their number K: samples are quantised first (``images.quantise``),
so that dequantisation noise has no influence and a copy has distance 0. The same measures of the test images show what
to expect of images that are not copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from psmlib.data.images import Images
from psmlib.evaluation.reference_densities import training_images
from psmlib.exact.dequantised import DequantisedData
from psmlib.exact.finite_set import DiffusedData
from psmlib.standard_errors import average, mean, proportion

_BLOCK_SIZE = 2**22  # distances computed at a time


def nearest(x_levels: Tensor, data: Tensor, levels: int, k: int = 2) -> tuple[Tensor, Tensor]:
    """The k nearest images of a set, by the Euclidean distance of pixels scaled to [0, 1).

    Sums of squared integers are exact, so that equal images have distance 0.

    Args:
        x_levels: Images, integer grey levels. Shape: (n, C, H, W).
        data: The set, likewise. Shape: (N, C, H, W).
        levels: Number of grey levels, K.
        k: Number of neighbours.

    Returns:
        Distances, ascending, and indices into ``data``. Shapes: (n, k).

    Raises:
        ValueError: for images that are not integers or have another shape, or fewer than k images in the set.

    Example:
        >>> data = torch.tensor([0, 3, 9], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> [found.tolist() for found in nearest(data[1:2], data, levels=10)]
        [[[0.0, 0.3]], [[1, 0]]]
    """
    if x_levels.is_floating_point() or data.is_floating_point() or x_levels.shape[1:] != data.shape[1:]:
        got = " and ".join(f"{y.dtype} {tuple(y.shape)}" for y in (x_levels, data))
        raise ValueError(f"nearest compares whole levels of one shape, got {got}: use images.quantise on the samples")
    if not 1 <= k <= len(data):
        raise ValueError(f"there are {len(data)} images to be near to: ask for 1 to {len(data)}, not {k}")
    y = data.flatten(1).double()
    norms, found = y.square().sum(1), []
    for part in x_levels.to(y.device).split(max(1, _BLOCK_SIZE // len(y))):
        x = part.flatten(1).double()  # in float64 sums of integers are exact up to 2^53
        square = x.square().sum(1, keepdim=True) - 2 * x @ y.mT + norms
        found.append(square.topk(k, dim=1, largest=False))
    return torch.cat([f.values for f in found]).sqrt() / levels, torch.cat([f.indices for f in found])


@dataclass(frozen=True)
class Nearness:
    """Distances of some images to the training images, summarised.

    Attributes:
        n: Number of images.
        distance: Mean distance to the nearest training image.
        distance_stderr: Its standard error over images.
        ratio: Median of the distance to the nearest divided by that to the second nearest, distinct training image.
        copies: Proportion of images with a ratio below the limit.
        copies_stderr: Its binomial standard error, 0 if the proportion is 0 or 1.
        copies_low: Lower end of its exact 95 % confidence interval (Clopper and Pearson).
        copies_high: Upper end.
        exact: Proportion of images that equal a training image in every pixel.
    """

    n: int
    distance: float
    distance_stderr: float
    ratio: float
    copies: float
    copies_stderr: float
    copies_low: float
    copies_high: float
    exact: float


@dataclass(frozen=True)
class Memorisation:
    """Result of :func:`memorisation`.

    Attributes:
        samples: Summary of the samples.
        test: Summary of the test images.
        closer: Probability that a sample is nearer to its nearest training image than a test image to its own, ties
            counting half: 1/2 for samples from the data's law, 1 for copies (Meehan et al., 2020).
        closer_stderr: Its standard error over samples and test images.
        nearest_index: Index of each sample's nearest image in ``training_images(images)``. Shape: (n,).
        distances: Distance of each sample to its nearest training image. Shape: (n,).
        ratios: That distance divided by the distance to the second nearest. Shape: (n,).
    """

    samples: Nearness
    test: Nearness
    closer: float
    closer_stderr: float
    nearest_index: Tensor
    distances: Tensor
    ratios: Tensor


def memorisation(x_levels: Tensor, images: Images, *, limit: float = 1 / 3) -> Memorisation:
    """Distances of samples to the training images, compared with those of the test images.

    A sample counts as a copy when its nearest training image is less than ``limit`` times as far as the second
    nearest (Yoon et al., 2023). Duplicates among the training images are removed first, because the rule would miss
    their copies. It still misses copies of images that overlap, such as crops of one photograph; there ``closer`` and
    the distances are more informative. Mirror images count as training images if training draws them.

    Args:
        x_levels: Samples as integer grey levels, ``images.quantise(x)``. Shape: (n, C, H, W).
        images: The data set.
        limit: Largest ratio of a copy.

    Raises:
        ValueError: for samples that are not integers, or fewer than two of them.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> found = memorisation(digits.train[:50], digits)
        >>> found.samples.copies, found.samples.distance, found.test.copies
        (1.0, 0.0, 0.0)
    """
    if len(x_levels) < 2:
        raise ValueError(f"memorisation needs two samples or more for its standard errors, got {len(x_levels)}")
    whole = training_images(images)
    data, where = torch.unique(whole, dim=0, return_inverse=True)
    first = torch.full((len(data),), len(whole)).scatter_reduce_(0, where, torch.arange(len(whole)), "amin")
    found = {}
    for name, x in (("samples", x_levels), ("test", images.test)):
        distance, index = nearest(x.cpu(), data, images.levels)
        ratio = distance[:, 0] / distance[:, 1]  # the second is positive, because all images differ
        found[name] = distance[:, 0], ratio, first[index[:, 0]]
    (near, ratios, index), (usual, _, _) = found["samples"], found["test"]
    above = usual[None, :] - near[:, None]
    wins = (above > 0).double() + 0.5 * (above == 0)
    summaries = [_summary(*found[name][:2], limit) for name in ("samples", "test")]
    return Memorisation(*summaries, *average(wins), index, near, ratios)


def _summary(distance: Tensor, ratio: Tensor, limit: float) -> Nearness:
    n, copies = len(distance), ratio < limit
    interval = binomtest(int(copies.sum()), n).proportion_ci()
    return Nearness(
        n, *mean(distance), float(ratio.median()), *proportion(copies), interval.low, interval.high,
        float((distance == 0).double().mean()),
    )  # fmt: skip


@dataclass(frozen=True)
class TopWeight:
    """The largest posterior probability of a training image under the optimal denoiser, averaged over noisy points.

    Attributes:
        t: The time.
        mean: Mean of the largest probability over points.
        stderr: Its standard error over points.
        decided: Proportion of points with one image of probability above 1/2.
        decided_stderr: Its binomial standard error.
        own: Proportion of noisy training images whose most probable image is their own; None for other points.
    """

    t: float
    mean: float
    stderr: float
    decided: float
    decided_stderr: float
    own: float | None


def top_weights(
    law: DiffusedData | DequantisedData, x0: Tensor, times: Sequence[float], *, own: Tensor | None = None, seed: int = 0
) -> list[TopWeight]:
    r"""The largest posterior probability over time, at :math:`x_t=\alpha x_0+\sigma\varepsilon`.

    For training images it is the probability that the most probable image is their own. Test images, and samples that
    are not copies, are assigned to a single image only at smaller t. The noise is the same at all times and, with the
    same seed, for all sets.

    Args:
        law: The optimal denoiser of the training images.
        x0: Training images, test images, or samples, in the coordinates of ``law``. Shape: (n, *shape).
        times: The times.
        own: For training images, their indices in the law's data. Shape: (n,).
        seed: Seed of the noise.

    Returns:
        One :class:`TopWeight` for each time.

    Example:
        >>> from psmlib.process import VP
        >>> two = torch.tensor([[-1.], [1.]], dtype=torch.float64)
        >>> [round(row.mean, 2) for row in top_weights(DiffusedData(two, VP(0., 10.)), two, [.1, 2.])]
        [1.0, 0.5]
    """
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x0, rows = x0.to(**law.tensor_options), []
    for t in times:
        weight, index = (found[:, 0] for found in law.top_weights(law.process.perturb(x0, t, eps.to(x0)), float(t), 1))
        right = None if own is None else float((index.cpu() == own.cpu()).double().mean())
        rows.append(TopWeight(float(t), *mean(weight), *proportion(weight > 0.5), right))
    return rows
