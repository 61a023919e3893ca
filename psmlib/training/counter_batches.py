r"""Training batches of a whole bank at once, from counter-based random numbers.

A generator gives what comes next, so each network needs one of its own. Here times, noise and data are made of words
that depend on (seed, network, update, row) alone (:mod:`psmlib.kernels.philox`): all networks draw in one launch where
they are, any part of a bank draws what the whole would have drawn, and a resumed run needs no state.

The words of a row: two for the time, one for the data, one spare; then two for each pair of axes of the noise; then as
many for the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import Mixture
from psmlib.kernels.philox import normal, uniform, words
from psmlib.machine.streams import stream_key
from psmlib.training.batches import mlp_batch
from psmlib.training.recipe import Recipe

AT_ONCE = 1000
"""Batches, of all networks together, that are worth one drawing on an accelerator: fewer would leave it waiting."""


def from_words(data) -> bool:
    """Whether data can be drawn from words: toys and tensors of points can."""
    return isinstance(data, Tensor | Mixture)


@dataclass
class CounterBatches:
    """Batches of some networks of a bank.

    Args:
        bank: Gives the networks' places, dtype and device.
        data: A toy, or points. Shape: (N, d).
        recipe: The training's recipe.

    Attributes:
        dim: Axes of a point, d.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import Partition
        >>> from psmlib.process import VP
        >>> made = HG(), Recipe(VP(0., 10.), Partition([0, .1, 1]), updates=5, batch_size=8)
        >>> whole = CounterBatches(Bank(Plain(), 2), *made).draw(slice(0, 2), 0, 5)
        >>> part = CounterBatches(Bank(Plain(), 2, only=range(1, 2)), *made).draw(slice(0, 1), 3, 2)
        >>> whole[0].shape, torch.equal(whole[0][3:, 1:], part[0])
        (torch.Size([5, 2, 8, 4]), True)
    """

    bank: Bank
    data: Tensor | Mixture
    recipe: Recipe

    def __post_init__(self):
        device, blocks = self.bank.device, [self.bank.first + k for k in range(len(self.bank))]
        self._keys = torch.tensor([stream_key(self.recipe.seed, block, 3) for block in blocks], device=device)
        bounds = [self.recipe.partition.bounds(block) for block in blocks]
        self._low, self._high = torch.tensor(bounds, dtype=torch.float64, device=device)[..., None, None].unbind(1)
        self._points = self.data.to(device, self.bank.params.dtype) if isinstance(self.data, Tensor) else self.data
        self.dim = self._points.shape[1] if isinstance(self.data, Tensor) else self.data.dim
        self._held: tuple[slice | None, int, tuple[Tensor, ...]] = (None, 0, ())

    def _times(self, pair: Tensor, part: slice) -> tuple[Tensor, Tensor | None]:
        """Times of the networks' blocks and their weights, or None. Shapes: (K, U, B), float64."""
        low, high = self._low[part], self._high[part]
        if self.recipe.partition.discrete:
            return high.expand(pair.shape[1:]), None
        t = self.recipe.times.draw(1 - uniform(pair[: self.recipe.times.numbers]), low, high)
        return t, self.recipe.times.weight(t, low, high)

    def _data(self, pick: Tensor, more: Tensor) -> Tensor:
        """Data points. Shape: (K, U, B, d)."""
        if isinstance(self._points, Tensor):
            return self._points[(pick * len(self._points)) >> 32]
        return self._points.of_words(pick, more, self.bank.params.dtype)

    def draw(self, part: slice, first: int, updates: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and weights of some networks for a stretch of updates.

        Args:
            part: Which networks of the bank.
            first: The first update, counted from the start of training.
            updates: How many, U.

        Returns:
            Shapes: (U, K, B, F), (U, K, B, d), and (U, K, B) or None.
        """
        pairs, dtype, recipe = -(-self.dim // 2), self.bank.params.dtype, self.recipe
        w = words(self._keys[part], first, updates, recipe.batch_size, 1 + pairs)
        noise, rest = w[4 : 4 + 2 * pairs], w[4 + 2 * pairs :]
        eps = torch.stack([v for i in range(pairs) for v in normal(noise[2 * i], noise[2 * i + 1], dtype)], -1)
        shape, eps = eps.shape[:-1], eps[..., : self.dim].flatten(0, 2)
        t, weight = self._times(w[:2], part)
        x0, t = self._data(w[2], rest).flatten(0, 2), t.flatten()
        x, target = recipe.process.perturb(x0, t, eps), recipe.objective.target(recipe.process, x0, t, eps)
        made = (v.unflatten(0, shape).transpose(0, 1) for v in mlp_batch(self.bank, x, t, target, recipe.process))
        return *made, None if weight is None else weight.to(dtype).transpose(0, 1)

    def at_once(self, networks: int, updates: int) -> int:
        """Updates that are drawn at once where some are asked for: on an accelerator several times as many."""
        return updates * (1 if self.bank.device.type == "cpu" else max(1, AT_ONCE // (networks * updates)))

    def take(self, part: slice, first: int, updates: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`draw`, contiguous, and perhaps from what was drawn with the updates before."""
        whose, start, drawn = self._held
        if whose != part or not start <= first <= first + updates <= start + len(drawn[0]):
            many = self.at_once(part.stop - part.start, updates)
            drawn = tuple(None if v is None else v.contiguous() for v in self.draw(part, first, many))
            start, self._held = first, (part, first, drawn) if many > updates else (None, 0, ())
        return tuple(None if v is None else v[first - start : first - start + updates] for v in drawn)
