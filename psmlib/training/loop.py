r"""Training every block at once, each on its own random stream.

A network's course depends on (seed, its index) alone: a bank of K equals K separate runs, whatever the number
of threads, and a run that was stopped goes on exactly where it was. On a CPU the networks are trained one after
another in short chunks, so that each one's activations stay in the cache; threads share the chunks out. On an
accelerator MLPs take each step together and U-Nets take turns at one recorded step; see
:mod:`psmlib.training.mlp_steps` for these engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.machine.memory import check_memory
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.image_steps import STEPS
from psmlib.training.mlp_steps import CHUNK
from psmlib.training.objectives import Denoising, FlowMatching
from psmlib.training.optim import OPTIMISERS, SCHEDULES, Adam


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        update: Updates done per network.
        updates: Updates to do per network.
        loss: Mean loss of each network over the last chunk. Shape: (K,).
        seconds: Time spent in this call.
        bank: The raw networks as they are now.
        average: The exponential moving average of the networks, or None.
    """

    update: int
    updates: int
    loss: Tensor
    seconds: float
    bank: Bank | ImageBank
    average: Bank | ImageBank | None


def fit(
    bank: Bank | ImageBank, data, process: Process, partition: Partition, *,
    objective: Denoising | FlowMatching | None = None,
    updates: int, batch_size: int = 512, lr: float = 1e-3, seed: int = 0,
    optimiser: str = "adam", schedule: str = "constant",
    log_share: float = 0.0, t_min: float = 1e-5, ema: float | None = None, workers: int = 1,
    engine: str = "auto", streams: str = "auto",
    path: str | Path | None = None, resume: bool = False, save_every: int = 2000,
) -> Iterator[Progress]:  # fmt: skip
    """Trains network k of the bank on block k of the partition, in place, yielding after each chunk.

    The defaults recover Parallel Score Matching, Appendix H: batch 512, Adam at 1e-3, uniform times.

    Args:
        bank: The networks; changed in place.
        data: A density with ``sample(n, generator)`` (fresh draws each step), or a tensor of points
            (N, *shape).
        process: The Gaussian path.
        partition: As many blocks as the bank has networks, covering [0, T].
        objective: ``Denoising()`` or ``FlowMatching()``; by default the bank's native one.
        updates: Adam steps per network.
        batch_size: Points per step and network.
        lr: Learning rate (the peak, for "one_cycle").
        seed: Network k draws from the stream (seed, k).
        optimiser: "adam" or "soap".
        schedule: "constant" or "one_cycle".
        log_share: Share of training times drawn log-uniformly within the block.
        t_min: Where log-uniform times start in the first block.
        ema: Decay of the exponential moving average per step, or None.
        workers: Threads that share the networks out (engine "loop").
        engine: How the networks share the device: "loop", "products", "fused" or "rounded" for MLPs, "loop" or "graph"
            for image networks, "auto" for what suits it.
        streams: Where batches come from: "torch" (a generator for each network), "addressed" (MLPs: Philox words, made
            on the device for all networks at once), or "auto".
        path: Checkpoint file.
        resume: Go on from the checkpoint if it is there.
        save_every: Updates between checkpoints.

    Yields:
        A :class:`Progress` after every chunk of 50 updates.

    Raises:
        ValueError: for arguments that do not fit together, or a checkpoint of another run.
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
    objective = _objective(bank, objective)
    rate = _check(bank, process, partition, objective, updates, batch_size, lr, schedule, log_share, ema, optimiser)
    K, widths, steps = len(bank), bank.widths, STEPS[type(bank)]
    step = steps(
        bank, data, process, partition, objective, batch_size, seed, rate, log_share, t_min, ema, engine, streams
    )
    check_memory(step.needed(K, optimiser, workers), bank.device, f"training {K} networks at batch {batch_size}")
    moments, average, done = OPTIMISERS[optimiser](bank.params, widths), bank.copy() if ema else None, 0
    about = description(
        bank, data, process, partition, objective=objective, updates=updates, batch_size=batch_size, lr=lr, seed=seed,
        optimiser=optimiser, schedule=schedule, log_share=log_share, t_min=t_min, ema=ema, streams=streams,
    )  # fmt: skip
    if path is not None and resume and Path(path).exists():
        tensors, found = checkpoint.load(path, about)
        done = found["done"]
        for name, tensor in _everything(bank, moments, average).items():
            tensor.copy_(tensors[name])
        del tensors  # as much as the networks and their moments, for the rest of the run
    grad, began = torch.empty_like(bank.params), time.perf_counter()
    if done >= updates:
        yield Progress(done, updates, torch.full((K,), torch.nan), 0.0, bank, average)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while done < updates:
            # a chunk of random numbers is never left half used, wherever the run was stopped
            n = min(CHUNK - done % CHUNK, updates - done)
            networks = [tensor for held in (bank, average) if held is not None for tensor in held.tensors.values()]
            before = [tensor.clone() for tensor in networks]
            if step.together:
                loss = step.run(slice(0, K), moments, grad, average, done, n)
            else:
                jobs = [pool.submit(step.run, slice(k, k + 1), moments, grad, average, done, n) for k in range(K)]
                loss = torch.cat([job.result() for job in jobs])
            # the last step comes after the last loss, so the networks are looked at too
            sound = torch.linalg.vector_norm(bank.params, torch.inf, dim=1).isfinite()  # a mask would take memory
            loss = torch.where(sound, loss, torch.nan)
            if not bool(loss.isfinite().all()):
                for tensor, kept in zip(networks, before, strict=True):
                    tensor.copy_(kept)
                bad = int((~loss.isfinite()).nonzero()[0])
                block = bank.first + bad
                raise FloatingPointError(
                    f"the loss of block {block} {partition.bounds(block)} is {float(loss[bad])} between updates {done} "
                    f"and {done + n}: lower lr ({lr:g}) or check the data; the networks were put back to update {done}"
                )
            done += n
            if path is not None and (done % save_every < CHUNK or done == updates):
                checkpoint.save(path, _everything(bank, moments, average), {**about, "done": done})
            yield Progress(done, updates, loss, time.perf_counter() - began, bank, average)


def description(
    bank: Bank | ImageBank, data, process: Process, partition: Partition, *, objective: Denoising | FlowMatching | None,
    updates: int, batch_size: int, lr: float, seed: int, optimiser: str, schedule: str, log_share: float, t_min: float,
    ema: float | None, streams: str = "auto", **_,
) -> dict:  # fmt: skip
    """What tells a run from others that cannot go on from it, as checkpoints remember it; arguments as of :func:`fit`.

    Engines are not among it: they differ by rounding.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.process import VP
        >>> run = dict(updates=50, batch_size=8, lr=1e-3, seed=0, optimiser="adam", schedule="constant", log_share=0.,
        ...            t_min=1e-5, ema=None)
        >>> description(Bank(Plain(), 2), HG(), VP(), Partition([0, .1, 1]), objective=None, **run)["objective"]
        'Denoising'
    """
    return {
        "arch": bank.description, "process": repr(process), "edges": list(partition.edges),
        "discrete": partition.discrete, "objective": type(_objective(bank, objective)).__name__,
        "batch_size": batch_size, "lr": lr, "optimiser": optimiser, "dtype": str(bank.params.dtype),
        "data": _name(data), "seed": seed, "schedule": schedule, "log_share": log_share, "t_min": t_min, "ema": ema,
        "streams": STEPS[type(bank)].source(bank, data, streams),
        "networks": len(bank) if bank.whole == len(bank) else [bank.first, len(bank), bank.whole],
        "schedule_updates": updates if schedule != "constant" else None,
    }  # fmt: skip


def _objective(bank: Bank | ImageBank, objective: Denoising | FlowMatching | None) -> Denoising | FlowMatching:
    """The one given, or the bank's native one."""
    return objective or (FlowMatching() if bank.native == "velocity" else Denoising())


