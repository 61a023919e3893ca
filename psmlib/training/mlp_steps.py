"""A chunk of updates: how networks of each kind take their steps.

``fit`` leaves to these classes what differs between a bank of MLPs, which has a gradient of its own and takes
a step for many networks at once, and a bank of image networks, whose gradient is automatic
(:mod:`psmlib.training.image_steps`).

A bank's *engine* is how its networks share a device: "loop" trains one after another, each in the cache while its turn
lasts; "products" steps all of them in batched matrix products, and "fused" in two Triton kernels a step, both recorded
as one CUDA graph where there is CUDA; "rounded" are products whose operands are rounded as those of "fused" are. Its
*streams* are where batches come from: a generator for each network ("torch"), or words with an address ("addressed"),
which a device makes for all networks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.tf32 import RoundedUpdates
from psmlib.kernels import fused_updates
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.kernels.bank_updates import BankUpdates, adam_rates
from psmlib.machine.streams import stream
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.batches import make_batch
from psmlib.training.counter_batches import AddressedBatches, has_address
from psmlib.training.optim import OPTIMISERS, Adam

CHUNK = 50
"""Updates between two looks at the loss; random numbers are drawn a chunk at a time."""

TOGETHER = {"products": BankUpdates, "fused": fused_updates.FusedUpdates, "rounded": RoundedUpdates}
"""Engines that step all networks at once."""


@dataclass
class BankSteps:
    """Updates of a bank of MLPs.

    Args:
        bank: The networks; changed in place.
        data: As in :func:`psmlib.training.loop.fit`; so are all others but ``rate``.
        process: The Gaussian path.
        partition: The blocks of the whole bank.
        objective: Makes the targets.
        batch_size: Points per step and network.
        seed: Of the batches.
        rate: The learning rate of update i.
        log_share: Share of training times drawn log-uniformly.
        t_min: Where log-uniform times start in the first block.
        ema: Decay of the moving average per step, or None.
        engine: One of ``engines``, or "auto" for the device's own.
        streams: "torch", "addressed" or "auto".

    Raises:
        ValueError: for an engine or streams that are unknown or cannot serve this bank, data or optimiser.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.training.objectives import Denoising
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> bank = Bank(Plain(), 1)
        >>> steps = BankSteps(bank, HG(), VP(0., 10.), SA, Denoising(), 8, 0, lambda i: 1e-3, 0., 1e-5, None)
        >>> steps.run(slice(0, 1), Adam(bank.params), torch.empty_like(bank.params), None, 0, 2).shape
        torch.Size([1])
    """

    bank: Bank
    data: object
    process: Process
    partition: Partition
    objective: object
    batch_size: int
    seed: int
    rate: Callable[[int], float]
    log_share: float
    t_min: float
    ema: float | None
    engine: str = "auto"
    streams: str = "auto"

    engines: ClassVar[tuple[str, ...]] = ("loop", *TOGETHER)
    sources: ClassVar[tuple[str, ...]] = ("torch", "addressed")

    def __post_init__(self):
        self.engine = self._default_engine() if self.engine == "auto" else self.engine
        self.streams = self.source(self.bank, self.data, self.streams)
        for name, value, known in (("engine", self.engine, self.engines), ("streams", self.streams, self.sources)):
            if value not in known:
                kind = type(self.bank).__name__
                raise ValueError(f"unknown {name} {value!r} for a {kind}: use one of auto, {', '.join(known)}")
        self._updates: BankUpdates | None = None
        self._addressed = self._addresses() if self.streams == "addressed" else None

    @classmethod
    def source(cls, bank: Bank | ImageBank, data, streams: str) -> str:
        """Where batches come from: ``streams``, or what "auto" means for this bank and data."""
        if streams != "auto":
            return streams
        addressed = bank.device.type != "cpu" and has_address(data) and "addressed" in cls.sources
        return "addressed" if addressed else "torch"

    def _default_engine(self) -> str:
        """What is fastest on the bank's device."""
        if self.bank.device.type == "cpu":
            return "loop"
        fused = fused_updates.triton is not None and self.bank.device.type == "cuda"
        return "fused" if fused and fused_updates.fits(self.bank.widths, self.bank.params.dtype) else "products"

    def _addresses(self) -> AddressedBatches:
        return AddressedBatches(
            self.bank, self.data, self.process, self.partition, self.objective, self.batch_size, self.seed,
            self.log_share, self.t_min,
        )  # fmt: skip

    @property
    def together(self) -> bool:
        """Whether the engine is handed all networks at once."""
        return self.engine != "loop"

    def crowd(self, networks: int) -> int:
        """How many of so many networks are at work at the same time."""
        return networks if self.together else 1

    def planned(self, networks: int) -> int:
        """Bytes for the work of so many networks at once."""
        widths, size = self.bank.widths, self.bank.params.element_size()
        rows = self.batch_size * networks
        batches, updates = 2 * (widths[0] + widths[-1]) * size, CHUNK  # as they are made, and as the steps hold them
        if self._addressed is not None:  # words and what is made of them on the way
            batches += 3 * 8 * 4 * (1 + -(-self._addressed.dim // 2)) + 8 * 8 * widths[-1]
            updates = self._addressed.at_once(networks, CHUNK)
        copied = TOGETHER[self.engine].copied(widths) if self.together else 0
        return networks * copied * size + rows * (3 * sum(widths) * size + updates * batches)

    def needed(self, networks: int, optimiser: str, workers: int) -> int:
        """Bytes at the peak of training so many networks: all but the networks themselves and the data.

        Gradients, the optimiser's moments, a moving average, the copy to go back to, and the work of the steps.
        """
        row, moving = self.bank.params[:1].nbytes, self.ema is not None
        params = self.bank.params.new_empty(networks, self.bank.params.shape[1], device="meta")
        moments = sum(tensor.nbytes for tensor in OPTIMISERS[optimiser](params, self.bank.widths).state.values())
        work = self.planned(self.crowd(networks)) * (1 if self.together else max(1, workers))
        return networks * row * (2 + 2 * moving) + moments + work

    def draw(self, make: Callable, k: int, done: int) -> tuple[Tensor, ...]:
        """A chunk of batches for network k: a stream is addressed by the chunk, so resuming needs no state of it."""
        block = self.bank.first + k
        generator = stream(self.seed, block, 1, done // CHUNK)
        return make(
            self.bank, self.data, self.process, self.partition, self.objective, block, CHUNK * self.batch_size,
            generator, self.log_share, self.t_min,
        )  # fmt: skip

    def average_in(self, average: Bank | ImageBank | None, part: slice) -> None:
        """Lets the moving average follow by one step; running statistics are means already and are copied."""
        if average is not None:
            for name, tensor in average.tensors.items():
                weight = 1 - self.ema if name == "params" else 1.0
                tensor[part].lerp_(self.bank.tensors[name][part], weight)

    def run(
        self, part: slice, moments: Adam, grad: Tensor, average: Bank | ImageBank | None, done: int, n: int
    ) -> Tensor:
        """Does n updates for some networks.

        Args:
            part: Which networks.
            moments: The optimiser of all networks.
            grad: Room for the gradients of all networks. Shape: (K, P).
            average: The moving average of the networks, or None.
            done: Updates done before.
            n: How many to do; they must not go beyond the chunk that ``done`` lies in.

        Returns:
            Their mean losses. Shape: (K of the part,).
        """
        inputs, targets = self.batches(part, done, n)
        if self.together and type(moments) is Adam:
            updates = self._updates_of(part, moments, average)
            return updates.run(inputs, targets, adam_rates(self.rate, done, n))
        params, grads, moments = self.bank.params[part], grad[part], moments.part(part)
        work, total = BankMLP(self.bank.widths, inputs[0]), params.new_zeros(len(params))
        for i in range(n):
            total += work.gradient(params, inputs[i], targets[i], grads)
            moments.step(params, grads, lr=self.rate(done + i), count=done + i + 1)
            self.average_in(average, part)
        return total / n

    def batches(self, part: slice, done: int, n: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some networks for the next n updates. Shapes: (n, K, B, F) and (n, K, B, d)."""
        if self._addressed is not None:
            return self._addressed.take(part, done, n)
        drawn = zip(*[self.draw(make_batch, k, done) for k in range(part.start, part.stop)], strict=True)
        mine = slice(done % CHUNK, done % CHUNK + n)
        shape = (CHUNK, self.batch_size)
        return tuple(torch.stack([b.unflatten(0, shape)[mine] for b in each], 1) for each in drawn)

    def _updates_of(self, part: slice, moments: Adam, average: Bank | ImageBank | None) -> BankUpdates:
        """The engine at work on some networks; kept, for it may have recorded its steps."""
        if self._updates is None:
            state = moments.part(part).state
            self._updates = TOGETHER[self.engine](
                self.bank.widths, self.bank.params[part], state["mean"], state["square"], batch=self.batch_size,
                average=None if average is None else average.params[part], ema=self.ema or 0.0,
            )  # fmt: skip
        return self._updates
