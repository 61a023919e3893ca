r"""Algorithm 1 of the Multistage paper: cutting time where the optimal denoiser's task changes."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.nets.bank import stream
from psmlib.score import Score
from psmlib.similarity import running_mean, similarity

RULES = ("first crossing", "as printed")


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
        score: The optimal denoiser, :class:`psmlib.empirical.DiffusedData`, or any other Score.
        data: Where x_0 comes from: a tensor of points, or an object with ``sample``.
        intervals: How many; three in the paper.
        alpha: The least mean similarity.
        eta: The largest difference that counts as agreement.
        samples: Draws (x_0, noise, t) for each pair of borders, K.
        seed: Of the draws.
        reading: See :mod:`psmlib.similarity`.
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
    mean = None if mean is None else mean.to(**score.home)
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
    x0, eps, t = draws(settings["data"], settings["samples"], lo, hi, generator, settings["score"].home)
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
