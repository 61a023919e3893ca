"""Estimates with standard errors and their degrees of freedom: means, differences, proportions, ratios, ranks.

Independent figures, such as those of several seeds, have an error from their spread. Tables of seeds by points have one
from both. An error that does not exist, of a single figure, is None. Intervals are Student's t; where an error adds up
variances of several sources, its degrees of freedom are Satterthwaite's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Estimate(tuple):
    """A figure with its standard error: a pair that knows how well the error itself is known.

    Args:
        value: The figure.
        stderr: Its standard error; None if there is none.
        df: Degrees of freedom of the error; infinite for one that is known exactly.
        n: On how many points it was measured, if that is known.
        seeds: On how many independent repetitions.

    Example:
        >>> value, stderr = gain = Estimate(.5, .1, df=2)
        >>> [round(end, 2) for end in gain.interval()], round(gain.p_value(), 3)
        ([0.07, 0.93], 0.038)
    """

    def __new__(
        cls, value: float, stderr: float | None = None, df: float = math.inf, n: int | None = None,
        seeds: int | None = None,
    ):  # fmt: skip
        pair = super().__new__(cls, (value, stderr))
        pair.value, pair.stderr, pair.df, pair.n, pair.seeds = value, stderr, df, n, seeds
        return pair

    def __getnewargs__(self):  # for pickling between processes
        return self.value, self.stderr, self.df, self.n, self.seeds

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The ends of the confidence interval by Student's t; the whole line where there is no error."""
        from scipy.special import stdtrit  # half a second to import, and everything in psmlib imports this module

        reach = float(stdtrit(self.df, 0.5 + level / 2)) * self.stderr if self.stderr and self.df > 0 else self._unknown
        return self.value - reach, self.value + reach

    def p_value(self) -> float:
        """The two-sided p-value of "the true figure is zero" by Student's t; 1 where there is no error.

        Equal figures of a few repetitions, such as counts, do not have an error of 0: theirs is the sign test's.
        """
        from scipy.special import stdtr

        if self.stderr and self.df > 0:
            return float(2 * stdtr(self.df, -abs(self.value) / self.stderr))
        return 1.0 if self._unknown or not self.value else 2.0**-self.df

    @property
    def _unknown(self) -> float:
        """Half the width of the interval where no error can be computed: 0 if it is known to be 0."""
        return 0.0 if self.stderr == 0 else math.inf

    def minus(self, other) -> Estimate:
        """The difference from an independent estimate, from a pair, or from a number.

        Example:
            >>> round(Estimate(.6, .03, 4).minus(Estimate(.5, .04, 2)).df, 2)        # (9 + 16)^2 / (81/4 + 256/2)
            4.22
        """
        other = estimate(other)
        if None in (self.stderr, other.stderr):
            return Estimate(self.value - other.value, None, 0)
        stderr, df = _combined([(self.stderr**2, self.df), (other.stderr**2, other.df)])
        n, seeds = (
            min((k for k in pair if k), default=None) for pair in ((self.n, other.n), (self.seeds, other.seeds))
        )
        return Estimate(self.value - other.value, stderr, df, n, seeds)

    def within(self, margin: float) -> Estimate:
        """How far the figure is inside [-margin, margin], which makes "equal within the margin" a claim to be tested.

        Example:
            >>> round(Estimate(-.02, .01).within(.05).value, 6)
            0.03
        """
        return Estimate(margin - abs(self.value), self.stderr, self.df, self.n, self.seeds)


def estimate(figure) -> Estimate:
    """An :class:`Estimate` of a number, which is exact, of a pair (value, stderr), or of an object with both.

    Example:
        >>> estimate(2.), estimate((2., .1)).df
        ((2.0, 0.0), inf)
    """
    if isinstance(figure, Estimate):
        return figure
    if hasattr(figure, "value"):
        known = {name: getattr(figure, name) for name in ("df", "n", "seeds") if hasattr(figure, name)}
        return Estimate(float(figure.value), figure.stderr, **known)
    return Estimate(*figure) if isinstance(figure, tuple) else Estimate(float(figure), getattr(figure, "stderr", 0.0))


