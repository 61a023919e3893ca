"""The loop of every training: chunks of updates, a look at their losses, a way back when one is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.machine.checks import check_count
from psmlib.machine.deadline import Unfinished, late

CHUNK = 50
"""Updates between two looks at the losses; random numbers are drawn a chunk at a time."""


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        update: Updates done.
        updates: Updates to do.
        loss: Mean loss of each network over the last chunk. Shape: (K,).
        seconds: Time spent, that of earlier calls included.
    """

    update: int
    updates: int
    loss: Tensor
    seconds: float


def guarded(
    step: Callable[[int, int], Tensor], networks: Sequence[Tensor], *, updates: int, done: int = 0, size: int = 1,
    blame: Callable[[int, float, int, int], str], save: Callable[[int, float], None] | None = None,
    save_every: int = 2000, chunk: int = CHUNK, spent: float = 0.0,
) -> Iterator[Progress]:  # fmt: skip
    """Does updates chunk by chunk, yielding after each; a chunk with a loss that is not finite is undone.

    Args:
        step: ``step(done, n)`` does n updates after the first ``done`` and returns mean losses, (K,), not finite for a
            network that is no longer sound.
        networks: The tensors to put back when a chunk is undone.
        updates: How many updates in all.
        done: How many were done before.
        size: Number of networks, K.
        blame: The sentence of the error, from (network, loss, updates before the chunk, after it).
        save: Writes the state, after so many updates and seconds.
        save_every: Updates between two calls of ``save``; the last state is always saved, and that at a deadline.
        chunk: Updates between two looks at the losses.
        spent: Seconds that the updates done before took.

    Raises:
        ValueError: when ``save_every`` is not positive.
        FloatingPointError: when a loss is not finite.
        Unfinished: at a deadline (:mod:`psmlib.machine.deadline`), if there is a ``save``.

    Example:
        >>> [progress.update for progress in guarded(lambda done, n: torch.ones(1), [], updates=60, blame=str)]
        [50, 60]
    """
    check_count("save_every", save_every)
    began = time.perf_counter() - spent
    if done >= updates:
        yield Progress(done, updates, torch.full((size,), torch.nan), spent)
    elif save is not None and late():  # only what can go on later ends at a deadline
        raise Unfinished(done, updates, spent)
    while done < updates:
        # a chunk of random numbers is never left half used, wherever the run was stopped
        n = min(chunk - done % chunk, updates - done)
        before = [tensor.clone() for tensor in networks]
        loss = step(done, n)
        if not bool(loss.isfinite().all()):
            for tensor, kept in zip(networks, before, strict=True):
                tensor.copy_(kept)
            bad = int((~loss.isfinite()).nonzero()[0])
            raise FloatingPointError(blame(bad, float(loss[bad]), done, done + n))
        done += n
        seconds, ends = time.perf_counter() - began, save is not None and late()
        if save is not None and (done % save_every < chunk or done == updates or ends):
            save(done, seconds)
        yield Progress(done, updates, loss, time.perf_counter() - began)
        if ends and done < updates:
            raise Unfinished(done, updates, seconds)
