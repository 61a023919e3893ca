r"""Timestep clustering by the optimal denoiser: Algorithm 1 of the Multistage paper (Section 4.2).

Let :math:`x_t = \alpha_t x_0 + \sigma_t\varepsilon` with the same data point and noise at all times. The similarity of
two times is the proportion of coordinates at which the predictions of the optimal denoiser differ by at most
:math:`\eta`, averaged over data points and noises:

.. math:: \mathcal S(t_a, t_b) = E\Bigl[\tfrac1n \#\{i:\; |\varepsilon^*_{t_a}(x_{t_a}) -
          \varepsilon^*_{t_b}(x_{t_b})|_i \le \eta\}\Bigr].

The paper compares predictions of the noise; as t goes to 0 the prediction tends to the noise itself. Its released code
compares other quantities. There are three readings:

* ``"paper"``: :math:`\varepsilon^*_t(x_t)` with :math:`\varepsilon^*_a(x_a)`, as printed;
* ``"same point"``: as printed, but at the noisy end with :math:`(x_t - \alpha_t\,\mathrm{mean})/\sigma_t` at the *same*
  :math:`x_t`, as in an early notebook of the authors; it is not defined for anchors between the two ends;
* ``"denoised"``: :math:`E[x_0\mid x_t]` with :math:`E[x_0\mid x_a]`, as in their later script.
"""

import torch
from torch import Tensor

from psmlib import standard_errors
from psmlib.machine.checks import check_choice
from psmlib.machine.streams import stream
from psmlib.process import expand
from psmlib.score import Score

READINGS = ("paper", "same point", "denoised")
RULES = ("first crossing", "as printed")
_ROWS = 4096