def _everything(bank: Bank | ImageBank, moments: Adam, average: Bank | ImageBank | None) -> dict[str, Tensor]:
    """All tensors that a run goes on from, by their names in a checkpoint."""
    means = {} if average is None else {f"average_{name}": tensor for name, tensor in average.tensors.items()}
    return {**bank.tensors, **moments.state, **means}


def _name(data) -> str:
    """What a checkpoint remembers of the data."""
    return f"{tuple(data.shape)} points" if isinstance(data, Tensor) else getattr(data, "name", type(data).__name__)


def _check(
    bank, process, partition, objective, updates, batch_size, lr, schedule, log_share, ema, optimiser
) -> Callable:
    """Refuses arguments that do not fit together; returns the learning-rate schedule."""
    if bank.whole != len(partition):
        raise ValueError(f"the bank holds {bank.whole} networks but {partition!r} has {len(partition)} blocks")
    partition.check_covers(process)
    if objective.native != bank.native:
        raise ValueError(
            f"{type(objective).__name__} trains {objective.native!r} but the bank predicts {bank.native!r}: "
            f"make it with {type(bank).__name__}(..., native={objective.native!r})"
        )
    for name, value in (("updates", updates), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")
    if not 0 <= log_share <= 1:
        raise ValueError(f"log_share must lie in [0, 1], got {log_share!r}")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"ema must lie in (0, 1) or be None, got {ema!r}")
    for name, value, known in (("schedule", schedule, SCHEDULES), ("optimiser", optimiser, OPTIMISERS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(known)}")
    if optimiser == "soap" and not bank.widths:
        raise ValueError('SOAP works on the matrices of an MLP\'s layers: train image networks with optimiser="adam"')
    return SCHEDULES[schedule](lr, updates)
