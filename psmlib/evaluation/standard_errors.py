"""Figures with their standard errors, plain averages and others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent figures, such as those of seeds, with its standard error; of a single one there is none.

    Example:
        >>> mean([1., 3.]), mean([2.])
        ((2.0, 1.0), (2.0, None))
    """
    each = torch.as_tensor(values, dtype=torch.float64)
    return float(each.mean()), float(each.std() / len(each) ** 0.5) if len(each) > 1 else None


def rms(values: Tensor) -> tuple[float, float]:
    """Root mean square of independent points per axis, with its standard error. Shape: (n, d) -> two numbers.

    Example:
        >>> rms(torch.tensor([[3., 4.], [4., 3.]]))
        (3.5355339059327378, 0.0)
    """
    each = values.double().square().flatten(1).mean(1)
    root, error = float(each.mean().sqrt()), float(each.std() / len(each) ** 0.5)
    return root, error / (2 * root) if root else 0.0


def rms_ratio(top: Tensor, bottom: Tensor) -> tuple[float, float]:
    """Root mean square of one quantity over that of another at the same points, with its standard error.

    The error is that of a ratio of means, to first order; the two go up and down together, which it respects.
    Shapes: (n, d) each.
    """
    a, b = (v.double().square().flatten(1).mean(1) for v in (top, bottom))
    ratio = float(a.mean() / b.mean())
    error = float((a - ratio * b).std() / len(a) ** 0.5 / b.mean())
    return math.sqrt(ratio), error / (2 * math.sqrt(ratio)) if ratio else 0.0


def rank_correlation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Spearman's rank correlation of two figures over runs, with its standard error by bootstrap over the runs.

    Raises:
        ValueError: for fewer than four runs.

    Example:
        >>> rank_correlation([1., 2., 3., 4.], [10., 20., 25., 40.])[0]
        1.0
    """
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"a rank correlation needs four runs or more in two equal lists, got {len(a)} and {len(b)}")
    a, b = np.asarray(a, float), np.asarray(b, float)
    pick = np.random.default_rng(seed).integers(len(a), size=(500, len(a)))
    pick = [i for i in pick if np.ptp(a[i]) and np.ptp(b[i])]  # one and the same run throughout has no ranks
    drawn = [spearman(a[i], b[i]) for i in pick]
    return spearman(a, b), float(np.std(drawn))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation alone."""
    return float(stats.spearmanr(a, b).statistic)


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean of a - b with its standard error, paired over images and, if there are several, seeds.

    The variances of the mean from the images and from the seeds are added; what the two make together is in both, so
    that the error is too large rather than too small.

    Args:
        a: Bits of one method. Shape: (seeds, n), or (1, n) for one that has no seed.
        b: Of another, for the same images. Shape: likewise.

    Raises:
        ValueError: when there are not two images or more for each seed.

    Example:
        >>> difference(torch.tensor([[1., 2., 3.]]), torch.tensor([[1., 1., 1.]]))[0]
        1.0
    """
    gap = a - b
    if gap.dim() != 2 or gap.shape[1] < 2:
        raise ValueError(f"a difference needs bits of shape (seeds, n), n at least 2, got {tuple(a.shape)} of a")
    variance = float(gap.mean(0).var()) / gap.shape[1]
    if len(gap) > 1:
        variance += float(gap.mean(1).var()) / len(gap)
    return float(gap.mean()), math.sqrt(variance)


def average(bits: Tensor) -> tuple[float, float]:
    """Mean of bits with its standard error over images and seeds, as of a :func:`difference` from nothing.

    Args:
        bits: Of one method. Shape: (seeds, n), or (1, n).

    Raises:
        ValueError: when there are not two images or more for each seed.

    Example:
        >>> average(torch.tensor([[1., 2., 3.]]))[0]
        2.0
    """
    return difference(bits, torch.zeros_like(bits))
