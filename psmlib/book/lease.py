"""What to do on an accelerator that is lent for minutes: steps in order of value, each within what is left of the time.

A step that has ended is remembered with the source that it ran, and is not done again; one that was cut off goes on
where it stopped, if what it kept is still there. What is written is small: rows, arrays, times, no weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from psmlib.book.results import load
from psmlib.machine import deadline, paths
from psmlib.machine.files import FileError, read_text, reading, write_atomic
from psmlib.machine.provenance import source_hash

SPARE = 20.0
"""Seconds before the end at which trainings keep their state, so that their rows can still be written."""


@dataclass(frozen=True)
class Step:
    """A command of a lease.

    Attributes:
        name: What it is called.
        seconds: The longest that it may take.
        command: Arguments of the Python interpreter.
        record: Profile and notebook of the record that it makes, if it makes one.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    record: tuple[str, str] | None = None


def steps(profile: str, device: str) -> tuple[Step, ...]:
    """The steps in order: are the kernels right, how fast are they, and then results that need an accelerator.

    Args:
        profile: "gpu", or "smoke" to try the whole path in a minute or two.
        device: Such as "cuda".
    """
    full = profile == "gpu"
    scale = ("--scale", "full" if full else "smoke", "--device", device, *(() if full else ("--no-write",)))
    found = [
        Step("tests of the kernels", 100.0, ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda")),
        Step("benchmarks", 110.0, ("-m", "psmlib.bench", *(("bank", "likelihood") if full else ("device",)), *scale)),
    ]
    run = ("-m", "psmlib.run", "notebook")
    for toy in ("TY", "HG") if full else ("TY",):
        choice = (("only", "TPSM-C"), ("dataset", toy), ("seeds", "1"), ("device", device))
        given = [word for pair in choice for word in ("-p", *pair)]
        at = "paper" if full else "smoke"
        command = (*run, "psm_toys", "--profile", at, *given)
        found.append(Step(f"TPSM-C at the paper's budget, {toy}", 420.0, command, (at, "psm_toys")))
    for name in ("psm_toys", "psm_images", "diffusion_time_images") if full else ():
        command = (*run, name, "--profile", profile, "-p", "device", device)
        found.append(Step(f"{name} at {profile}", 540.0, command, (profile, name)))
    return tuple(found)


def run(
    todo: Sequence[Step], minutes: float, say: Callable[[str], None], call: Callable[..., int | None] | None = None
) -> list[str]:
    """Does what is left of the steps until all are done or the time is up.

    Args:
        todo: The steps.
        minutes: The time.
        say: Takes a line about each step.
        call: Runs a command within some seconds; returns its exit status, or None if the time was up.

    Returns:
        The names of steps that are not done: they failed or were cut off, or there was no time for them.
    """
    call, end, undone = call or _call, time.monotonic() + 60 * minutes, []
    for step in todo:
        left = end - time.monotonic()
        if _done(step):
            say(f"{step.name}: done before")
            continue
        if left < 2 * SPARE:
            undone.append(step.name)
            continue
        began, status = time.monotonic(), call(step.command, min(step.seconds, left))
        whole = status == 0 and not (step.record and load(*step.record).provenance["unfinished"])
        outcome = {0: "begun", None: "cut off by the time limit"}.get(status, f"FAILED with status {status}")
        say(f"{step.name}: {'done' if whole else outcome} after {time.monotonic() - began:.0f} s")
        if whole:
            _remember(step)
        else:
            undone.append(step.name)
    return undone


def _call(command: Sequence[str], seconds: float) -> int | None:
    """Runs a command; its trainings are told to end before the time is up."""
    soon = {deadline.VARIABLE: str(time.time() + max(seconds - SPARE, 1.0))}
    try:
        what = [sys.executable, *command]
        return subprocess.run(what, cwd=paths.ROOT, env=os.environ | soon, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return None


def _memory() -> Path:
    return paths.OUTPUT / "data" / "cache" / "lease.json"


def _remembered() -> dict[str, str]:
    with suppress(OSError, FileError), reading(_memory(), "delete it"):
        return dict(json.loads(read_text(_memory())))
    return {}


def _key(step: Step) -> str:
    return f"{source_hash('')} {' '.join(step.command)}"


def _done(step: Step) -> bool:
    return _remembered().get(step.name) == _key(step)


def _remember(step: Step) -> None:
    write_atomic(_memory(), json.dumps(_remembered() | {step.name: _key(step)}, indent=1) + "\n")
