"""Means, proportions, ratios and rank correlations with their standard errors.

Independent figures, such as those of several seeds, have an error from their spread. Tables of seeds by points have one
from both. An error that does not exist, of a single figure, is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mean(values: Sequence[float] | Tensor) -> tuple[float, float | None]:
    """Mean of independent figures, such as those of seeds, with its standard error.

    Args:
        values: Shape: (n,).

    Example:
        >>> mean([1., 3.]), mean([2.])
        ((2.0, 1.0), (2.0, None))
    """
    value, error = mean_curve(values)
    return float(value), None if error is None else float(error)


def mean_curve(curves: Sequence | Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean of independent curves, such as those of seeds, with its standard error at each of their points.

    Args:
        curves: Shape: (n, ...).

    Returns:
        Two tensors of float64. Shape: (...).

    Example:
        >>> mean_curve([[1., 5.], [3., 5.]])
        (tensor([2., 5.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))
    """
    each = torch.as_tensor(curves, dtype=torch.float64)
    return each.mean(0), each.std(0) / len(each) ** 0.5 if len(each) > 1 else None


def proportion(hits: Tensor) -> tuple[float, float]:
    """Proportion of independent points for which something is true, with its binomial standard error.

    Args:
        hits: Whether it is true of each point. Shape: (n,).

    Example:
        >>> proportion(torch.tensor([True, False]))[0]
        0.5
    """
    value = float(hits.double().mean())
    return value, (value * (1 - value) / len(hits)) ** 0.5


def average(table: Tensor) -> tuple[float, float]:
    r"""Mean of a table whose rows and columns are both drawn at random, with its standard error.

    .. math:: \mathrm{stderr}^2 = \frac{\mathrm{Var}_j\,\bar x_{\cdot j}}{n} + \frac{\mathrm{Var}_i\,\bar x_{i\cdot}}{m}

    (DeLong et al., 1988, for a table of comparisons). What rows and columns make together is in both terms, so that the
    error is too large rather than too small.

    Args:
        table: Such as bits per dimension of each seed at each image. One row stands for a method without seeds, and
            then the error is that of the columns alone. Shape: (m, n).

    Raises:
        ValueError: when there are not two columns or more.

    Example:
        >>> average(torch.tensor([[1., 2., 3.]]))[0]
        2.0
    """
    if table.dim() != 2 or table.shape[1] < 2:
        raise ValueError(f"an average needs a table of shape (seeds, n), n at least 2, got {tuple(table.shape)}")
    variance = float(table.mean(0).var()) / table.shape[1]
    if len(table) > 1:
        variance += float(table.mean(1).var()) / len(table)
    return float(table.mean()), math.sqrt(variance)


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The :func:`average` of a - b, paired over points and seeds.

    Args:
        a: Figures of one method. Shape: (seeds, n), or (1, n) for one that has no seed.
        b: Of another at the same points. Shape: likewise.

    Raises:
        ValueError: when there are not two points or more for each seed.

    Example:
        >>> difference(torch.tensor([[1., 2., 3.]]), torch.tensor([[1., 1., 1.]]))[0]
        1.0
    """
    return average(a - b)


def rms(values: Tensor) -> tuple[float, float]:
    """Root mean square of independent points per axis, with its standard error.

    Args:
        values: Shape: (n, d).

    Example:
        >>> rms(torch.tensor([[3., 4.], [4., 3.]]))
        (3.5355339059327378, 0.0)
    """
    square, error = mean(values.double().square().flatten(1).mean(1))
    root = math.sqrt(square)
    return root, error and error / (2 * root)


def rms_ratio(top: Tensor, bottom: Tensor) -> tuple[float, float]:
    """Root mean square of one quantity over that of another at the same points, with its standard error.

    The error is that of a ratio of means to first order, with the covariance of the two.

    Args:
        top: Shape: (n, d).
        bottom: Shape: (n, d).

    Example:
        >>> a = torch.tensor([[3., 4.], [4., 3.]])
        >>> rms_ratio(2 * a, a)
        (2.0, 0.0)
    """
    a, b = (v.double().square().flatten(1).mean(1) for v in (top, bottom))
    ratio = float(a.mean() / b.mean())
    error = float((a - ratio * b).std() / len(a) ** 0.5 / b.mean())
    return math.sqrt(ratio), error / (2 * math.sqrt(ratio)) if ratio else 0.0


def rank_correlation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Spearman's rank correlation of two figures over runs, with its standard error by bootstrap over the runs.

    Args:
        a: One figure of each run.
        b: The other.
        seed: Of the bootstrap.

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
    pick = [i for i in pick if np.ptp(a[i]) and np.ptp(b[i])]  # one run drawn every time has no ranks
    drawn = [spearman(a[i], b[i]) for i in pick]
    return spearman(a, b), float(np.std(drawn))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation alone."""
    from scipy import stats  # seconds to import, and everything in psmlib imports this module

    return float(stats.spearmanr(a, b).statistic)
