"""Training a Glow to be the auxiliary model of a shorter diffusion (How Much Is Enough?, CIFAR-10 and CelebA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.diffusion_time.auxiliary import Auxiliary
from psmlib.diffusion_time.noised_data import check_time
from psmlib.machine.checks import check_choice, check_count
from psmlib.machine.streams import stream
from psmlib.nets.glow import Glow
from psmlib.process import Process
from psmlib.training.batches import draw_points
from psmlib.training.guarded import CHUNK, Progress, guarded
from psmlib.training.optim import SCHEDULES
from psmlib.training.recipe import name_of


@dataclass
class GlowProgress(Progress):
    """Where the training of a Glow stands; the loss is the mean of -log nu(x_T), nats per image. Shape: (1,).

    Attributes:
        auxiliary: The model as it is now; it goes on changing until the training ends.
    """

    auxiliary: Auxiliary


def fit_glow(
    x_T: Tensor | Callable[[int, torch.Generator], Tensor], process: Process, T: float, *, updates: int,
    batch_size: int = 128, lr: float = 1e-3, schedule: str = "one_cycle", seed: int = 0, levels: int = 2,
    steps: int = 4, hidden: int = 32, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    path: str | Path | None = None, resume: bool = False, save_every: int = 2000,
) -> Iterator[GlowProgress]:  # fmt: skip
    """Trains a Glow on images x_T by maximum likelihood with Adam, yielding after each chunk.

    Args:
        x_T: Images to draw from, (N, C, H, W), or a function (n, generator) -> (n, C, H, W) that draws fresh ones, such
            as :func:`psmlib.diffusion_time.noised_data.diffused_batches` makes.
        process: That the images went through.
        T: Until when.
        updates: Adam steps.
        batch_size: Images per step; the first batch also sets the scales and shifts of the actnorms.
        lr: Learning rate (the peak, for "one_cycle").
        schedule: "constant" or "one_cycle".
        seed: Of the first values and of the batches.
        levels: Scales of the Glow.
        steps: Steps of the flow on each.
        hidden: Channels within its couplings.
        dtype: Of its parameters.
        device: Where it is trained.
        path: Checkpoint file.
        resume: Go on from the checkpoint if it is there.
        save_every: Updates between checkpoints.

    Yields:
        A :class:`GlowProgress` after every chunk of 50 updates; the last one's ``auxiliary`` is the model.

    Raises:
        ValueError: when T lies outside (0, process.T], for arguments that will not do, or a checkpoint of another run.
        FloatingPointError: when the loss is not finite; the model keeps its last finite state.

    Example:
        >>> from psmlib.diffusion_time.noised_data import diffused_batches
        >>> from psmlib.process import VP
        >>> draw = diffused_batches(torch.zeros(10, 1, 4, 4), VP(), .4)
        >>> for progress in fit_glow(draw, VP(), .4, updates=50, batch_size=16, levels=1, steps=1, hidden=4):
        ...     pass
        >>> progress.auxiliary.sample(2).shape
        torch.Size([2, 1, 4, 4])
    """
    _check(process, T, updates, batch_size, lr, schedule)
    rate = SCHEDULES[schedule](lr, updates)

    def batches(chunk: int) -> Iterator[Tensor]:
        """Those of a chunk, from a stream of its own: going on needs no state of it."""
        generator = stream(seed, 1, chunk)
        while True:
            x = draw_points(x_T, batch_size, generator) if isinstance(x_T, Tensor) else x_T(batch_size, generator)
            yield x.to(device=device, dtype=dtype)

    x = next(batches(0))
    net = Glow(x.shape[1:], levels=levels, steps=steps, hidden=hidden, seed=seed, dtype=dtype, device=device)
    net.initialise(x)
    about = {"updates": updates, "batch_size": batch_size, "lr": lr, "schedule": schedule, "seed": seed}
    auxiliary = Auxiliary(net, process, T, net.shape, "glow", about)
    optimiser, done, spent = torch.optim.Adam(net.parameters()), 0, 0.0
    run = {**about, "settings": net.settings, "process": repr(process), "T": T, "data": name_of(x_T)}
    run["dtype"] = str(dtype)
    if path is not None and resume and Path(path).exists():
        done, spent = _restore(path, run, net, optimiser)

    def step(done: int, n: int) -> Tensor:
        total = torch.zeros(1, dtype=torch.float64, device=device)
        for i, x in zip(range(done, done + n), batches(done // CHUNK), strict=False):
            optimiser.param_groups[0]["lr"] = rate(i)
            with torch.enable_grad():
                loss = -net.log_prob(x).mean()
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            total += loss.detach()
        sound = all(bool(p.isfinite().all()) for p in net.parameters())
        return total / n if sound else torch.full_like(total, torch.nan)

    def blame(k: int, loss: float, done: int, end: int) -> str:
        return (
            f"the loss of the Glow at T = {T:g} is {loss} between updates {done} and {end}: lower lr ({lr:g}) or check "
            f"the data; it was put back to update {done}"
        )

    def save(done: int, seconds: float) -> None:
        checkpoint.save(path, _state(net, optimiser), {**run, "done": done, "seconds": seconds})

    held = [tensor.detach() for tensor in net.state_dict().values()]
    for progress in guarded(
        step, held, updates=updates, done=done, blame=blame, save=None if path is None else save,
        save_every=save_every, spent=spent,
    ):  # fmt: skip
        yield GlowProgress(**vars(progress), auxiliary=auxiliary)


def _state(net: Glow, optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """Everything that a run goes on from: the network, and Adam's moments of each parameter, 0 at the start."""
    moments = {
        f"{kind}.{name}": optimiser.state[parameter].get(kind, torch.zeros_like(parameter))
        for name, parameter in net.named_parameters()
        for kind in ("exp_avg", "exp_avg_sq")
    }
    return {**net.state_dict(), **moments}


def _restore(path: str | Path, run: dict, net: Glow, optimiser: torch.optim.Adam) -> tuple[int, float]:
    """Puts back what :func:`_state` gave; returns the updates that had been done and the seconds that they took."""
    tensors, found = checkpoint.load(path, run, _state(net, optimiser))
    done = checkpoint.count_in(found, path)
    if done > run["updates"] or (done % CHUNK and done != run["updates"]):
        raise ValueError(f"checkpoint {path} has done = {done}, where no run stops: delete it and train anew")
    net.load_state_dict({name: tensors[name] for name in net.state_dict()})
    for name, parameter in net.named_parameters():
        moments = {kind: tensors[f"{kind}.{name}"].to(parameter) for kind in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": torch.tensor(float(done)), **moments}
    return done, checkpoint.seconds_in(found, path)


def _check(process: Process, T: float, updates: int, batch_size: int, lr: float, schedule: str) -> None:
    """Refuses what will not do."""
    check_time(process, T)
    check_count("updates", updates)
    check_count("batch_size", batch_size)
    check_choice("schedule", schedule, SCHEDULES)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")
