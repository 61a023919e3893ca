r"""Training every block at once, each on its own random stream.

Each network's training depends only on (seed, index): a bank of K equals K separate runs, whatever the number of
threads, and a run that was stopped goes on exactly where it was. On a CPU the networks are trained one after another in
short chunks, so that each one's activations stay in the cache; threads share the chunks out. On an accelerator MLPs
take each step together and image networks take turns at one recorded step (:mod:`psmlib.training.mlp_steps`,
:mod:`psmlib.training.image_steps`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.bank.stack import NetworkStack
from psmlib.machine.parallel import threads
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.guarded import CHUNK, Progress, guarded
from psmlib.training.image_steps import ImageSteps
from psmlib.training.mlp_steps import MLPSteps
from psmlib.training.optim import OPTIMISERS
from psmlib.training.recipe import Recipe
from psmlib.training.steps import Steps, run_tensors

STEPS: dict[type, type[Steps]] = {Bank: MLPSteps, ImageBank: ImageSteps}
"""Which class trains which bank."""


@dataclass
class BankProgress(Progress):
    """Where the training of a bank stands.

    Attributes:
        bank: The raw networks as they are now.
        average: The exponential moving average of the networks, or None.
    """

    bank: NetworkStack
    average: NetworkStack | None


def fit(
    bank: NetworkStack, data, process: Process, partition: Partition, *, engine: str | type = "auto",
    workers: int = 1, path: str | Path | None = None, resume: bool = False, save_every: int = 2000, **settings,
) -> Iterator[BankProgress]:  # fmt: skip
    """Trains network k of the bank on block k of the partition, in place, yielding after each chunk.

    Args:
        bank: The networks; changed in place.
        data: A density with ``sample(n, generator)`` (fresh draws each step), or a tensor of points (N, *shape).
        process: The Gaussian path.
        partition: As many blocks as the bank has networks, covering [0, T].
        engine: How the networks share the device: "loop", "products" or "fused" for MLPs, or a class of
            :class:`psmlib.kernels.bank_updates.BankUpdates`; "loop" or "graph" for image networks; "auto" for what
            suits it.
        workers: Threads that share the networks out (engine "loop").
        path: Checkpoint file.
        resume: Go on from the checkpoint if it is there.
        save_every: Updates between checkpoints.
        **settings: The other fields of :class:`psmlib.training.recipe.Recipe`: ``updates``, and perhaps ``objective``
            (the bank's native one by default), ``times``, ``batch_size``, ``lr``, ``seed``, ``optimiser``,
            ``schedule``, ``ema``.

    Yields:
        A :class:`BankProgress` after every chunk of 50 updates.

    Raises:
        ValueError: for arguments that do not fit together, or a checkpoint of another run.
        TypeError: for a setting that there is not.
        FloatingPointError: when a loss is not finite; the networks keep their last finite state.
        MemoryError: when the run would not fit, before it starts.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.process import VP
        >>> bank = Bank(Plain(), 2)
        >>> for progress in fit(bank, HG(), VP(0., 10.), Partition([0, .1, 1]), updates=50, batch_size=16):
        ...     pass
        >>> progress.update, progress.loss.shape
        (50, torch.Size([2]))
    """
    recipe, odd = Recipe.of(bank, process, partition, settings)
    if odd:
        raise TypeError(f"fit takes no {next(iter(odd))}=: settings are {', '.join(Recipe.__dataclass_fields__)}")
    steps = STEPS[type(bank)](bank, data, recipe, engine)
    steps.check_memory(workers)
    moments = OPTIMISERS[recipe.optimiser](bank.params, bank.widths)
    average, about = bank.copy() if recipe.ema else None, recipe.describe(bank, data)
    done, spent = 0, 0.0
    if path is not None and resume and Path(path).exists():
        tensors, found = checkpoint.load(path, about, run_tensors(bank, moments, average))
        done, spent = _done(found, path), checkpoint.seconds_in(found, path)
        for name, tensor in run_tensors(bank, moments, average).items():
            tensor.copy_(tensors[name])
        del tensors  # as much as the networks and their moments, for the rest of the run
    grad, K = torch.empty_like(bank.params), len(bank)
    networks = [tensor for held in (bank, average) if held is not None for tensor in held.tensors.values()]

    def save(done: int, seconds: float) -> None:
        now = {"done": done, "updates": recipe.updates, "seconds": seconds}
        checkpoint.save(path, run_tensors(bank, moments, average), {**about, **now})

    def blame(k: int, loss: float, done: int, end: int) -> str:
        block = bank.first + k
        return (
            f"the loss of block {block} {partition.bounds(block)} is {loss} between updates {done} and {end}: lower lr "
            f"({recipe.lr:g}) or check the data; the networks were put back to update {done}"
        )

    with threads(max(1, workers)) as pool:

        def step(done: int, n: int) -> Tensor:
            if steps.together:
                loss = steps.run(slice(0, K), moments, grad, average, done, n)
            else:
                jobs = [pool.submit(steps.run, slice(k, k + 1), moments, grad, average, done, n) for k in range(K)]
                loss = torch.cat([job.result() for job in jobs])
            # the last step comes after the last loss, so the networks are looked at too
            sound = torch.linalg.vector_norm(bank.params, torch.inf, dim=1).isfinite()  # a mask would take memory
            return torch.where(sound, loss, torch.nan)

        for progress in guarded(
            step, networks, updates=recipe.updates, done=done, size=K, blame=blame,
            save=None if path is None else save, save_every=save_every, spent=spent,
        ):  # fmt: skip
            yield BankProgress(**vars(progress), bank=bank, average=average)


def _done(found: dict, path: str | Path) -> int:
    """The updates that a checkpoint's run had done: the end of a chunk, or of the run."""
    done, updates = (checkpoint.count_in(found, path, name) for name in ("done", "updates"))
    if done > updates or (done % CHUNK and done != updates):
        raise ValueError(f"checkpoint {path} has done = {done} of {updates} updates, where no run stops: delete it")
    return done
