r"""Whether samples are copies: nearest training images, and what the optimal denoiser remembers along the way.

Images are compared as whole levels, each divided by their number K: samples are quantised first
(``images.quantise``), so that dequantisation noise plays no part and a copy has distance 0. Test images go through
the same, and say what is to be expected of images that nobody copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from psmlib.data.images import Images
from psmlib.evaluation.reference_densities import seen
from psmlib.exact.dequantised import DequantisedData
from psmlib.exact.finite_set import DiffusedData
from psmlib.sampling.state import State
from psmlib.standard_errors import average, mean, proportion

_NUMBERS = 2**22  # of a block of distances


def nearest(x_levels: Tensor, data: Tensor, levels: int, k: int = 2) -> tuple[Tensor, Tensor]:
    """The k nearest images in a set, by the Euclidean distance of pixels on [0, 1).

    Squares of whole numbers are added up exactly, so that equal images are at distance 0.

    Args:
        x_levels: Images, whole levels. Shape: (n, C, H, W).
        data: The set, likewise. Shape: (N, C, H, W).
        levels: Number of grey levels, K.
        k: How many.

    Returns:
        Distances, ascending, and indices into ``data``. Shapes: (n, k).

    Raises:
        ValueError: for images that are not whole levels, another shape, or fewer than k images in the set.

    Example:
        >>> data = torch.tensor([0, 3, 9], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> [found.tolist() for found in nearest(data[1:2], data, levels=10)]
        [[[0.0, 0.3]], [[1, 0]]]
    """
    if x_levels.is_floating_point() or data.is_floating_point() or x_levels.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"nearest compares whole levels of one shape, got {x_levels.dtype} {tuple(x_levels.shape)} and {data.dtype}"
            f" {tuple(data.shape)}: quantise the samples with images.quantise"
        )
    if not 1 <= k <= len(data):
        raise ValueError(f"there are {len(data)} images to be near to: ask for 1 to {len(data)}, not {k}")
    y = data.flatten(1).double()
    norms, found = y.square().sum(1), []
    for part in x_levels.to(y.device).split(max(1, _NUMBERS // len(y))):
        x = part.flatten(1).double()  # in float64 sums of whole numbers are exact up to 2^53
        square = x.square().sum(1, keepdim=True) - 2 * x @ y.mT + norms
        found.append(square.topk(k, dim=1, largest=False))
    return torch.cat([f.values for f in found]).sqrt() / levels, torch.cat([f.indices for f in found])


@dataclass(frozen=True)
class Nearness:
    """How near some images are to the training images.

    Attributes:
        n: Number of images.
        distance: Mean distance to the nearest training image.
        distance_stderr: Over images.
        ratio: Median of the distance to the nearest over that to the second nearest, distinct training image.
        copies: Share of images with a ratio below the limit.
        copies_stderr: Binomial; it is 0 when none is, or all are.
        copies_low: Lower end of the exact 95 % interval (Clopper and Pearson).
        copies_high: Upper end.
        exact: Share of images that equal a training image in every pixel.
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
    """Samples beside test images.

    Attributes:
        samples: Of the samples.
        test: Of the test images.
        closer: Probability that a sample is nearer to its nearest training image than a test image to its own, ties
            counting half: 1/2 for samples from the data's law, 1 for copies (Meehan et al., 2020).
        closer_stderr: Over samples and test images.
        nearest_index: The nearest training image of each sample, into ``seen(images)``. Shape: (n,).
        distances: Distance of each sample to it. Shape: (n,).
        ratios: Nearest over second nearest. Shape: (n,).
    """

    samples: Nearness
    test: Nearness
    closer: float
    closer_stderr: float
    nearest_index: Tensor
    distances: Tensor
    ratios: Tensor


def memorisation(x_levels: Tensor, images: Images, *, limit: float = 1 / 3) -> Memorisation:
    """Distances of samples to the training images, beside those of the test images.

    A sample counts as a copy when its nearest training image is less than ``limit`` times as far as the second
    nearest (Yoon et al., 2023). Training images that occur twice are looked at once, or no copy of them would be
    found; where they merely overlap, as the crops of photographs do, the rule still misses copies, and ``closer``
    and the distances tell more. Mirror images count as training images where training may draw them.

    Args:
        x_levels: Samples as whole levels, ``images.quantise(x)``. Shape: (n, C, H, W).
        images: The data set.
        limit: Of the ratio.

    Raises:
        ValueError: for samples that are not whole levels, or fewer than two of them.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> found = memorisation(digits.train[:50], digits)
        >>> found.samples.copies, found.samples.distance, found.test.copies
        (1.0, 0.0, 0.0)
    """
    if len(x_levels) < 2:
        raise ValueError(f"memorisation needs two samples or more for its standard errors, got {len(x_levels)}")
    whole = seen(images)
    data, where = torch.unique(whole, dim=0, return_inverse=True)
    first = torch.full((len(data),), len(whole)).scatter_reduce_(0, where, torch.arange(len(whole)), "amin")
    found = {}
    for name, x in (("samples", x_levels), ("test", images.test)):
        distance, index = nearest(x.cpu(), data, images.levels)
        ratio = distance[:, 0] / distance[:, 1]  # the second is positive, as no two are the same
        found[name] = distance[:, 0], ratio, first[index[:, 0]]
    (near, ratios, index), (usual, _, _) = found["samples"], found["test"]
    above = usual[None, :] - near[:, None]
    wins = (above > 0).double() + 0.5 * (above == 0)
    nearness = [_nearness(*found[name][:2], limit) for name in ("samples", "test")]
    return Memorisation(*nearness, *average(wins), index, near, ratios)


def _nearness(distance: Tensor, ratio: Tensor, limit: float) -> Nearness:
    n, copies = len(distance), ratio < limit
    interval = binomtest(int(copies.sum()), n).proportion_ci()
    return Nearness(
        n, *mean(distance), float(ratio.median()), *proportion(copies), interval.low, interval.high,
        float((distance == 0).double().mean()),
    )  # fmt: skip


@dataclass(frozen=True)
class TopWeight:
    """The largest posterior probability that the optimal denoiser gives to one training image.

    Attributes:
        t: The time.
        mean: Over points.
        stderr: Over points.
        decided: Share of points that belong to one image with more than 1/2.
        decided_stderr: Binomial.
        own: Share of training images that are their own likeliest origin, or None where there is no own image.
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
    r"""The top weight of the optimal denoiser over time, at :math:`x_t=\alpha x_0+\sigma\varepsilon`.

    Of training images it is the probability that the likeliest image is their own. Test images, and samples that are no
    copies, are decided about up to earlier times. One and the same noise serves all times and, with one seed, all sets.

    Args:
        law: The optimal denoiser of the training images.
        x0: Training images, test images, or samples, in the coordinates of ``law``. Shape: (n, *shape).
        times: The times.
        own: For training images, their indices in the law's data. Shape: (n,).
        seed: Of the noise.

    Returns:
        One :class:`TopWeight` for each time.

    Example:
        >>> from psmlib.process import VP
        >>> two = torch.tensor([[-1.], [1.]], dtype=torch.float64)
        >>> [round(row.mean, 2) for row in top_weights(DiffusedData(two, VP(0., 10.)), two, [.1, 2.])]
        [1.0, 0.5]
    """
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x0 = x0.to(**law.tensor_options)
    return [_top(law, law.process.perturb(x0, t, eps.to(x0)), float(t), own) for t in times]


def top_weights_along(law: DiffusedData | DequantisedData, states: Iterable[State]) -> list[TopWeight]:
    """The same at the states of a sampler, those without noise left out."""
    return [
        _top(law, s.x.to(**law.tensor_options), float(s.t), None) for s in states if float(law.process.sigma(s.t)) > 0
    ]


def _top(law: DiffusedData | DequantisedData, x: Tensor, t: float, own: Tensor | None) -> TopWeight:
    weight, index = (found[:, 0] for found in law.top_weights(x, t, 1))
    right = None if own is None else float((index.cpu() == own.cpu()).double().mean())
    return TopWeight(t, *mean(weight), *proportion(weight > 0.5), right)
