r"""Algorithm 1 of the Multistage paper (Section 4.2): cutting time where the optimal denoiser's task changes.

With one data point and one noise, :math:`x_t = \alpha_t x_0 + \sigma_t\varepsilon` at every time. The similarity of two
times is the share of coordinates at which the optimal denoisers' answers differ by no more than :math:`\eta`,
averaged over data points and noises:

.. math:: \mathcal S(t_a, t_b) = E\Bigl[\tfrac1n \#\{i:\; |\varepsilon^*_{t_a}(x_{t_a}) -
          \varepsilon^*_{t_b}(x_{t_b})|_i \le \eta\}\Bigr].

The paper compares noises; at t = 0 there is none left to tell, and the limit is the noise itself. Its released code
compares something else. Three readings are offered:

* ``"paper"``: :math:`\varepsilon^*_t(x_t)` with :math:`\varepsilon^*_a(x_a)`, as printed;
* ``"same point"``: as printed, but at the noisy end with :math:`(x_t - \alpha_t\,\mathrm{mean})/\sigma_t` at the *same*
  :math:`x_t`, as in an early notebook of the authors; it says nothing of anchors between the two ends;
* ``"denoised"``: :math:`E[x_0\mid x_t]` with :math:`E[x_0\mid x_a]`, as in their later script.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib import standard_errors
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
    """Share of coordinates that agree between t and the anchor, for each draw.

    Args:
        score: The optimal denoiser of a data set, an exact density, or a trained network.
        x0: Data points. Shape: (K, *shape).
        eps: Standard normal noise. Shape: (K, *shape).
        t: A time after 0 for each. Shape: (K,).
        anchor: The time to compare with; 0 stands for the limit.
        eta: Largest difference that counts as agreement: in units of the noise, or of the data for "denoised".
        reading: One of :data:`READINGS`.
        mean: Mean of the data, for "same point". Shape: (*shape).

    Returns:
        Shares in [0, 1]. Shape: (K,).

    Raises:
        ValueError: for an unknown reading, a threshold below 0, times that are not after 0, and for "same point"
            without a mean or with an anchor between the ends.

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
    if reading not in READINGS:
        raise ValueError(f"unknown reading {reading!r} of the similarity: use one of {', '.join(READINGS)}")
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}")
    if not bool((t > 0).all()):
        raise ValueError("similarities need times after 0, where the noise can be told: take t > 0")
    if reading == "same point" and anchor not in (0, score.process.T):
        raise ValueError(
            f'the reading "same point" knows the two ends of time alone, not {anchor:.3g}: use another reading, or at '
            "most three intervals"
        )
    if reading == "same point" and anchor > 0 and mean is None:
        raise ValueError('the reading "same point" compares with the mean of the data: give mean=')
    parts = []
    for i in range(0, len(x0), _ROWS):
        rows = slice(i, i + _ROWS)
        a, b = _answers(score, x0[rows], eps[rows], t[rows], anchor, reading, mean)
        parts.append(((a - b).abs() <= eta).flatten(1).double().mean(1))
    return torch.cat(parts) if parts else x0.new_zeros(0, dtype=torch.float64)


def _answers(score, x0, eps, t, anchor, reading, mean) -> tuple[Tensor, Tensor]:
    """What is said at t and what at the anchor. Shapes: (K, *shape)."""
    process = score.process
    x = process.perturb(x0, t, eps)
    if reading == "denoised":
        at_anchor = x0 if anchor == 0 else score.denoised(process.perturb(x0, anchor, eps), anchor)
        return score.denoised(x, t), at_anchor
    told = score.eps(x, t)
    if anchor == 0:
        return told, eps
    if reading == "same point":
        return told, (x - expand(process.alpha(t), x) * mean) / expand(process.sigma(t), x)
    return told, score.eps(process.perturb(x0, anchor, eps), anchor)


def running_mean(t: Tensor, share: Tensor, *, downwards: bool = False) -> tuple[Tensor, Tensor]:
    """Times in order, and the mean share of all draws from the end that is started at up to each of them.

    Args:
        t: Times. Shape: (K,).
        share: Shape: (K,).
        downwards: Whether to start at the largest time.

    Example:
        >>> running_mean(torch.tensor([.2, .1]), torch.tensor([0., 1.]))
        (tensor([0.1000, 0.2000]), tensor([1.0000, 0.5000]))
    """
    order = t.argsort(descending=downwards)
    counts = torch.arange(1, len(t) + 1, device=t.device)
    return t[order], share[order].cumsum(0) / counts


