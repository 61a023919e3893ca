"""Running notebooks: their order in the book, whether a run is up to date, and runs by papermill within a time."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from psmlib.machine import paths
from psmlib.machine.files import write_atomic


def toc_pages(toc: Path | None = None) -> list[str]:
    """Return the pages of the book in reading order.

    Args:
        toc: The table of contents; by default the book's own `_toc.yml`.

    Returns:
        Page names as they stand there, such as `"index"` or `"_executed/psm_toys"`.
    """

    def walk(node: Any) -> Iterable[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key, []))

    toc = toc or paths.ROOT / "book" / "_toc.yml"
    return list(walk(yaml.safe_load(toc.read_text(encoding="utf-8"))))


def toc_notebooks() -> list[str]:
    """Return the names of the notebooks in the table of contents, in reading order."""
    return [page.removeprefix("_executed/") for page in toc_pages() if page.startswith("_executed/")]


def metadata(template: Path) -> dict[str, Any]:
    """Return a notebook's own `psmlib` metadata: `tables`, `title` and, if it reads other results, `uses`."""
    return json.loads(template.read_text(encoding="utf-8"))["metadata"].get("psmlib", {})


def staleness_key(template: Path, parameters: Mapping[str, Any]) -> str:
    """Hash everything that a run depends on.

    Args:
        template: The notebook.
        parameters: The parameters it will run with.

    Returns:
        A hexadecimal digest of the notebook, its parameters, the source of psmlib, the lock, the data files,
        the results of the notebooks that it names under `uses` (its own at this profile, which it writes, left out),
        and the benchmarks' files if it reads them.
    """
    digest = hashlib.sha256(json.dumps(dict(parameters), sort_keys=True).encode())
    source = [f for f in paths.PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    own = paths.RESULTS / str(parameters.get("profile")) / f"{template.stem}.json"
    used = [f for name in metadata(template).get("uses", []) for f in paths.RESULTS.glob(f"*/{name}.json")]
    if b"bench_records" in template.read_bytes():
        used += (paths.DATA / "bench").glob("*.csv")
    for file in [template, *sorted(source), paths.LOCK, *_data_files(), *sorted(f for f in used if f != own)]:
        if file.is_file():
            digest.update(f"\0{os.path.relpath(file, paths.ROOT)}\0".encode() + _content(file))
    return digest.hexdigest()


def _data_files() -> list[Path]:
    """Return the data files that notebooks read, without those that they write and without caches."""
    written = ("results", "bench", "cache")
    files = (f for f in paths.DATA.rglob("*") if f.is_file())
    return sorted(f for f in files if f.relative_to(paths.DATA).parts[0] not in written)


def _content(file: Path) -> bytes:
    # Data sets may be gigabytes: size and time of change stand for their content.
    if file.is_relative_to(paths.DATA / "raw"):
        return f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode()
    return hashlib.sha256(file.read_bytes()).digest()


@dataclass
class Record:
    """What is stored beside an executed notebook: its key, its run time and the files it wrote."""

    key: str
    seconds: float
    outputs: list[str] = field(default_factory=list)

    @staticmethod
    def path(name: str) -> Path:
        """Return the file that holds the record of a notebook."""
        return paths.EXECUTED / f"{name}.key.json"

    @classmethod
    def load(cls, name: str) -> "Record | None":
        """Return the record of a notebook's last complete run, or None."""
        try:
            return cls(**json.loads(cls.path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, name: str) -> None:
        """Write the record beside the executed notebook."""
        write_atomic(self.path(name), json.dumps(self.__dict__, indent=1) + "\n")

    def fresh(self, name: str, key: str) -> bool:
        """Tell whether the run is up to date: same key, and every file that it wrote is still there."""
        needed = [paths.EXECUTED / f"{name}.ipynb", *(paths.OUTPUT / file for file in self.outputs)]
        return self.key == key and all(file.is_file() for file in needed)


@dataclass
class Outcome:
    """How a run ended: its run time, the files it wrote, and the reason if it failed."""

    seconds: float
    outputs: list[str] = field(default_factory=list)
    reason: str = ""


class OutOfTime(Exception):
    """The time limit was reached while a notebook ran."""


def execute(
    template: Path,
    output: Path,
    parameters: Mapping[str, Any],
    tick: Callable[[float], None] = lambda seconds: None,
) -> Outcome:
    """Run one notebook by papermill in a process of its own.

    Args:
        template: The notebook.
        output: Where the executed notebook goes; a failed run leaves its partial output there.
        parameters: Values for its parameters cell.
        tick: Called a few times a second with the seconds gone by.

    Returns:
        The outcome; `reason` is empty if and only if every cell ran.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".log")
    command = [sys.executable, "-m", "papermill", str(template), str(output), "-y", json.dumps(parameters)]
    command += ["-k", "python3", "--cwd", str(paths.ROOT), "--no-progress-bar", "--log-level", "ERROR"]
    began, clock = time.time(), time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=_environment())
        try:
            while (status := _wait(process)) is None:
                tick(time.monotonic() - clock)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    seconds = time.monotonic() - clock
    if status != 0:  # the return code alone is trusted: papermill marks a timed-out notebook as completed
        return Outcome(seconds, reason=_reason(output, log, status))
    log.unlink()
    _drop_machine_paths(output, template)
    return Outcome(seconds, _written_since(began))


def run_within(
    jobs: Mapping[str, Callable[[Callable[[float], None]], Outcome]], seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Outcome], list[str]]:  # fmt: skip
    """Run jobs in order until all are done or the time is up.

    Args:
        jobs: By name; each gets a function to call now and then, which raises `OutOfTime` when the time is up.
        seconds: The limit.
        clock: Seconds from some fixed moment.

    Returns:
        The outcomes of those that ended, and the names of the others.

    Example:
        >>> run_within({"a": lambda tick: Outcome(1.0), "b": lambda tick: Outcome(2.0)}, 60)[1]
        []
    """
    end, done = clock() + seconds, {}

    def tick(_: Any = None) -> None:
        if clock() > end:
            raise OutOfTime

    for name, job in jobs.items():
        try:
            tick()
            done[name] = job(tick)
        except OutOfTime:
            break
    return done, [name for name in jobs if name not in done]


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=0.25)
    except subprocess.TimeoutExpired:
        return None


def _environment() -> dict[str, str]:
    """Return the environment of a run: this psmlib first, no more threads than cores, no warnings of the kernel."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(name, str(cores))
    inherited = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    environment["PYTHONPATH"] = os.pathsep.join([str(paths.PACKAGE.parent), *inherited])
    quiet = {"PSMLIB_BATCH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    return environment | quiet


def _drop_machine_paths(output: Path, template: Path) -> None:
    """Remove the absolute paths that papermill records, because the book publishes its sources."""
    document = json.loads(output.read_text(encoding="utf-8"))
    document["metadata"]["papermill"] |= {"input_path": template.name, "output_path": output.name}
    write_atomic(output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _written_since(began: float) -> list[str]:
    """Return the results and generated files written since a moment, relative to the output folder."""
    files = (f for folder in (paths.RESULTS, paths.GENERATED) for f in folder.rglob("*") if f.is_file())
    # One second of slack: file systems keep coarser times than the clock.
    return sorted(f.relative_to(paths.OUTPUT).as_posix() for f in files if f.stat().st_mtime >= began - 1)


def _reason(output: Path, log: Path, status: int) -> str:
    """Say in a few words why a run failed: from the partial notebook, or else from papermill's log."""
    try:
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        cells = []
    for number, cell in enumerate(cells):
        for result in cell.get("outputs", []):
            if result.get("output_type") == "error":
                message = " ".join(str(result.get("evalue", "")).split())
                return f"cell {number}: {result.get('ename')}: {message}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    if status < 0:
        return f"ended by signal {-status} (9 is what an exhausted memory sends)"
    return lines[-1] if lines else f"papermill ended with status {status}"
