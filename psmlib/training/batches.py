"""Training batches: noised data with times from one block, and what a network shall say of them."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.partition import Partition
from psmlib.process import Process, expand
from psmlib.training.times import draw_times


def draw_points(data, n: int, generator: torch.Generator) -> Tensor:
    """Data points: of a density with ``sample(n, generator)``, or with replacement from a tensor (N, *shape).

    Example:
        >>> draw_points(torch.ones(9, 2), 5, torch.Generator()).shape
        torch.Size([5, 2])
    """
    if not isinstance(data, Tensor):
        return data.sample(n, generator)
    rows = torch.randint(len(data), (n,), generator=generator, device=generator.device)
    return data[rows.to(data.device)]


def noised(
    bank, data, process: Process, partition: Partition, objective, k: int, n: int,
    generator: torch.Generator, log_share: float = 0.0, t_min: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Points x_t, their times and regression targets for block k, where and as the bank's parameters are.

    Args:
        bank: Of MLPs or of image networks; gives dtype and device.
        data: A density with ``sample(n, generator)``, or a tensor of points to draw from. Shape: (N, *shape).
        process: The Gaussian path.
        partition: The blocks.
        objective: Makes the targets.
        k: Which block.
        n: How many points.
        generator: Source of randomness.
        log_share: As in :func:`draw_times`.
        t_min: As in :func:`draw_times`.

    Returns:
        Shapes: (n, *shape), (n,), (n, *shape).

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.training.objectives import Denoising
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> x, t, target = noised(Bank(Plain(), 1), torch.ones(9, 2), VP(), SA, Denoising(), 0, 5, torch.Generator())
        >>> x.shape, t.shape, target.shape
        (torch.Size([5, 2]), torch.Size([5]), torch.Size([5, 2]))
    """
    dtype = bank.params.dtype
    x0 = draw_points(data, n, generator).to(bank.device, dtype)
    t = draw_times(partition, k, n, generator, log_share, t_min).to(bank.device)
    eps = torch.randn(x0.shape, generator=generator, dtype=dtype, device=generator.device).to(bank.device)
    return process.perturb(x0, t, eps), t, objective.target(process, x0, t, eps)


def make_batch(
    bank: Bank, data, process: Process, partition: Partition, objective, k: int, n: int,
    generator: torch.Generator, log_share: float, t_min: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Inputs (n, F) and regression targets (n, d) of an MLP, for block k; arguments as of :func:`noised`.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.training.objectives import Denoising
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> made = Bank(Plain(), 1), torch.ones(9, 2), VP(), SA, Denoising()
        >>> make_batch(*made, 0, 5, torch.Generator(), 0., 1e-5)[0].shape
        torch.Size([5, 4])
    """
    x, t, target = noised(bank, data, process, partition, objective, k, n, generator, log_share, t_min)
    skip = bank.arch.skip(t, process, bank.native)
    if skip is not None:
        target = target - expand(skip, x) * x
    return bank.arch.features(x, t, process), target