def similarity(
    score: Score, x0: Tensor, eps: Tensor, t: Tensor, anchor: float, *, eta: float, reading: str = "paper",
    mean: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Proportion of coordinates whose predictions agree between t and the anchor, for each draw.

    Args:
        score: The optimal denoiser of a data set, an exact density, or a trained network.
        x0: Data points. Shape: (K, *shape).
        eps: Standard normal noise. Shape: (K, *shape).
        t: Times above 0. Shape: (K,).
        anchor: The time to compare with; at 0 the limit is used.
        eta: Largest difference that counts as agreement, in units of the noise, or of the data for "denoised".
        reading: One of :data:`READINGS`.
        mean: Mean of the data, for "same point". Shape: (*shape).

    Returns:
        Proportions in [0, 1]. Shape: (K,).

    Raises:
        ValueError: for an unknown reading, a negative eta, times that are not above 0, and for "same point" without a
            mean or with an anchor between the ends.

    Example:
        >>> from psmlib.exact.finite_set import DiffusedData
        >>> from psmlib.process import VP
        >>> g = torch.Generator().manual_seed(0)
        >>> data = torch.rand(50, 8, generator=g, dtype=torch.float64)
        >>> best, eps = DiffusedData(data, VP()), torch.randn(50, 8, generator=g, dtype=torch.float64)
        >>> t = torch.linspace(.01, 1, 50, dtype=torch.float64)
        >>> found = similarity(best, data, eps, t, 0., eta=2 / 255)
        >>> float(found[:5].mean()) > float(found[20:30].mean())
        True
    """
    check_choice("reading", reading, READINGS, of="the similarity")
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}")
    if not bool((t > 0).all()):
        raise ValueError("similarities need times after 0, where there is noise: take t > 0")
    if reading == "same point" and anchor not in (0, score.process.T):
        fault = f'the reading "same point" is defined at the two ends of time alone, not {anchor:.3g}'
        raise ValueError(f"{fault}: use another reading, or at most three intervals")
    if reading == "same point" and anchor > 0 and mean is None:
        raise ValueError('the reading "same point" compares with the mean of the data: give mean=')
    parts = []
    for i in range(0, len(x0), _ROWS):
        rows = slice(i, i + _ROWS)
        a, b = _predictions(score, x0[rows], eps[rows], t[rows], anchor, reading, mean)
        parts.append(((a - b).abs() <= eta).flatten(1).double().mean(1))
    return torch.cat(parts) if parts else x0.new_zeros(0, dtype=torch.float64)


def _predictions(score, x0, eps, t, anchor, reading, mean) -> tuple[Tensor, Tensor]:
    """The compared predictions, at t and at the anchor. Shapes: (K, *shape)."""
    process = score.process
    x, predict = process.perturb(x0, t, eps), score.denoised if reading == "denoised" else score.eps
    if anchor == 0:
        return predict(x, t), x0 if reading == "denoised" else eps
    if reading == "same point":
        return predict(x, t), (x - expand(process.alpha(t), x) * mean) / expand(process.sigma(t), x)
    return predict(x, t), predict(process.perturb(x0, anchor, eps), anchor)


def running_mean(t: Tensor, share: Tensor, *, downwards: bool = False) -> tuple[Tensor, Tensor]:
    """Sorted times, and at each of them the mean similarity of all draws up to it.

    Args:
        t: Times. Shape: (K,).
        share: Similarities. Shape: (K,).
        downwards: Whether to sort from the largest time to the smallest.

    Example:
        >>> running_mean(torch.tensor([.2, .1]), torch.tensor([0., 1.]))
        (tensor([0.1000, 0.2000]), tensor([1.0000, 0.5000]))
    """
    order = t.argsort(descending=downwards)
    counts = torch.arange(1, len(t) + 1, device=t.device)
    return t[order], share[order].cumsum(0) / counts


def curve(t: Tensor, share: Tensor, bins: int, lo: float, hi: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean similarity by time: centres of equal bins, means and standard errors, without bins of fewer than two."""
    which, width, lines = ((t - lo) / (hi - lo) * bins).long().clamp(0, bins - 1), (hi - lo) / bins, []
    for i in range(bins):
        found = share[which == i]
        if len(found) > 1:
            lines.append((lo + (i + 0.5) * width, *standard_errors.mean(found)))
    return torch.tensor(lines, dtype=torch.float64).reshape(-1, 3).unbind(1)


def by_optimal_denoiser(
    *, score: Score, data, intervals: int = 3, threshold: float = 0.9, eta: float = 2 / 255, samples: int = 20_000,
    seed: int = 0, reading: str = "paper", rule: str = "first crossing",
) -> tuple[float, ...]:  # fmt: skip
    r"""Borders by Algorithm 1, for any number of intervals.

    The first interval ends at :math:`t_1`, up to which the mean similarity to t = 0 is at least the threshold (the
    paper's alpha); the last one starts likewise at :math:`t_2`, with the similarity to t = T. The rest is divided by
    the same rule between :math:`t_1` and :math:`t_2`; if one border remains, it is found from the left. The paper gives
    neither the threshold nor :math:`\eta` nor the number of draws; :math:`\eta = 2/255` is that of its released
    notebook, for data in [0, 1].

    Args:
        score: The optimal denoiser, :class:`psmlib.exact.finite_set.DiffusedData`, or any other Score.
        data: Source of x_0: a tensor of points, or an object with ``sample``.
        intervals: Number of intervals; three in the paper.
        threshold: Lowest mean similarity within an interval.
        eta: Largest difference that counts as agreement.
        samples: Draws (x_0, noise, t) for each pair of borders.
        seed: Seed of the draws.
        reading: See :mod:`psmlib.clustering.optimal_denoiser`.
        rule: "first crossing": an interval ends where the running mean first falls below the threshold; "as printed":
            at the largest (smallest) time at which it is at least the threshold, even if it was lower before.

    Raises:
        ValueError: when the two ends meet, all times or none are similar, or an argument is out of range.
    """
    check_choice("rule", rule, RULES, of="Algorithm 1")
    if not 0 < threshold <= 1 or samples < 1 or intervals < 2:
        needs = "0 < threshold <= 1, samples >= 1 and intervals >= 2"
        raise ValueError(f"Algorithm 1 needs {needs}, got {threshold}, {samples} and {intervals}")
    mean = data.mean(0, dtype=torch.float64) if isinstance(data, Tensor) else getattr(data, "mean", None)
    mean = None if mean is None else mean.to(**score.tensor_options)
    generator = stream(seed)

    def end_of_interval(x0: Tensor, eps: Tensor, t: Tensor, anchor: float, downwards: bool) -> float:
        """The other end of the interval that starts at the anchor."""
        share = similarity(score, x0, eps, t, anchor, eta=eta, reading=reading, mean=mean)
        times, level = running_mean(t, share, downwards=downwards)
        enough = level >= threshold
        if not bool(enough.any() if rule == "as printed" else enough[0]):
            raise ValueError(f"no time is like t = {anchor:.3g}: take a lower threshold, a larger eta or more samples")
        if rule == "as printed":
            return float(times[enough][-1])
        short = (~enough).nonzero()
        return float(times[int(short[0])] if len(short) else times[-1])  # the last time if it never falls so low

    def borders(count: int, lo: float, hi: float) -> tuple[float, ...]:
        """The inner borders between two ends."""
        x0, eps, t = draws(data, samples, lo, hi, generator, score.tensor_options)
        left, mend = end_of_interval(x0, eps, t, lo, False), "take a higher threshold or a smaller eta"
        if count == 1:
            if left >= float(t.max()):
                raise ValueError(f"times from {lo:.3g} to {hi:.3g} are alike throughout: {mend}")
            return (left,)
        right = end_of_interval(x0, eps, t, hi, True)
        if left >= right:
            raise ValueError(f"the two ends meet (t1 = {left:.3g} is not before t2 = {right:.3g}): {mend}")
        return (left, *(borders(count - 2, left, right) if count > 2 else ()), right)

    return borders(intervals - 1, 0.0, float(score.process.T))


def draws(data, samples: int, lo: float, hi: float, generator: torch.Generator, like: dict) -> tuple[Tensor, ...]:
    """Data points, noises and times uniform in (lo, hi]. Shapes: (samples, *shape) twice, (samples,)."""
    if isinstance(data, Tensor):
        x0 = data[torch.randint(len(data), (samples,), generator=generator).to(data.device)]
    else:
        x0 = data.sample(samples, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    t = hi - (hi - lo) * torch.rand(samples, generator=generator, dtype=torch.float64)
    return x0.to(**like), eps.to(**like), t.to(like["device"])
