"""Updates of a bank of MLPs, whose gradient needs no automatic differentiation.

Engines: "loop" trains one network after another; "products" steps all of them in batched matrix products, and "fused"
in two Triton kernels a step, both recorded as one CUDA graph where there is CUDA. A subclass of
:class:`psmlib.kernels.bank_updates.BankUpdates` is an engine too. They differ by rounding.

Batches of toys and tensors of points come from counter-based words, the same on every device
(:mod:`psmlib.training.counter_batches`); other data draw from a generator for each network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.kernels import fused_updates
from psmlib.kernels.bank_updates import BankUpdates, adam_rates
from psmlib.kernels.column_mlp import network_for
from psmlib.kernels.products import one_thread
from psmlib.training.batches import mlp_batch
from psmlib.training.counter_batches import CounterBatches, from_words
from psmlib.training.guarded import CHUNK
from psmlib.training.optim import Adam
from psmlib.training.steps import Steps, average_in

TOGETHER = {"products": BankUpdates, "fused": fused_updates.FusedUpdates}
"""Engines that step all networks at once."""


@dataclass
class MLPSteps(Steps):
    """Updates of a bank of MLPs; arguments as of :class:`psmlib.training.steps.Steps`.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> from psmlib.training.recipe import Recipe
        >>> bank = Bank(Plain(), 1)
        >>> steps = MLPSteps(bank, HG(), Recipe(VP(0., 10.), SA, updates=2, batch_size=8))
        >>> steps.run(slice(0, 1), Adam(bank.params), torch.empty_like(bank.params), None, 0, 2).shape
        torch.Size([1])
    """

    engines: ClassVar[tuple[str, ...]] = ("loop", *TOGETHER)

    def __post_init__(self):
        super().__post_init__()
        self._kind = TOGETHER.get(self.engine) if isinstance(self.engine, str) else self.engine
        if self.recipe.times.weighted and self._kind is not None and not self._kind.weighs:
            raise ValueError(f'{self._kind.__name__} takes no weights of times: use engine="products"')
        self.together = self._kind is not None
        self._updates: BankUpdates | None = None
        self._counter = CounterBatches(self.bank, self.data, self.recipe) if from_words(self.data) else None

    def _default_engine(self) -> str:
        """What is fastest on the bank's device."""
        if self.bank.device.type == "cpu":
            return "loop"
        fused = fused_updates.triton is not None and self.bank.device.type == "cuda" and not self.recipe.times.weighted
        return "fused" if fused and fused_updates.fits(self.bank.widths, self.bank.params.dtype) else "products"

    def planned(self, networks: int) -> int:
        widths, size = self.bank.widths, self.bank.params.element_size()
        rows = self.recipe.batch_size * networks
        batches, updates = 2 * (widths[0] + widths[-1]) * size, CHUNK  # as they are made, and as the steps hold them
        if self._counter is not None:  # words and what is made of them on the way
            batches += 3 * 8 * 4 * (1 + -(-self._counter.dim // 2)) + 8 * 8 * widths[-1]
            updates = self._counter.at_once(networks, CHUNK)
        copied = self._kind.copied(widths) if self.together else 0
        return networks * copied * size + rows * (3 * sum(widths) * size + updates * batches)

    def run(self, part: slice, moments: Adam, grad: Tensor, average: Bank | None, done: int, n: int) -> Tensor:
        inputs, targets, weights = self.batches(part, done, n)
        if self.together and type(moments) is Adam:
            if self._updates is None:  # kept, for it may have recorded its steps
                mean, square = moments.part(part).state.values()
                self._updates = self._kind(
                    self.bank.widths, self.bank.params[part], mean, square, batch=self.recipe.batch_size,
                    average=None if average is None else average.params[part], ema=self.recipe.ema or 0.0,
                )  # fmt: skip
            return self._updates.run(inputs, targets, adam_rates(self.recipe.rate, done, n), weights)
        params, grads, moments, rate = self.bank.params[part], grad[part], moments.part(part), self.recipe.rate
        work, total = network_for(self.bank.widths, inputs[0]), params.new_zeros(len(params))
        inputs, targets = (v.mT.contiguous().mT for v in (inputs, targets))  # points are columns there
        with one_thread():
            for i in range(n):
                total += work.gradient(params, inputs[i], targets[i], grads, None if weights is None else weights[i])
                moments.step(params, grads, lr=rate(done + i), count=done + i + 1)
                average_in(average, self.bank, self.recipe.ema, part)
        return total / n

    def batches(self, part: slice, done: int, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and weights of some networks for the next n updates.

        Shapes: (n, K, B, F), (n, K, B, d), and (n, K, B) or None.
        """
        if self._counter is not None:
            return self._counter.take(part, done, n)
        out = []
        for k in range(part.start, part.stop):
            *flat, weight = self.draw(k, done, n)
            made = mlp_batch(self.bank, *(v.flatten(0, 1) for v in flat), self.recipe.process)
            out.append((*(v.unflatten(0, (n, -1)) for v in made), weight))
        return tuple(None if each[0] is None else torch.stack(each, 1) for each in zip(*out, strict=True))
