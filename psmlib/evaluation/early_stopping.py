r"""Early stopping for each network of a bank: the snapshot with the lowest validation loss on its own block.

A single network has one stopping time for all diffusion times. The networks of a bank are independent, so that each
can keep the snapshot that is best for its own block.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from psmlib.bank.image_bank import ImageBank
from psmlib.data.images import Images
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.sampling import grids


def block_times(partition: Partition, process: Process, k: int, n: int, t_min: float) -> list[float]:
    """Times representing block k: the midpoints of n equal intervals of log SNR, or its time point if discrete.

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
    """Mean squared error of the predicted noise on validation images, for each network of a bank over its own block.

    Args:
        bank: The networks, of centred images on [0, 1).
        images: The data; the first images of its validation split are used, with the same noise for all networks.
        partition: The blocks.
        process: The Gaussian path.
        times: Number of times for each block.
        t_min: Start of the first block.
        limit: Largest number of images.
        seed: Seed of the noise.

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
    """The bank of each network's best snapshot on validation images, and the updates at which each was taken.

    Args:
        banks: Snapshots by number of updates, as returned by :func:`psmlib.training.snapshots.train`.
        images: The data.
        partition: The blocks.
        process: The Gaussian path.
        measure: Other arguments of :func:`validation_losses`.

    Returns:
        A new bank, and a number of updates for each network.

    Raises:
        ValueError: when there are no snapshots.

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
    chosen = [stops[i] for i in losses.argmin(0).tolist()]
    params, buffers = (
        torch.stack([banks[s].tensors[name][k] for k, s in enumerate(chosen)]) for name in ("params", "buffers")
    )
    return banks[stops[-1]].copy(params=params, buffers=buffers), chosen
