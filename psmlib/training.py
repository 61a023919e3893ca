r"""Training every block at once, each on its own random stream.

A network's course depends on (seed, its index) alone: a bank of K equals K separate runs, whatever the number
of threads, and a run that was stopped goes on exactly where it was. On a CPU the networks are trained one after
another in short chunks, so that each one's activations stay in the cache; threads share the chunks out. On an
accelerator all of them take each step together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psmlib import checkpoint
from psmlib.gaussian_path import Process, expand
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.memory import check_memory
from psmlib.nets.bank import Bank, stream
from psmlib.objectives import Denoising, FlowMatching
from psmlib.optim import OPTIMISERS, SCHEDULES, Adam
from psmlib.partition import Partition

CHUNK = 50
"""Updates between two looks at the loss; random numbers are drawn a chunk at a time."""


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
    bank: Bank
    average: Bank | None


def draw_times(
    partition: Partition, k: int, n: int, generator: torch.Generator, log_share: float, t_min: float
) -> Tensor:
    r"""Training times for block k: uniform, with a share drawn log-uniformly. Shape: (n,), float64.

    The likelihood weighs the noise-prediction error by :math:`d\log\mathrm{SNR}`, which is close to
    :math:`d\log t` near t = 0, where uniform times hardly ever look.

    Args:
        partition: The blocks.
        k: Which block.
        n: How many times.
        generator: Source of randomness.
        log_share: Share of log-uniform draws, 0 for the papers' uniform sampling.
        t_min: Left end of the log-uniform draws in the block that starts at 0.
    """
    lo, hi = partition.bounds(k)
    if partition.discrete:
        return torch.full((n,), hi, dtype=torch.float64)
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    t = lo + (hi - lo) * (1 - u)  # 1 - u is never 0, and at t = 0 there is no noise to predict
    if log_share:
        start = max(lo, min(t_min, hi / 2))
        chosen = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device) < log_share
        t = torch.where(chosen, start * (hi / start) ** u, t)
    return t


def make_batch(
    bank: Bank, data, process: Process, partition: Partition, objective, k: int, n: int,
    generator: torch.Generator, log_share: float, t_min: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Network inputs (n, F) and regression targets (n, d) for block k."""
    dtype = bank.params.dtype
    if isinstance(data, Tensor):
        rows = torch.randint(len(data), (n,), generator=generator, device=generator.device)
        x0 = data[rows.to(data.device)].to(bank.device, dtype)
    else:
        x0 = data.sample(n, generator).to(bank.device, dtype)
    t = draw_times(partition, k, n, generator, log_share, t_min).to(bank.device)
    eps = torch.randn(x0.shape, generator=generator, dtype=dtype, device=generator.device).to(bank.device)
    x = process.perturb(x0, t, eps)
    target = objective.target(process, x0, t, eps)
    skip = bank.arch.skip(t, process, bank.native)
    if skip is not None:
        target = target - expand(skip, x) * x
    return bank.arch.features(x, t, process), target


