r"""The denoising loss on every split, beside the least that training on these images could reach.

That least is the loss of the optimal denoiser of the training images with their dequantisation noise,
:class:`psmlib.exact.dequantised.DequantisedData`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.data.images import SPLITS, Images
from psmlib.evaluation.reference_densities import thinned
from psmlib.score import Score
from psmlib.standard_errors import mean


@dataclass(frozen=True)
class DenoisingLoss:
    """Mean squared error of the noise per axis at one time, on the same noise everywhere.

    Attributes:
        t: The time.
        block: The block of the score's partition that answers at it, or None.
        train: On training images; likewise validation and test, each with its standard error over images.
        optimal: On the training images, of the optimal denoiser of those; less is not possible but by chance.
        excess: train - optimal. Its standard error is that of the paired difference.
        gap: test - train. Its standard error takes the two for independent, which is on the safe side of shared noise.
        optimal_gap: The same for the optimal denoiser: what learning all by heart would cost on new images.
    """

    t: float
    block: int | None
    train: float
    train_stderr: float
    validation: float
    validation_stderr: float
    test: float
    test_stderr: float
    optimal: float
    optimal_stderr: float
    excess: float
    excess_stderr: float
    gap: float
    gap_stderr: float
    optimal_gap: float
    optimal_gap_stderr: float


def denoising_losses(
    score: Score, images: Images, times: Sequence[float], *, optimal: Score | None = None, scale: str = "unit",
    centred: bool = True, flat: bool = False, draws: int = 1, limit: int = 1500, batch: int = 512, seed: int = 0,
) -> list[DenoisingLoss]:  # fmt: skip
    """The denoising loss over time on all three splits, beside the optimal denoiser's.

    Dequantisation noise and eps are drawn once: the i-th image of every split gets the i-th, at all times and for
    whatever score, so that differences in time and between scores are paired.

    Args:
        score: Trained or exact; takes points like those of ``images.draws(scale=, centred=, flat=)``.
        images: The data set.
        times: Where sigma is positive.
        optimal: The optimal denoiser of the training images; by default the exact one of :class:`DequantisedData`.
            With 256 levels the data ``images.draws(...).middles()`` are as good from t = .01 on, and cheap.
        scale: "unit" or "symmetric".
        centred: Whether the mean training image is subtracted.
        flat: Whether the score takes points (n, D).
        draws: Draws of both noises for each image, which are averaged first.
        limit: Of more images than that in a split, so many are taken at even distances.
        batch: Points given to the scores at a time.
        seed: Of the noise.

    Returns:
        One :class:`DenoisingLoss` for each time; ``pandas.DataFrame`` takes the list as it is.

    Raises:
        ValueError: when the optimal denoiser belongs to another process, or there is no noise at a time.

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
    manner = dict(scale=scale, centred=centred, flat=flat)
    sources = {split: images.draws(split, **manner) for split in SPLITS}
    optimal = optimal or images.draws(**manner, device=score.tensor_options["device"]).diffused(score.process)
    if optimal.process != score.process:
        raise ValueError(
            f"the score runs under {score.process} but the optimal denoiser under {optimal.process}: make it anew"
        )
    levels = {split: thinned(source.pool, limit) for split, source in sources.items()}
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
    """Mean squared error per axis at each point. Shape: (n,)."""
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