def _combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and Satterthwaite's degrees of freedom of a sum of (variance, degrees of freedom)."""
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / df for variance, df in parts if df)
    return math.sqrt(total), total**2 / spread if spread else math.inf


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several hypotheses are rejected so that a false rejection has at most this chance (Holm, 1979).

    Example:
        >>> holm([.01, .04, .03]), holm([.01, .02, .04])
        ([True, False, False], [True, True, True])
    """
    rejected, m = [False] * len(p_values), len(p_values)
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if p_values[i] > level / (m - rank):
            break
        rejected[i] = True
    return rejected


def mean(values: Sequence[float] | Tensor) -> Estimate:
    """Mean of independent figures, such as those of seeds, with its standard error.

    Args:
        values: Shape: (n,).

    Example:
        >>> mean([1., 3.]), mean([2.])
        ((2.0, 1.0), (2.0, None))
    """
    value, error = mean_curve(values)
    count = len(values)
    return Estimate(float(value), None if error is None else float(error), count - 1, seeds=count)


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


def mean_line(x: Sequence[float] | Tensor, curves: Sequence | Tensor) -> Tensor:
    """The :func:`mean_curve` as :meth:`psmlib.book.record.Record.curves` reads it: where, means, errors or NaN.

    Args:
        x: Where the curves were measured. Shape: (p,).
        curves: Shape: (n, p).

    Returns:
        Shape: (3, p).

    Example:
        >>> mean_line([0., 1.], [[1., 5.], [3., 5.]]).tolist()
        [[0.0, 1.0], [2.0, 5.0], [1.0, 0.0]]
    """
    value, error = mean_curve(curves)
    x = torch.as_tensor(x, dtype=value.dtype)
    return torch.stack([x, value, torch.full_like(value, torch.nan) if error is None else error])


def proportion(hits: Tensor) -> Estimate:
    """Proportion of independent points for which something is true, with its binomial standard error.

    Args:
        hits: Whether it is true of each point. Shape: (n,).

    Example:
        >>> proportion(torch.tensor([True, False]))[0]
        0.5
    """
    value, n = float(hits.double().mean()), len(hits)
    return Estimate(value, (value * (1 - value) / n) ** 0.5, n=n)


def average(table: Tensor) -> Estimate:
    r"""Mean of a table whose rows and columns are both drawn at random, with its standard error.

    .. math:: \mathrm{stderr}^2 = \frac{\mathrm{Var}_j\,\bar x_{\cdot j}}{n} + \frac{\mathrm{Var}_i\,\bar x_{i\cdot}}{m}

    (DeLong et al., 1988, for a table of comparisons). What rows and columns make together is in both terms, so that the
    error is too large rather than too small. The degrees of freedom are Satterthwaite's, of n - 1 and m - 1.

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
    m, n = table.shape
    parts = [(float(table.mean(0).var()) / n, n - 1)]
    if m > 1:
        parts.append((float(table.mean(1).var()) / m, m - 1))
    return Estimate(float(table.mean()), *_combined(parts), n=n, seeds=m)


def difference(a: Tensor, b: Tensor) -> Estimate:
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


def rms_average(squares: Tensor) -> Estimate:
    """Root of the :func:`average` of a table of squares, with the error to first order. Shape: (seeds, n).

    Example:
        >>> rms_average(torch.tensor([[3., 5.]]))
        (2.0, 0.25)
    """
    square = average(squares.double())
    root = math.sqrt(square.value)
    return Estimate(root, square.stderr / (2 * root) if root else 0.0, square.df, square.n, square.seeds)


def rms_difference(a: Tensor, b: Tensor) -> Estimate:
    """Root mean square of a less that of b, from squares paired over points and seeds; the error is to first order.

    Args:
        a: Squares of one method. Shape: (seeds, n).
        b: Of another at the same points. Shape: (seeds, n).

    Example:
        >>> rms_difference(torch.tensor([[4., 4.]]), torch.tensor([[1., 1.]]))
        (1.0, 0.0)
    """
    roots = [rms_average(squares).value for squares in (a, b)]
    gap = difference(a.double() / (2 * roots[0]), b.double() / (2 * roots[1]))
    return Estimate(roots[0] - roots[1], gap.stderr, gap.df, gap.n, gap.seeds)


def controlled(table: Tensor, control: Tensor, known: float) -> Estimate:
    r"""The :func:`average` of a table by a control variate, another figure of the same points whose mean is known.

    .. math:: \bar x - \beta(\bar c - \mu_c), \qquad \beta = \mathrm{Cov}(\bar x_{\cdot j}, c_j) / \mathrm{Var}\,c_j

    The regression coefficient makes the variance as small as it can be (Glasserman, 2003, section 4.1), where a plain
    difference, beta = 1, can make it larger: for log densities it does when a model is far from the truth.

    Args:
        table: Figures of each seed at each point. Shape: (m, n).
        control: The other figure at these points. Shape: (n,).
        known: Its mean.

    Raises:
        ValueError: when there are not three points or more.

    Example:
        >>> c = torch.tensor([1., 2., 4., 5.])
        >>> controlled(2 * c[None] + 1, c, 3.5)
        (8.0, 0.0)
    """
    if table.dim() != 2 or table.shape[1] < 3 or control.shape != table.shape[1:]:
        shapes = f"{tuple(table.shape)} and {tuple(control.shape)}"
        raise ValueError(f"a control variate needs shapes (seeds, n) and (n,), n at least 3, got {shapes}")
    table, control = table.double(), control.double()
    away = control - control.mean()
    spread = float(away.square().sum())
    slope = float((table.mean(0) * away).sum()) / spread if spread else 0.0
    return average(table - slope * (control - known))


def rms(values: Tensor) -> Estimate:
    """Root mean square of independent points per axis, with its standard error.

    Args:
        values: Shape: (n, d).

    Example:
        >>> rms(torch.tensor([[3., 4.], [4., 3.]]))
        (3.5355339059327378, 0.0)
    """
    square, error = mean(values.double().square().flatten(1).mean(1))
    root, n = math.sqrt(square), len(values)
    return Estimate(root, error and error / (2 * root), n - 1, n=n)


def rms_ratio(top: Tensor, bottom: Tensor) -> Estimate:
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
    return Estimate(math.sqrt(ratio), error / (2 * math.sqrt(ratio)) if ratio else 0.0, len(a) - 1, n=len(a))


def rank_correlation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Estimate:
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
    return Estimate(spearman(a, b), float(np.std(drawn)), len(a) - 2, seeds=len(a))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation alone."""
    from scipy import stats  # seconds to import, and everything in psmlib imports this module

    return float(stats.spearmanr(a, b).statistic)
