"""Long runs at low priority: what is left of profile night, in order of value, an hour at a time.

A notebook's metadata names its stages, each with an order, the core-hours that it takes and parameters, such as one
seed first and three later. A stage is run in slices: when a slice is over, trainings keep their state and what is
finished is recorded (:mod:`psmlib.machine.deadline`), and the next slice goes on. Everything that a night writes on its
way lies in a folder of its own, so that it is in nobody's way; the record is put in its place when it is whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from psmlib.book.notebooks import Outcome, execute, metadata, toc_notebooks
from psmlib.book.parameters import ParameterError, resolve, template_of
from psmlib.book.results import Results, load
from psmlib.machine import deadline, paths
from psmlib.machine.files import FileError, read_text, reading, write_atomic
from psmlib.machine.parallel import cores

PROFILE = "night"


@dataclass(frozen=True)
class Stage:
    """A run of a notebook at profile night.

    Attributes:
        notebook: Its name.
        order: Its place among all stages, the most valuable first.
        hours: Core-hours that it takes.
        parameters: All parameters of the notebook.
    """

    notebook: str
    order: int
    hours: float
    parameters: dict[str, Any]

    def __str__(self) -> str:
        told = {k: v for k, v in self.parameters.items() if k in ("dataset", "seeds")}
        return f"{self.notebook} ({', '.join(f'{k} {v}' for k, v in told.items())})"


def stages(names: Sequence[str] = ()) -> list[Stage]:
    """The stages of some notebooks, by default of all, in order.

    Raises:
        ParameterError: When a notebook has no stage, or one of its stages names a parameter that it does not have.
    """
    found = []
    for name in names or toc_notebooks():
        template = template_of(name)
        asked = metadata(template).get(PROFILE, []) if template.is_file() else []
        if names and not asked:
            raise ParameterError(f"{name} has no stage of profile {PROFILE}: leave it out")
        for stage in asked:
            given = {"profile": PROFILE} | {k: str(v) for k, v in stage.get("parameters", {}).items()}
            found.append(Stage(name, int(stage["order"]), float(stage["hours"]), resolve(template, given)))
    return sorted(found, key=lambda stage: stage.order)


def recorded(notebook: str) -> Results | None:
    """What is on record of a notebook at profile night; None if there is nothing that can be read."""
    try:
        return load(PROFILE, notebook)
    except (FileNotFoundError, ValueError):
        return None


def left(stage: Stage, later: Sequence[Stage] = ()) -> float:
    """Hours that a stage still takes on this machine's cores; 0 if it, or a later one of its notebook, is on record.

    What has been begun counts by the rates that were measured, the rest by the hours that the stage is said to take.
    """
    run = recorded(stage.notebook)
    if run is None:
        return stage.hours / cores()
    if run.parameters in [s.parameters for s in later if s.notebook == stage.notebook]:
        return 0.0
    if run.parameters != stage.parameters:
        return stage.hours / cores()
    unfinished = (run.provenance or {}).get("unfinished", [])
    known = [job["seconds_left"] for job in unfinished if job["seconds_left"] is not None]
    share = stage.hours * 3600 / max(len(unfinished), 8)  # of a training that has not begun
    return (sum(known) + share * (len(unfinished) - len(known))) / 3600 / cores()


def run(
    names: Sequence[str], minutes: float, end: float, say: Callable[[str], None],
    runner: Callable[..., Outcome] = execute,
) -> int:  # fmt: skip
    """Runs what is left, slice after slice.

    Args:
        names: Notebooks; none for all.
        minutes: Length of a slice.
        end: When to stop at the latest, as of ``time.time``.
        say: Takes lines about what is done and what is left.
        runner: Executes a notebook, as :func:`psmlib.book.notebooks.execute`.

    Returns:
        0 if nothing is left, 1 if a notebook failed, 3 if the time is up.

    Raises:
        ParameterError: When a notebook has no stages, or another night is at work here.
    """
    todo, failed = stages(names), []
    with _alone(paths.OUTPUT / "data" / "cache" / PROFILE / "lock.json"):
        while waiting := [s for i, s in enumerate(todo) if s not in failed and left(s, todo[i + 1 :])]:
            for stage in waiting:
                say(f"  left: {stage}, about {left(stage):.1f} hours on {cores()} cores")
            if time.time() >= end:
                return 3
            stage = waiting[0]
            outcome = _slice(stage, min(time.time() + 60 * minutes, end), runner)
            if outcome.reason:
                failed.append(stage)
                say(f"{stage} FAILED: {outcome.reason}")
            else:
                say(f"{stage}: a slice of {outcome.seconds / 60:.0f} minutes is on record")
    return 1 if failed else 0


def _slice(stage: Stage, until: float, runner: Callable[..., Outcome]) -> Outcome:
    """Runs a stage until some moment and takes its record over."""
    own = paths.OUTPUT / "data" / "cache" / PROFILE
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ.update(one_thread | {"PSMLIB_OUTPUT": str(own), deadline.VARIABLE: str(until)})
    made = own / "data" / "results"
    _copy(stage.notebook, paths.RESULTS, made)  # a partial run adds to what is on record
    outcome = runner(template_of(stage.notebook), own / "executed" / f"{stage.notebook}.ipynb", stage.parameters)
    if not outcome.reason:
        _copy(stage.notebook, made, paths.RESULTS)
    return outcome


def _copy(notebook: str, source: Path, target: Path) -> None:
    """Copies the record of a notebook, the arrays first."""
    for file in (source / PROFILE / f"{notebook}.{ending}" for ending in ("npz", "json")):
        if file.is_file():
            write_atomic(target / PROFILE / file.name, file.read_bytes())


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Refuses a second night in the same folder, as long as the first is alive."""
    if other := _holder(lock):
        raise ParameterError(f"process {other} is at work on the night's runs here: stop it, or let it go on")
    me = psutil.Process()
    write_atomic(lock, json.dumps({"process": me.pid, "began": me.create_time()}))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _holder(lock: Path) -> int | None:
    """The process that holds a lock, if it is alive."""
    with suppress(OSError, FileError), reading(lock, "delete it"):
        held = json.loads(read_text(lock))
        if psutil.Process(held["process"]).create_time() == held["began"]:
            return held["process"]
    return None
