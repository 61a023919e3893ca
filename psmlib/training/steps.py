"""What the updates of every kind of bank have in common: their random streams, moving average and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from psmlib.bank.stack import NetworkStack
from psmlib.machine.checks import check_choice
from psmlib.machine.memory import check_memory
from psmlib.machine.streams import stream
from psmlib.training.batches import noised
from psmlib.training.guarded import CHUNK
from psmlib.training.optim import OPTIMISERS, Adam
from psmlib.training.recipe import Recipe


@dataclass
class Steps:
    """Updates of a bank's networks; the base of one class for each kind of bank.

    A bank's *engine* is how its networks share a device: "loop" trains one after another, each in the cache while its
    turn lasts; others are named by the subclasses, whose ``_default_engine()`` is what suits the device.

    Args:
        bank: The networks; changed in place.
        data: As in :func:`psmlib.training.fit`.
        recipe: What is learnt.
        engine: One of ``engines``, or "auto" for what suits the device.

    Raises:
        ValueError: for an engine that is unknown or cannot serve this bank or recipe.
    """

    bank: NetworkStack
    data: object
    recipe: Recipe
    engine: str | type = "auto"

    engines: ClassVar[tuple[str, ...]]
    together = False
    """Whether the engine is handed all networks at once."""

    def __post_init__(self):
        if self.engine == "auto":
            self.engine = self._default_engine()
        if isinstance(self.engine, str):
            check_choice("engine", self.engine, ("auto", *self.engines), of=f"a {type(self.bank).__name__}")

    def planned(self, networks: int) -> int:
        """Bytes for the work of so many networks at once."""
        raise TypeError(f"{type(self).__name__} does not define planned(networks)")

    def needed(self, networks: int, workers: int = 1) -> int:
        """Bytes at the peak of training so many networks: all but the networks themselves and the data.

        Gradients, the optimiser's moments, a moving average, the copy to go back to, and the work of the steps.
        """
        params = self.bank.params.new_empty(networks, self.bank.params.shape[1], device="meta")
        moments = OPTIMISERS[self.recipe.optimiser](params, self.bank.widths).state.values()
        work = self.planned(networks) if self.together else self.planned(1) * max(1, workers)
        return params.nbytes * (2 if self.recipe.ema is None else 4) + sum(tensor.nbytes for tensor in moments) + work

    def check_memory(self, workers: int) -> None:
        """Raises MemoryError when training the bank would not fit its device."""
        what = f"training {len(self.bank)} networks at batch {self.recipe.batch_size}"
        check_memory(self.needed(len(self.bank), workers), self.bank.device, what)

    def draw(self, k: int, done: int, n: int) -> list[Tensor | None]:
        """The batches of network k for its next n updates: noised points, times, targets, and weights or None.

        A stream belongs to a chunk, which is drawn whole, so that resuming needs no state of it.

        Returns:
            Shapes: (n, B, *shape), (n, B), (n, B, *shape), (n, B).
        """
        block, mine = self.bank.first + k, slice(done % CHUNK, done % CHUNK + n)
        generator = stream(self.recipe.seed, block, 1, done // CHUNK)
        chunk = noised(self.bank, self.data, self.recipe, block, CHUNK, generator)
        return [None if v is None else v.unflatten(0, (CHUNK, -1))[mine] for v in chunk]

    def run(self, part: slice, moments: Adam, grad: Tensor, average: NetworkStack | None, done: int, n: int) -> Tensor:
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
        raise TypeError(f"{type(self).__name__} does not define run(part, ...)")


def average_in(average: NetworkStack | None, bank: NetworkStack, decay: float | None, part: slice) -> None:
    """Lets a moving average follow the bank by one step; running statistics are means already and are copied."""
    if average is not None:
        for name, tensor in average.tensors.items():
            tensor[part].lerp_(bank.tensors[name][part], 1 - decay if name == "params" else 1.0)


def run_tensors(bank: NetworkStack, moments: Adam, average: NetworkStack | None) -> dict[str, Tensor]:
    """All tensors that a run goes on from, by their names in a checkpoint; rows are networks."""
    means = {} if average is None else {f"average_{name}": tensor for name, tensor in average.tensors.items()}
    return {**bank.tensors, **moments.state, **means}