def fit(
    bank: Bank, data, process: Process, partition: Partition, *, objective: Denoising | FlowMatching | None = None,
    updates: int, batch_size: int = 512, lr: float = 1e-3, seed: int = 0,
    optimiser: str = "adam", schedule: str = "constant",
    log_share: float = 0.0, t_min: float = 1e-5, ema: float | None = None, workers: int = 1,
    path: str | Path | None = None, resume: bool = False, save_every: int = 2000,
) -> Iterator[Progress]:  # fmt: skip
    """Trains network k of the bank on block k of the partition, in place, yielding after each chunk.

    The defaults recover Parallel Score Matching, Appendix H: batch 512, Adam at 1e-3, uniform times.

    Args:
        bank: The networks; changed in place.
        data: A density with ``sample(n, generator)`` (fresh draws each step), or a tensor of points (N, d).
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
        workers: Threads that share the networks out (CPU).
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
    objective = objective or (FlowMatching() if bank.native == "velocity" else Denoising())
    rate = _check(bank, process, partition, objective, updates, batch_size, lr, schedule, log_share, ema, optimiser)
    K, F = len(bank), bank.arch.widths[0]
    planned = OPTIMISERS[optimiser](bank.params.to("meta"), bank.arch.widths).state.values()
    state = bank.params.nbytes * (2 + 2 * (ema is not None)) + sum(tensor.nbytes for tensor in planned)
    live = 1 if bank.device.type == "cpu" else K
    batch = bank.params.element_size() * batch_size * live * (3 * sum(bank.arch.widths) + CHUNK * 2 * F)
    check_memory(state + batch * max(1, workers), bank.device, f"training {K} networks at batch {batch_size}")
    moments, average, done = OPTIMISERS[optimiser](bank.params, bank.arch.widths), bank.copy() if ema else None, 0
    about = {
        "arch": repr(bank.arch), "process": repr(process), "edges": list(partition.edges),
        "discrete": partition.discrete, "objective": type(objective).__name__, "batch_size": batch_size, "lr": lr,
        "optimiser": optimiser, "dtype": str(bank.params.dtype), "data": _name(data), "seed": seed,
        "schedule": schedule, "log_share": log_share, "t_min": t_min, "ema": ema, "networks": K,
        "schedule_updates": updates if schedule != "constant" else None,
    }  # fmt: skip
    if path is not None and resume and Path(path).exists():
        tensors, found = checkpoint.load(path, about)
        done = found["done"]
        for name, tensor in {"params": bank.params, **moments.state}.items():
            tensor.copy_(tensors[name])
        if average is not None:
            average.params.copy_(tensors["average"])
    grad, began = torch.empty_like(bank.params), time.perf_counter()
    step = _Steps(bank, data, process, partition, objective, batch_size, seed, rate, log_share, t_min, ema)
    if done >= updates:
        yield Progress(done, updates, torch.full((K,), torch.nan), 0.0, bank, average)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while done < updates:
            # a chunk of random numbers is never left half used, wherever the run was stopped
            n = min(CHUNK - done % CHUNK, updates - done)
            before = [held.params.clone() for held in (bank, average) if held is not None]
            if bank.device.type == "cpu":
                jobs = [pool.submit(step.run, slice(k, k + 1), moments, grad, average, done, n) for k in range(K)]
                loss = torch.cat([job.result() for job in jobs])
            else:
                loss = step.run(slice(0, K), moments, grad, average, done, n)
            # the last step comes after the last loss, so the networks are looked at too
            loss = torch.where(bank.params.isfinite().all(1), loss, torch.nan)
            if not bool(loss.isfinite().all()):
                for held, kept in zip((bank, average), before, strict=False):
                    held.params.copy_(kept)
                bad = int((~loss.isfinite()).nonzero()[0])
                raise FloatingPointError(
                    f"the loss of block {bad} {partition.bounds(bad)} is {float(loss[bad])} between updates {done} and "
                    f"{done + n}: lower lr ({lr:g}) or check the data; the networks were put back to update {done}"
                )
            done += n
            if path is not None and (done % save_every < CHUNK or done == updates):
                extra = {"average": average.params} if average is not None else {}
                checkpoint.save(path, {"params": bank.params, **moments.state, **extra}, {**about, "done": done})
            yield Progress(done, updates, loss, time.perf_counter() - began, bank, average)


@dataclass
class _Steps:
    """One chunk of updates for a slice of the bank."""

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

    def run(self, part: slice, moments: Adam, grad: Tensor, average: Bank | None, done: int, n: int) -> Tensor:
        """Does n updates for the networks in ``part``; returns their mean losses. Shape: (K of the part,)."""
        bank, B = self.bank, self.batch_size
        batches = []
        for k in range(part.start, part.stop):
            # A chunk's stream is addressed by its first update, so resuming needs no generator state
            generator = stream(self.seed, k, 1, done // CHUNK)
            batches.append(
                make_batch(
                    bank, self.data, self.process, self.partition, self.objective, k, CHUNK * B, generator,
                    self.log_share, self.t_min,
                )
            )  # fmt: skip
        inputs = torch.stack([b[0] for b in batches]).unflatten(1, (CHUNK, B)).transpose(0, 1).contiguous()
        targets = torch.stack([b[1] for b in batches]).unflatten(1, (CHUNK, B)).transpose(0, 1).contiguous()
        params, grads = bank.params[part], grad[part]
        moments = moments.part(part)
        work, total = BankMLP(bank.arch.widths, inputs[0]), params.new_zeros(len(batches))
        start = done % CHUNK
        for i in range(n):
            total += work.gradient(params, inputs[start + i], targets[start + i], grads)
            moments.step(params, grads, lr=self.rate(done + i), count=done + i + 1)
            if average is not None:
                average.params[part].lerp_(params, 1 - self.ema)
        return total / n


def _name(data) -> str:
    """What a checkpoint remembers of the data."""
    return f"{tuple(data.shape)} points" if isinstance(data, Tensor) else getattr(data, "name", type(data).__name__)


def _check(
    bank, process, partition, objective, updates, batch_size, lr, schedule, log_share, ema, optimiser
) -> Callable:
    """Refuses arguments that do not fit together; returns the learning-rate schedule."""
    if len(bank) != len(partition):
        raise ValueError(f"the bank holds {len(bank)} networks but {partition!r} has {len(partition)} blocks")
    partition.check_covers(process)
    if objective.native != bank.native:
        raise ValueError(
            f"{type(objective).__name__} trains {objective.native!r} but the bank predicts {bank.native!r}: "
            f"make it with Bank(..., native={objective.native!r})"
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
    return SCHEDULES[schedule](lr, updates)
