r"""Training batches of a whole bank at once, from random numbers that have an address.

:mod:`psmlib.training.batches` draws one network's batches from a generator on the CPU. That is quick enough where
networks take turns, but an accelerator that trains two hundred networks in a quarter of a millisecond would wait for
it. Here times, noise and data of all networks are made where the networks are, of words that belong to (seed, network,
update, row) alone (:mod:`psmlib.kernels.philox`): any part of a bank draws what the whole would have drawn.

A row's words: time, share, data, spare; then two for each pair of axes of the noise; then as many for the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import Mixture
from psmlib.kernels.philox import normal, uniform, words
from psmlib.machine.streams import stream_key
from psmlib.partition import Partition
from psmlib.process import Process, expand

AT_ONCE = 1000
"""Batches, of all networks together, that are worth one drawing on an accelerator: fewer would leave it waiting."""


def has_address(data) -> bool:
    """Whether data can be drawn by words: toys and tensors of points can."""
    return isinstance(data, Tensor | Mixture)


@dataclass
class AddressedBatches:
    """Batches of some networks of a bank.

    Args:
        bank: Gives the networks' places, dtype and device.
        data: A toy, or points. Shape: (N, d).
        process: The Gaussian path.
        partition: The blocks of the whole bank.
        objective: Makes the targets.
        batch_size: Rows a network and update.
        seed: Of the batches.
        log_share: Share of training times drawn log-uniformly.
        t_min: Where log-uniform times start in the first block.

    Raises:
        ValueError: for data that cannot be drawn by address.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.training.objectives import Denoising
        >>> from psmlib.process import VP
        >>> made = HG(), VP(0., 10.), Partition([0, .1, 1]), Denoising(), 8, 0, 0., 1e-5
        >>> whole = AddressedBatches(Bank(Plain(), 2), *made).draw(slice(0, 2), 0, 5)
        >>> part = AddressedBatches(Bank(Plain(), 2, only=range(1, 2)), *made).draw(slice(0, 1), 3, 2)
        >>> whole[0].shape, torch.equal(whole[0][3:, 1:], part[0])
        (torch.Size([5, 2, 8, 4]), True)
    """

    bank: Bank
    data: Tensor | Mixture
    process: Process
    partition: Partition
    objective: object
    batch_size: int
    seed: int
    log_share: float
    t_min: float

    def __post_init__(self):
        if not has_address(self.data):
            raise ValueError(
                f"{type(self.data).__name__} cannot be drawn by address: give a toy or a tensor of points, or train "
                'with streams="torch"'
            )
        device, blocks = self.bank.device, [self.bank.first + k for k in range(len(self.bank))]
        self._keys = torch.tensor([stream_key(self.seed, block, 3) for block in blocks], device=device)
        bounds = [self.partition.bounds(block) for block in blocks]
        low, high = torch.tensor(bounds, dtype=torch.float64, device=device)[..., None, None].unbind(1)
        self._low, self._high = low, high
        self._start = low.clamp_min(self.t_min).minimum(high / 2).maximum(low)
        self._points = self.data.to(device, self.bank.params.dtype) if isinstance(self.data, Tensor) else self.data
        self._held: tuple[slice | None, int, tuple[Tensor, ...]] = (None, 0, ())

    @property
    def dim(self) -> int:
        """Axes of a point."""
        return self._points.shape[1] if isinstance(self._points, Tensor) else self._points.dim

    def _times(self, word: Tensor, share: Tensor, part: slice) -> Tensor:
        """Times of the networks' blocks. Shape: (K, U, B), float64."""
        low, high, start = self._low[part], self._high[part], self._start[part]
        if self.partition.discrete:
            return high.expand(word.shape)
        u = uniform(word)  # never 0, and at t = 0 there is no noise to predict
        t = low + (high - low) * u
        if self.log_share:
            t = torch.where(uniform(share) <= self.log_share, start * (high / start) ** u, t)
        return t

    def _data(self, pick: Tensor, more: Tensor) -> Tensor:
        """Data points. Shape: (K, U, B, d)."""
        if isinstance(self._points, Tensor):
            return self._points[(pick * len(self._points)) >> 32]
        return self._points.of_words(pick, more, self.bank.params.dtype)

    def draw(self, part: slice, first: int, updates: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some networks for a stretch of updates.

        Args:
            part: Which networks of the bank.
            first: The first update, counted from the start of training.
            updates: How many, U.

        Returns:
            Shapes: (U, K, B, F) and (U, K, B, d).
        """
        pairs, dtype, bank = -(-self.dim // 2), self.bank.params.dtype, self.bank
        w = words(self._keys[part], first, updates, self.batch_size, 1 + pairs)
        noise, rest = w[4 : 4 + 2 * pairs], w[4 + 2 * pairs :]
        eps = torch.stack([v for i in range(pairs) for v in normal(noise[2 * i], noise[2 * i + 1], dtype)], -1)
        shape, eps = eps.shape[:-1], eps[..., : self.dim].flatten(0, 2)
        x0, t = self._data(w[2], rest).flatten(0, 2), self._times(w[0], w[1], part).flatten()
        x, target = self.process.perturb(x0, t, eps), self.objective.target(self.process, x0, t, eps)
        skip = bank.arch.skip(t, self.process, bank.native)
        if skip is not None:
            target = target - expand(skip, x) * x
        h = bank.arch.features(x, t, self.process)
        return tuple(v.unflatten(0, shape).transpose(0, 1) for v in (h, target))

    def at_once(self, networks: int, updates: int) -> int:
        """Updates that are drawn at once where some are asked for: on an accelerator several times as many."""
        return updates * (1 if self.bank.device.type == "cpu" else max(1, AT_ONCE // (networks * updates)))

    def take(self, part: slice, first: int, updates: int) -> tuple[Tensor, Tensor]:
        """As :meth:`draw`, contiguous, and perhaps from what was drawn with the updates before."""
        whose, start, drawn = self._held
        if whose != part or not start <= first <= first + updates <= start + len(drawn[0]):
            many = self.at_once(part.stop - part.start, updates)
            start, drawn = first, tuple(v.contiguous() for v in self.draw(part, first, many))
            self._held = (part, start, drawn) if many > updates else (None, 0, ())
        return tuple(v[first - start : first - start + updates] for v in drawn)