def curve(t: Tensor, share: Tensor, bins: int, lo: float, hi: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean share by time: centres of equal bins, means and standard errors; empty bins are left out."""
    which, width, lines = ((t - lo) / (hi - lo) * bins).long().clamp(0, bins - 1), (hi - lo) / bins, []
    for i in range(bins):
        found = share[which == i]
        if len(found) > 1:
            lines.append((lo + (i + 0.5) * width, *standard_errors.mean(found)))
    return torch.tensor(lines, dtype=torch.float64).reshape(-1, 3).unbind(1)


def by_optimal_denoiser(
    *, score: Score, data, intervals: int = 3, alpha: float = 0.9, eta: float = 2 / 255, samples: int = 20_000,
    seed: int = 0, reading: str = "paper", rule: str = "first crossing",
) -> tuple[float, ...]:  # fmt: skip
    r"""Algorithm 1, for any number of intervals.

    From the data's end an interval reaches to :math:`t_1`, as far as the mean similarity to its end is at least
    :math:`\alpha`; from the other end down to :math:`t_2` likewise. What lies between is cut by the same rule, with
    :math:`t_1` and :math:`t_2` for ends; an odd border out is found from the left. The paper prints neither
    :math:`\alpha` nor :math:`\eta` nor the number of draws K; :math:`\eta = 2/255` is that of its released notebook,
    for data in [0, 1].

    Args:
        score: The optimal denoiser, :class:`psmlib.exact.finite_set.DiffusedData`, or any other Score.
        data: Where x_0 comes from: a tensor of points, or an object with ``sample``.
        intervals: How many; three in the paper.
        alpha: The least mean similarity.
        eta: The largest difference that counts as agreement.
        samples: Draws (x_0, noise, t) for each pair of borders, K.
        seed: Of the draws.
        reading: See :mod:`psmlib.clustering.optimal_denoiser`.
        rule: "first crossing": an interval ends where the running mean first falls below alpha; "as printed": the
            largest (smallest) time at which it is at least alpha, whatever happened before.

    Raises:
        ValueError: when the two ends meet, all times are alike or none is, or an argument is out of range.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r} of Algorithm 1: use one of {', '.join(RULES)}")
    if not 0 < alpha <= 1 or samples < 1 or intervals < 2:
        raise ValueError(
            f"Algorithm 1 needs 0 < alpha <= 1, samples >= 1 and intervals >= 2, got {alpha}, {samples} and {intervals}"
        )
    mean = data.mean(0, dtype=torch.float64) if isinstance(data, Tensor) else getattr(data, "mean", None)
    mean = None if mean is None else mean.to(**score.tensor_options)
    settings = dict(
        score=score, data=data, alpha=alpha, eta=eta, samples=samples, reading=reading, rule=rule, mean=mean
    )
    return _cut(intervals - 1, 0.0, float(score.process.T), stream(seed), **settings)


def draws(data, samples: int, lo: float, hi: float, generator: torch.Generator, like: dict) -> tuple[Tensor, ...]:
    """Data points, noises and times uniform in (lo, hi]. Shapes: (samples, *shape) twice, (samples,)."""
    if isinstance(data, Tensor):
        x0 = data[torch.randint(len(data), (samples,), generator=generator).to(data.device)]
    else:
        x0 = data.sample(samples, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    t = hi - (hi - lo) * torch.rand(samples, generator=generator, dtype=torch.float64)
    return x0.to(**like), eps.to(**like), t.to(like["device"])


def _cut(count: int, lo: float, hi: float, generator: torch.Generator, **settings) -> tuple[float, ...]:
    """``count`` borders between two ends."""
    x0, eps, t = draws(settings["data"], settings["samples"], lo, hi, generator, settings["score"].tensor_options)
    left = _reach(x0, eps, t, lo, downwards=False, **settings)
    if count == 1:
        if left >= float(t.max()):
            raise ValueError(
                f"times from {lo:.3g} to {hi:.3g} are alike throughout: take a higher alpha or a smaller eta"
            )
        return (left,)
    right = _reach(x0, eps, t, hi, downwards=True, **settings)
    if left >= right:
        raise ValueError(
            f"the two ends meet (t1 = {left:.3g} is not before t2 = {right:.3g}): take a higher alpha or a smaller eta"
        )
    return (left, *(_cut(count - 2, left, right, generator, **settings) if count > 2 else ()), right)


def _reach(x0, eps, t, anchor, *, downwards, score, alpha, eta, reading, rule, mean, **_) -> float:
    """How far the interval that starts at the anchor goes."""
    share = similarity(score, x0, eps, t, anchor, eta=eta, reading=reading, mean=mean)
    times, level = running_mean(t, share, downwards=downwards)
    enough = level >= alpha
    if not bool(enough.any() if rule == "as printed" else enough[0]):
        raise ValueError(f"no time is like t = {anchor:.3g}: take a lower alpha, a larger eta or more samples")
    if rule == "as printed":
        return float(times[enough][-1])
    short = (~enough).nonzero()
    # the end of the times on this side, if the similarity never falls
    return float(times[int(short[0])]) if len(short) else float(times[-1])
