r"""Early stopping, block by block: each network of a bank stops where its own validation loss is lowest.

A single network must stop for all times at once. The networks of a bank never meet, so each may keep the snapshot
that is best for its own stretch of time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from psmlib.bank.image_bank import ImageBank
from psmlib.data.images import Images
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.sampling import grids


def block_times(partition: Partition, process: Process, k: int, n: int, t_min: float) -> list[float]:
    """Times that stand for block k: the middles of n equal stretches of its log SNR, or its point if it has one.

    Example:
        >>> from psmlib.process import VP
        >>> [round(t, 3) for t in block_times(Partition([0, .1, 1]), VP(0., 10.), 1, 2, 1e-3)]
        [0.252, 0.781]
    """
    lo, hi = partition.bounds(k)
    if partition.discrete:
        return [hi]
    return grids.log_snr(process, max(lo, min(t_min, hi / 2)), hi, 2 * n)[1::2].tolist()


@torch.no_grad()
def validation_losses(
    bank: ImageBank, images: Images, partition: Partition, process: Process, *,
    times: int = 4, t_min: float = 1e-3, limit: int = 500, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Mean squared error of the noise on validation images, for each network of a bank over its own block.

    Args:
        bank: The networks, of centred images on [0, 1).
        images: The data; the first images of its validation split, always with the same noise.
        partition: The blocks.
        process: The Gaussian path.
        times: How many times stand for a block.
        t_min: Where the first block's times start.
        limit: No more images than that.
        seed: Of the noise.

    Returns:
        Shape: (K,), float64.

    Example:
        >>> from psmlib.data.images import load
        >>> from psmlib.nets import unet
        >>> from psmlib.partition import TPSM_A
        >>> from psmlib.process import VP
        >>> validation_losses(ImageBank(unet.small(dim=8), 2), load("digits"), TPSM_A, VP(0., 10.), limit=4).shape
        torch.Size([2])
    """
    generator, score = torch.Generator().manual_seed(seed), bank.score(partition, process)
    x0 = images.dequantise(images.validation[:limit], generator, centred=True)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    x0, eps, out = x0.to(**score.tensor_options), eps.to(**score.tensor_options), []
    for k in range(len(bank)):
        chosen = block_times(partition, process, k, times, t_min)
        errors = [(score.eps(process.perturb(x0, t, eps), t) - eps).square().mean() for t in chosen]
        out.append(torch.stack(errors).double().mean())
    return torch.stack(out).cpu()


def best_stops(
    banks: Mapping[int, ImageBank], images: Images, partition: Partition, process: Process, **measure
) -> tuple[ImageBank, list[int]]:
    """The bank whose every network is its best snapshot on validation images, and the updates each stopped at.

    Args:
        banks: Snapshots by number of updates, as :func:`psmlib.training.snapshots.train` keeps them.
        images: The data.
        partition: The blocks.
        process: The Gaussian path.
        measure: Arguments of :func:`validation_losses`.

    Returns:
        A new bank, and a number of updates for each network.

    Raises:
        ValueError: when there is no snapshot.

    Example:
        >>> from psmlib.data.images import load
        >>> from psmlib.nets import unet
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> banks = {50: ImageBank(unet.small(dim=8), 1), 100: ImageBank(unet.small(dim=8), 1, seed=1)}
        >>> best_stops(banks, load("digits"), SA, VP(0., 10.), limit=4)[1] in ([50], [100])
        True
    """
    if not banks:
        raise ValueError("there are no snapshots to choose from: train with stops")
    stops = sorted(banks)
    losses = torch.stack([validation_losses(banks[s], images, partition, process, **measure) for s in stops])
    chosen = losses.argmin(0).tolist()
    picked = {
        name: torch.stack([banks[stops[i]].tensors[name][k] for k, i in enumerate(chosen)])
        for name in ("params", "buffers")
    }
    return banks[stops[-1]].copy(**picked), [stops[i] for i in chosen]
