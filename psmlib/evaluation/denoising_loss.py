r"""Denoising loss of a score on each split, compared with that of the optimal denoiser of the training images.

No other score has a lower expected loss on the training images with their dequantisation noise than that denoiser,
:class:`psmlib.exact.dequantised.DequantisedData`.
"""

import math
from collections import namedtuple
from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.data.images import SPLITS, Images
from psmlib.evaluation.reference_densities import subsample
from psmlib.score import Score
from psmlib.standard_errors import mean

_LOSSES = (*SPLITS, "optimal", "excess", "gap", "optimal_gap")


class DenoisingLoss(namedtuple("DenoisingLoss", ["t", "block", *(n + e for n in _LOSSES for e in ("", "_stderr"))])):
    """Mean squared error of the predicted noise per dimension at one time.

    Each loss has a standard error over images, with the suffix "_stderr".

    Attributes:
        t: The time.
        block: Index of the block of the score's partition that contains t, or None without a partition.
        train: Loss on training images; likewise validation and test.
        optimal: Loss of the optimal denoiser on the training images, the lowest possible one but for sampling noise.
        excess: train - optimal, with the standard error of the paired difference.
        gap: test - train, with the standard error of independent losses, too large because they share the noise.
        optimal_gap: The gap of the optimal denoiser, that is, of complete memorisation.
    """


def denoising_losses(
    score: Score, images: Images, times: Sequence[float], *, optimal: Score | None = None, scale: str = "unit",
    centred: bool = True, flat: bool = False, draws: int = 1, limit: int = 1500, batch: int = 512, seed: int = 0,
) -> list[DenoisingLoss]:  # fmt: skip
    """The denoising loss over time on all three splits, of a score and of the optimal denoiser.

    Dequantisation noise and eps are drawn once: the i-th image of every split has the i-th draw at all times and for
    all scores, so that differences between times and between scores are paired.

    Args:
        score: Trained or exact, of points like those of ``images.draws(scale=, centred=, flat=)``.
        images: The data set.
        times: Times at which sigma is positive.
        optimal: The optimal denoiser of the training images; by default the exact one, :class:`DequantisedData`. With
            256 levels that of the data ``images.draws(...).middles()`` is as good for t >= .01, and cheaper.
        scale: "unit" or "symmetric".
        centred: Whether the mean training image is subtracted.
        flat: Whether the score takes points (n, D).
        draws: Draws of both noises for each image, over which its loss is averaged.
        limit: Most images of a split; from a larger split that many are taken at even distances.
        batch: Points evaluated at a time.
        seed: Seed of the noise.

    Returns:
        One :class:`DenoisingLoss` for each time, as for ``pandas.DataFrame``.

    Raises:
        ValueError: when the optimal denoiser belongs to another process, or sigma is 0 at a time.

    Example:
        >>> from psmlib.data.images import load
        >>> from psmlib.process import VP
        >>> from psmlib.evaluation.reference_densities import Gaussian
        >>> digits = load("digits")
        >>> score = Gaussian(digits).diffused(VP(0., 10.), -digits.centre)
        >>> [row] = denoising_losses(score, digits, [.3], limit=100)
        >>> row.excess > 3 * row.excess_stderr, row.optimal_gap > row.gap
        (True, True)
    """
    settings = dict(scale=scale, centred=centred, flat=flat)
    sources = {split: images.draws(split, **settings) for split in SPLITS}
    optimal = optimal or images.draws(**settings, device=score.tensor_options["device"]).diffused(score.process)
    if optimal.process != score.process:
        raise ValueError(f"the score is of {score.process} but the optimal denoiser of {optimal.process}: make it anew")
    levels = {split: subsample(source.pool, limit) for split, source in sources.items()}
    generator, most = torch.Generator().manual_seed(seed), max(map(len, levels.values()))
    sums: dict[tuple, Tensor | float] = {}
    for _ in range(draws):
        shape = (most, *images.shape)
        noise = torch.rand(shape, generator=generator, dtype=torch.float64)
        eps = torch.randn(shape, generator=generator, dtype=torch.float64)
        for split, source in sources.items():
            n = len(levels[split])
            x0, e = (levels[split] + noise[:n]) * source.factor + source.shift, eps[:n]
            x0, e = (x0.flatten(1), e.flatten(1)) if flat else (x0, e)
            for t in times:
                for trained, law in ((True, score), (False, optimal)):
                    if trained or split != "validation":
                        key = (trained, split, float(t))
                        sums[key] = sums.get(key, 0.0) + _errors(law, x0, e, float(t), batch) / draws
    return [_row(sums, float(t), getattr(score, "partition", None)) for t in times]


def _errors(score: Score, x0: Tensor, eps: Tensor, t: float, batch: int) -> Tensor:
    """Mean squared error per dimension at each point. Shape: (n,)."""
    x, out = score.process.perturb(x0, t, eps), []
    with torch.no_grad():
        for part, e in zip(x.split(batch), eps.split(batch), strict=True):
            found = score.eps(part.to(**score.tensor_options), t).to(e)
            out.append((found - e).square().flatten(1).mean(1))
    return torch.cat(out)


def _row(sums: dict, t: float, partition) -> DenoisingLoss:
    def gap(trained: bool) -> tuple[float, float]:
        (high, a), (low, b) = mean(sums[trained, "test", t]), mean(sums[trained, "train", t])
        return high - low, math.hypot(a, b)

    best = sums[False, "train", t]
    figures = [mean(sums[True, split, t]) for split in SPLITS]
    figures += [mean(best), mean(sums[True, "train", t] - best), gap(True), gap(False)]
    block = None if partition is None else int(partition.block_of(t))
    return DenoisingLoss(t, block, *(number for figure in figures for number in figure))
