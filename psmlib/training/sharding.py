r"""Training a bank that does not fit in memory, one group of its networks after another.

Each network's training depends only on (seed, index), so a bank may be cut anywhere: the parts, joined, are
the bank trained whole, bit for bit; :mod:`psmlib.training.shard_plan` cuts it into as few as fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.bank.stack import NetworkStack
from psmlib.machine.files import read_text, reading, write_atomic
from psmlib.machine.memory import check_memory
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.loop import STEPS, fit
from psmlib.training.recipe import Recipe
from psmlib.training.shard_plan import Make, Plan, gib, plan, predicted


@dataclass
class Sharded:
    """Where a run stands.

    Attributes:
        plan: What was left to train when it began.
        group: The networks that are being trained; None before the first and after the last.
        update: Updates done per network of the group.
        loss: Mean loss of each of its networks over the last chunk. Shape: (networks of the group,).
        seconds: Time spent on the group in this call.
        bank: The whole bank, at the end alone.
        average: Its moving average, at the end alone and if one was kept.
    """

    plan: Plan
    group: range | None = None
    update: int = 0
    loss: Tensor | None = None
    seconds: float = 0.0
    bank: NetworkStack | None = None
    average: NetworkStack | None = None


def fit_sharded(
    make: Make, data, process: Process, partition: Partition, *,
    folder: str | Path, budget: float | None = None, join: bool = True, **settings,
) -> Iterator[Sharded]:  # fmt: skip
    """Trains a bank group by group, yielding the plan first and then after every chunk.

    Each finished group lies in the folder as a part of the bank, ``networks-<first>-<last>.safetensors``, beside its
    moving average if there is one. A later call with the same settings trains what is left, going on from the state of
    a group that was not finished; its budget may be another.

    Args:
        make: Makes a group of the bank's networks, such as ``lambda only: ImageBank(net, 100, only=only)``.
        data: As of :func:`psmlib.training.loop.fit`.
        process: The Gaussian path.
        partition: As many blocks as the whole bank has networks.
        folder: Where the groups are kept.
        budget: Bytes that a group may need; by default nine tenths of what the networks' device has free.
        join: Whether the whole bank is put together at the end, in the system's memory; see :func:`joined`.
        **settings: Passed on to ``fit``.

    Raises:
        ValueError: when the folder holds a run with other settings, or as ``fit`` does.
        MemoryError: when not even one network fits, or the whole bank is to be joined and does not, before training.

    Example:
        >>> import tempfile
        >>> from psmlib.nets import ronneberger
        >>> from psmlib.process import VP
        >>> make = lambda only: ImageBank(ronneberger.small(a=2), 3, only=only)
        >>> run = make, torch.zeros(9, 1, 8, 8), VP(), Partition.points(3)
        >>> kw = {"batch_size": 4, "updates": 2}
        >>> budget = predicted(run[0], 2, *run[1:], **kw)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for state in fit_sharded(*run, folder=folder, budget=budget, **kw):
        ...         print(state.group, state.update)
        None 0
        range(0, 2) 2
        range(2, 3) 2
        None 0
        >>> state.bank
        ImageBank(3 x Ronneberger of 1,963 parameters)
    """
    folder, run = Path(folder), (data, process, partition)
    found, finished = _begin(make, run, folder, budget, join, settings)
    yield Sharded(found)
    for group in finished:  # that its state is still there tells of a stop between two files
        _path(folder, "running", group).unlink(missing_ok=True)
    for group in found.groups:
        yield from _train(make, group, run, folder, settings, found)
    yield Sharded(found, None, 0, None, 0.0, *(joined(folder) if join else (None, None)))


def joined(folder: str | Path) -> tuple[Bank, Bank | None] | tuple[ImageBank, ImageBank | None]:
    """The bank that a folder of :func:`fit_sharded` holds, and its moving average or None, on the CPU.

    Raises:
        ValueError: when groups are missing or damaged.
    """
    folder = Path(folder)
    parts = {part: sorted(folder.glob(f"{part}-*.safetensors")) for part in ("networks", "average")}
    if not parts["networks"]:
        raise ValueError(f"{folder} holds no finished group of a bank: train with fit_sharded first")
    name = _made_by(folder).get("kind")
    with reading(folder, "train what is missing or damaged with fit_sharded"):
        kind = {kind.__name__: kind for kind in STEPS}[name]
        return tuple(kind.joined(kind.load(path)[0] for path in paths) if paths else None for paths in parts.values())


def _begin(
    make: Make, run: tuple, folder: Path, budget: float | None, join: bool, settings: dict
) -> tuple[Plan, list[range]]:
    """Looks at everything that can be refused before training; returns what to train and what is finished."""
    one, (data, process, partition) = make(range(1)), run
    recipe, _ = Recipe.of(one, process, partition, settings)
    own = {"kind": type(one).__name__, "networks": one.whole, "native": one.native, "start": one.seed}
    made_by = {**recipe.describe(one, data), **own, "updates": recipe.updates}  # as the folder remembers the run
    _check_folder(folder, made_by)
    finished, begun = _groups(folder, one.whole)
    found, needed = plan(make, *run, budget=budget, rest=_gaps(one.whole, finished + begun), **settings), []
    for group in begun:
        needed.append(predicted(make, len(group), *run, **settings))
        if needed[-1] > found.budget:
            begun_with = f"{_path(folder, 'running', group)} was begun with {len(group)} networks"
            limits = f"which need about {gib(needed[-1])}, but {gib(found.budget)} are allowed"
            raise MemoryError(f"{begun_with}, {limits}: allow more, or delete it to begin anew")
    if join:  # all parts and the whole, beside the other of networks and average
        size = (2 + (recipe.ema is not None)) * one.whole * sum(t.nbytes for t in one.tensors.values())
        check_memory(size, "cpu", f"joining {one.whole} networks at the end (join=True)")
    write_atomic(folder / "run.json", json.dumps(made_by, indent=1) + "\n")
    return Plan(one.whole, (*begun, *found.groups), (*needed, *found.needed), found.budget, found.device), finished


def _train(make: Make, group: range, run: tuple, folder: Path, settings: dict, found: Plan) -> Iterator[Sharded]:
    """Trains a group, or what is left of it, and puts it into its files."""
    if torch.device(found.device).type == "cuda":
        torch.cuda.empty_cache()  # what the last group gave back counts as taken until then
    bank, path = make(group), _path(folder, "running", group)
    for state in fit(bank, *run, path=path, resume=True, **settings):
        yield Sharded(found, group, state.update, state.loss, state.seconds)
    if state.average is not None:
        state.average.save(_path(folder, "average", group))
    bank.save(_path(folder, "networks", group))  # last, for it says that the group is finished
    path.unlink()


def _check_folder(folder: Path, made_by: dict) -> None:
    """Refuses a folder of another run."""
    if any(folder.glob("*.safetensors")):  # a run that ended before it had trained anything binds nobody
        checkpoint.check_same(_made_by(folder), made_by, str(folder / "run.json"), "train", "in another folder")


def _made_by(folder: Path) -> dict:
    """What a folder with networks remembers of their run."""
    file = folder / "run.json"
    if not file.exists():
        raise ValueError(f"{folder} holds networks but no run.json that tells how they were made: use another folder")
    with reading(file, "use another folder"):
        return dict(json.loads(read_text(file)))


def _path(folder: Path, kind: str, group: range) -> Path:
    """The file of a group."""
    return folder / f"{kind}-{group.start}-{group.stop - 1}.safetensors"


def _groups(folder: Path, size: int) -> tuple[list[range], list[range]]:
    """Groups that the folder holds, finished ones and those that were begun alone."""
    found = {"networks": set(), "running": set()}
    for path in folder.glob("*.safetensors"):
        if match := re.fullmatch(r"(networks|running)-(\d+)-(\d+)", path.stem):
            found[match[1]].add(range(int(match[2]), int(match[3]) + 1))
    finished, begun = found["networks"], found["running"] - found["networks"]
    held = [k for group in finished | begun for k in group]
    if len(held) != len(set(held)) or not set(held) <= set(range(size)):
        raise ValueError(f"the groups in {folder} are not those of one run: keep each network in one file")
    return tuple(sorted(part, key=lambda group: group.start) for part in (finished, begun))


def _gaps(size: int, taken: list[range]) -> list[range]:
    """The groups of 0..size that are not taken."""
    taken = sorted(taken, key=lambda group: group.start)
    borders = zip([0, *(group.stop for group in taken)], [*(group.start for group in taken), size], strict=True)
    return [range(a, b) for a, b in borders if a < b]
