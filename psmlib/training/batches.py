"""Training batches from a generator for each network: noised data, their times and the regression targets."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.process import expand
from psmlib.training.recipe import Recipe


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


def draw_times(recipe: Recipe, k: int, updates: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Times of block k and their weights, or None. Shapes: (updates * batch_size,), float64.

    Example:
        >>> from psmlib.partition import Partition
        >>> from psmlib.process import VP
        >>> draw_times(Recipe(VP(), Partition.points(2), updates=1, batch_size=3), 0, 1, torch.Generator())[0].tolist()
        [0.5, 0.5, 0.5]
    """
    low, high = recipe.partition.bounds(k)
    if recipe.partition.discrete:
        return torch.full((updates * recipe.batch_size,), high, dtype=torch.float64), None
    shape = recipe.times.numbers, updates, recipe.batch_size
    u = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    t = recipe.times.draw(u, low, high)
    weight = recipe.times.weight(t, low, high)
    return t.flatten(), None if weight is None else weight.flatten()


def noised(
    bank, data, recipe: Recipe, k: int, updates: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Points x_t, their times, regression targets and weights for block k, where and as the bank's parameters are.

    Args:
        bank: Of MLPs or of image networks; gives dtype and device.
        data: A density with ``sample(n, generator)``, or a tensor of points to draw from. Shape: (N, *shape).
        recipe: The training's recipe.
        k: Which block.
        updates: How many batches; rows follow one another.
        generator: Source of randomness.

    Returns:
        Shapes: (n, *shape), (n,), (n, *shape) and (n,) or None, with n = updates * batch_size.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> recipe = Recipe(VP(), SA, updates=1, batch_size=5)
        >>> x, t, target, weight = noised(Bank(Plain(), 1), torch.ones(9, 2), recipe, 0, 1, torch.Generator())
        >>> x.shape, t.shape, target.shape, weight
        (torch.Size([5, 2]), torch.Size([5]), torch.Size([5, 2]), None)
    """
    dtype = bank.params.dtype
    x0 = draw_points(data, updates * recipe.batch_size, generator).to(bank.device, dtype)
    t, weight = (None if v is None else v.to(bank.device) for v in draw_times(recipe, k, updates, generator))
    eps = torch.randn(x0.shape, generator=generator, dtype=dtype, device=generator.device).to(bank.device)
    target = recipe.objective.target(recipe.process, x0, t, eps)
    return recipe.process.perturb(x0, t, eps), t, target, None if weight is None else weight.to(dtype)


def mlp_batch(bank: Bank, x: Tensor, t: Tensor, target: Tensor, process) -> tuple[Tensor, Tensor]:
    """Inputs and regression targets of an MLP, for noised points: what its skip connection adds is subtracted.

    Args:
        bank: Of MLPs.
        x: Points x_t. Shape: (n, d).
        t: Their times. Shape: (n,).
        target: Regression targets. Shape: (n, d).
        process: The Gaussian path.

    Returns:
        Shapes: (n, F) and (n, d).
    """
    skip = bank.arch.skip(t, process, bank.native)
    if skip is not None:
        target = target - expand(skip, x) * x
    return bank.arch.features(x, t, process), target
