"""Training with stops: the same run looked at after several numbers of updates, each kept on disk if wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.bank.stack import NetworkStack
from psmlib.machine import paths
from psmlib.machine.fingerprints import digest
from psmlib.training.guarded import CHUNK
from psmlib.training.loop import fit
from psmlib.training.recipe import Recipe

SAVED = 10_000
"""Updates, of all networks together, between two writings of the running state: some ten seconds on a core."""


@dataclass(frozen=True)
class Snapshots:
    """What :func:`train` returns.

    Attributes:
        banks: The networks (their moving average, if one was kept) by number of updates.
        seconds: Time of training, all networks together, up to each stop.
        losses: Mean training loss of each network at each stop. Shape: (K,).
    """

    banks: dict[int, NetworkStack]
    seconds: dict[int, float]
    losses: dict[int, list[float]]


def place(notebook: str, profile: str, *parts) -> Path | None:
    """The folder of one run's snapshots, or None at the profiles that are over before it matters.

    Args:
        notebook: The notebook's name.
        profile: Its profile.
        *parts: What tells the run from its neighbours, such as toy, method and seed.

    Example:
        >>> place("psm_toys", "paper", "TY", "SA-DPM, flow matching", 0).name
        'TY_SA-DPM-flow-matching_0'
    """
    if profile in ("smoke", "quick"):
        return None
    name = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", str(part)).strip("-") for part in parts)
    return paths.OUTPUT / "data" / "cache" / notebook / profile / name


def train(
    bank: NetworkStack, data, process, partition, *, stops: Iterable[int], folder: Path | None = None, **settings
) -> Snapshots:
    """Trains a bank to the last stop and keeps a copy at each.

    With a constant learning rate one long run holds the shorter ones; other schedules depend on the last stop. What the
    folder holds of the stops is read; if a missing one lies before the state that the folder kept, training begins
    again, which gives the same networks.

    Args:
        bank: The networks to begin with. Those that were trained are in the answer.
        data: As in :func:`psmlib.training.loop.fit`.
        process: Likewise.
        partition: Likewise.
        stops: Numbers of updates per network, multiples of 50 but for the last.
        folder: Where snapshots and the running state are kept; a later call goes on from there. Without it, training
            does not end at a deadline.
        **settings: Passed on to ``fit``.

    Raises:
        ValueError: when a stop before the last is not a multiple of 50, or a file in ``folder`` is of a run with other
            settings.
        Unfinished: at a deadline (:mod:`psmlib.machine.deadline`), once the state is kept.

    Example:
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> sorted(train(Bank(Plain(), 1), HG(), VP(), SA, stops=[50, 100], batch_size=8).banks)
        [50, 100]
    """
    stops = sorted(set(stops))
    if not stops or stops[0] < 1 or any(stop % CHUNK for stop in stops[:-1]):
        raise ValueError(f"stops must be positive multiples of {CHUNK} updates, all but the last, got {stops}")
    kept = Snapshots({}, {}, {})
    recipe, _ = Recipe.of(bank, process, partition, {"updates": stops[-1], **settings})
    made_by = recipe.describe(bank, data)
    if folder is not None:
        _read(kept, folder, stops, bank, made_by)
    missing = [stop for stop in stops if stop not in kept.banks]
    if not missing:
        return _in_order(kept, stops)
    path = None if folder is None else folder / "running.safetensors"
    resume = _before(path, missing[0], made_by)
    often = dict(save_every=max(CHUNK, SAVED // len(bank)))
    how = dict(updates=stops[-1], path=path, resume=resume) | often | settings
    for progress in fit(bank, data, process, partition, **how):
        stop = progress.update
        if stop in missing:
            kept.banks[stop] = (progress.average or progress.bank).copy()
            kept.seconds[stop], kept.losses[stop] = progress.seconds, progress.loss.tolist()
            if folder is not None:
                about = {"seconds": kept.seconds[stop], "losses": kept.losses[stop], "run": made_by}
                kept.banks[stop].save(folder / f"{stop}.safetensors", **about)
        if stop >= missing[-1]:
            break
    return _in_order(kept, stops)


def _in_order(kept: Snapshots, stops: list[int]) -> Snapshots:
    return Snapshots(*({stop: part[stop] for stop in stops} for part in (kept.banks, kept.seconds, kept.losses)))


def _before(path: Path | None, stop: int, made_by: dict) -> bool:
    """Whether there is a state to go on from that lies before a stop."""
    if path is None or not path.exists():
        return False
    return checkpoint.count_in(checkpoint.load(path, made_by)[1], path) < stop


def _read(kept: Snapshots, folder: Path, stops: list[int], like: NetworkStack, made_by: dict) -> None:
    """Fills in the snapshots that are there, if they are of the same run."""
    for stop in stops:
        file = folder / f"{stop}.safetensors"
        if file.exists():
            bank, about = type(like).load(file, like.device)
            run, losses = about.get("run"), about.get("losses")
            if not isinstance(run, dict) or not isinstance(losses, list) or len(losses) != len(bank):
                raise ValueError(f"snapshot {file} does not tell of its run: delete it and train anew")
            checkpoint.check_same(run, made_by, f"snapshot {file}", "train", "in another folder")
            kept.banks[stop], kept.losses[stop] = bank, losses
            kept.seconds[stop] = checkpoint.seconds_in(about, file)


def kept(path: Path | None, make: Callable[[], dict[str, Tensor]], *of) -> dict[str, Tensor]:
    """What a long computation gives, from a file if it was made from the same things before.

    Args:
        path: The file; without one the computation is always done.
        make: The computation.
        *of: What its answer depends on: tensors, numbers, texts. With others it is done anew.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for n in (2, 2, 3):
        ...         x = kept(Path(folder) / "x.safetensors", lambda: print("made") or {"x": torch.ones(n)}, n)
        made
        made
    """
    about = {"of": digest(*of)}
    if path is not None and path.exists():
        with suppress(ValueError):  # another one's, or damaged
            return checkpoint.load(path, about)[0]
    found = make()
    if path is not None:
        checkpoint.save(path, found, about)
    return found
