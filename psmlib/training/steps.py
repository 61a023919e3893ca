"""What the updates of every kind of bank have in common: their random streams, moving average and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from psmlib.bank.stack import NetworkStack
from psmlib.machine.memory import check_memory
from psmlib.machine.streams import stream
from psmlib.training.guarded import CHUNK
from psmlib.training.optim import OPTIMISERS, Adam
from psmlib.training.recipe import Recipe


@dataclass
class Steps:
    """Updates of a bank's networks; the base of one class for each kind of bank.

    A bank's *engine* is how its networks share a device: "loop" trains one after another, each in the cache while its
    turn lasts; others are named by the subclasses.

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

    engines: ClassVar[tuple[str, ...]] = ("loop",)

    def __post_init__(self):
        self.engine = self._default_engine() if self.engine == "auto" else self.engine
        if isinstance(self.engine, str) and self.engine not in self.engines:
            kind = type(self.bank).__name__
            raise ValueError(f"unknown engine {self.engine!r} for a {kind}: use one of auto, {', '.join(self.engines)}")

    def _default_engine(self) -> str:
        return "loop"

    @property
    def together(self) -> bool:
        """Whether the engine is handed all networks at once."""
        return False

    def concurrent(self, networks: int) -> int:
        """How many of so many networks are at work at the same time."""
        return networks if self.together else 1

    def planned(self, networks: int) -> int:
        """Bytes for the work of so many networks at once."""
        raise TypeError(f"{type(self).__name__} does not define planned(networks)")

    def needed(self, networks: int, workers: int = 1) -> int:
        """Bytes at the peak of training so many networks: all but the networks themselves and the data.

        Gradients, the optimiser's moments, a moving average, the copy to go back to, and the work of the steps.
        """
        row, moving = self.bank.params[:1].nbytes, self.recipe.ema is not None
        params = self.bank.params.new_empty(networks, self.bank.params.shape[1], device="meta")
        moments = OPTIMISERS[self.recipe.optimiser](params, self.bank.widths).state.values()
        work = self.planned(self.concurrent(networks)) * (1 if self.together else max(1, workers))
        return networks * row * (2 + 2 * moving) + sum(tensor.nbytes for tensor in moments) + work

    def check_memory(self, workers: int) -> None:
        """Raises MemoryError when training the bank would not fit its device."""
        K = len(self.bank)
        what = f"training {K} networks at batch {self.recipe.batch_size}"
        check_memory(self.needed(K, workers), self.bank.device, what)

    def draw(self, make: Callable, k: int, done: int) -> tuple:
        """A chunk of batches for network k: its stream belongs to the chunk, so resuming needs no state of it."""
        block = self.bank.first + k
        generator = stream(self.recipe.seed, block, 1, done // CHUNK)
        return make(self.bank, self.data, self.recipe, block, CHUNK, generator)

    def average_in(self, average: NetworkStack | None, part: slice) -> None:
        """Lets the moving average follow by one step; running statistics are means already and are copied."""
        if average is not None:
            for name, tensor in average.tensors.items():
                weight = 1 - self.recipe.ema if name == "params" else 1.0
                tensor[part].lerp_(self.bank.tensors[name][part], weight)

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


def rows_of(batch_size: int, done: int, n: int) -> list[slice]:
    """Where the batches of n updates lie in a chunk's rows.

    Example:
        >>> rows_of(8, 50, 2)
        [slice(0, 8, None), slice(8, 16, None)]
    """
    start = done % CHUNK
    return [slice((start + i) * batch_size, (start + i + 1) * batch_size) for i in range(n)]
