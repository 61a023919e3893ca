"""Runs of notebooks by papermill: their order in the book, whether they are up to date, and their time limit."""

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from psmlib.book import captions
from psmlib.machine import paths
from psmlib.machine.files import FileError, read_notebook, read_text, reading, write_atomic


def toc_pages(toc: Path | None = None) -> list[str]:
    """Return the pages of the book in reading order.

    Args:
        toc: The table of contents; by default the book's own `_toc.yml`.

    Returns:
        Page names as they stand there, such as `"index"` or `"_executed/psm_toys"`.

    Raises:
        FileError: If it is damaged.
    """

    def walk(node: Mapping[str, Any]) -> Iterable[str]:
        yield from (node[key] for key in ("root", "file") if key in node)
        for key in ("parts", "chapters", "sections"):
            for item in node.get(key, []):
                yield from walk(item)

    toc = toc or paths.ROOT / "book" / "_toc.yml"
    with reading(toc.name, "restore it from the repository"):
        pages = list(walk(yaml.safe_load(read_text(toc))))
        if not pages or not all(isinstance(page, str) for page in pages):
            raise ValueError(f"it lists {pages}")
        return pages


def toc_notebooks() -> list[str]:
    """Return the names of the notebooks in the table of contents, in reading order."""
    return [page.removeprefix("_executed/") for page in toc_pages() if page.startswith("_executed/")]


def metadata(template: Path) -> dict[str, Any]:
    """Return a notebook's own `psmlib` metadata: `tables`, `title` and, if it reads other results, `uses`."""
    document = read_notebook(template)
    with reading(f"{template.parent.name}/{template.name}", "restore it from the repository"):
        about = document["metadata"].get("psmlib", {})
        lists = [about.get(name, []) for name in ("tables", "uses")]
        if not all(isinstance(entry, str) for entries in lists for entry in entries):
            raise ValueError(f"its tables and uses are {lists}")
    return about


def staleness_key(template: Path, parameters: Mapping[str, Any]) -> str:
    """Hash everything that a run depends on.

    Args:
        template: The notebook.
        parameters: The parameters it will run with.

    Returns:
        A hexadecimal digest of the notebook, its parameters, the source of psmlib, the lock, the data files except
        those that notebooks write, its own record and that of the notebooks that it names under `uses` (except its own
        at this profile, which it writes), and the benchmarks' files if it reads them.
    """
    digest = hashlib.sha256(json.dumps(dict(parameters), sort_keys=True).encode())
    source = [f for f in paths.PACKAGE.rglob("*") if "__pycache__" not in f.parts]
    written = ("results", "bench", "cache")
    data = [f for f in paths.DATA.rglob("*") if f.relative_to(paths.DATA).parts[0] not in written]
    own = paths.RESULTS / str(parameters.get("profile")), template.stem
    names = {template.stem, *metadata(template).get("uses", [])}
    used = [f for name in sorted(names) for f in paths.RESULTS.glob(f"*/{name}.*") if (f.parent, name) != own]
    if b"bench_records" in template.read_bytes():
        used += (paths.DATA / "bench").glob("*.csv")
    for file in [template, *sorted(source), paths.LOCK, *sorted(data), *sorted(used)]:
        if file.is_file():
            digest.update(f"\0{os.path.relpath(file, paths.ROOT)}\0".encode() + _content(file))
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    # Data sets may have gigabytes: their size and time of change are hashed in place of their content.
    if file.is_relative_to(paths.DATA / "raw"):
        return f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode()
    return hashlib.sha256(file.read_bytes()).digest()


@dataclass
class Run:
    """What is stored beside an executed notebook: its key, its run time, and the files that it wrote.

    Attributes:
        key: As of :func:`staleness_key`.
        seconds: Of the run.
        outputs: SHA-256 by file, relative to the output folder.
    """

    key: str
    seconds: float
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        texts = [self.key, *self.outputs, *self.outputs.values()]
        if not all(isinstance(text, str) for text in texts) or not 0 <= self.seconds < math.inf:
            raise ValueError("no record of a run")

    @classmethod
    def of(cls, name: str, key: str, outcome: "Outcome") -> "Run":
        """The record of a run that has just ended."""
        files = [paths.EXECUTED / f"{name}.ipynb", *(paths.OUTPUT / file for file in outcome.outputs)]
        digests = {f.relative_to(paths.OUTPUT).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
        return cls(key, round(outcome.seconds, 1), digests)

    @staticmethod
    def path(name: str) -> Path:
        """Return the file that holds the record of a notebook."""
        return paths.EXECUTED / f"{name}.key.json"

    @classmethod
    def load(cls, name: str) -> "Run | None":
        """Return the record of a notebook's last complete run, or None."""
        with suppress(OSError, FileError), reading(cls.path(name), "run it again"):
            return cls(**json.loads(read_text(cls.path(name))))
        return None

    def save(self, name: str) -> None:
        """Write the record beside the executed notebook."""
        write_atomic(self.path(name), json.dumps(self.__dict__, indent=1) + "\n")

    def fresh(self, name: str, key: str) -> bool:
        """Return whether the run is up to date: the key is the same, and every file is as the run left it."""
        executed = (paths.EXECUTED / f"{name}.ipynb").relative_to(paths.OUTPUT).as_posix()
        return self.key == key and executed in self.outputs and all(map(self._whole, self.outputs))

    def _whole(self, file: str) -> bool:
        try:
            return hashlib.sha256((paths.OUTPUT / file).read_bytes()).hexdigest() == self.outputs[file]
        except (OSError, ValueError):  # a damaged record may name what no file can be called
            return False


@dataclass
class Outcome:
    """Outcome of a run: its time, the files that it wrote, and the reason if it failed."""

    seconds: float
    outputs: list[str] = field(default_factory=list)
    reason: str = ""


class OutOfTime(Exception):
    """The time limit was reached during the run of a notebook."""


def execute(
    template: Path, output: Path, parameters: Mapping[str, Any], tick: Callable[[float], None] = lambda seconds: None
) -> Outcome:
    """Run one notebook by papermill in a separate process.

    Args:
        template: The notebook.
        output: The executed notebook; after a failed run it holds the partial output.
        parameters: Values for its parameters cell.
        tick: Called a few times a second with the seconds since the start.

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
            while (status := process.poll()) is None:
                tick(time.monotonic() - clock)
                time.sleep(0.25)
        finally:
            if process.poll() is None:
                _end(process.pid)
                process.wait()
    seconds = time.monotonic() - clock
    if status != 0:  # only the return code is reliable: papermill marks a timed-out notebook as completed
        return Outcome(seconds, reason=_reason(output, log, status))
    log.unlink()
    _prepare_for_the_book(output, template)
    return Outcome(seconds, _written_since(began))


def _end(number: int) -> None:
    """Ends a process and all that it has started: papermill's kernel, and the processes in which that trains."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(number)
        family = [*parent.children(recursive=True), parent]
        for call in ("terminate", "kill"):
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    getattr(process, call)()
            family = psutil.wait_procs(family, timeout=5)[1]


def run_within(
    jobs: Mapping[str, Callable[..., Outcome]], seconds: float, clock: Callable[[], float] = time.monotonic
) -> tuple[dict[str, Outcome], list[str]]:
    """Run jobs in order until all are done or the time is up.

    Args:
        jobs: By name; each takes `tick`, a function to call regularly, which raises `OutOfTime` when the time is up.
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
            done[name] = job(tick=tick)
        except OutOfTime:
            break
    return done, [name for name in jobs if name not in done]


def _environment() -> dict[str, str]:
    """Return the environment of a run: this psmlib first, at most one thread per core, no warnings of the kernel."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(cores))
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    quiet = {"PSMLIB_BATCH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    return threads | os.environ | quiet | {"PYTHONPATH": os.pathsep.join([str(paths.PACKAGE.parent), *inherited])}


def _prepare_for_the_book(output: Path, template: Path) -> None:
    """Completes the captions, and removes what is not to be published: default parameters, and papermill's paths."""
    with reading(f"{output.parent.name}/{output.name}", "run it again"):
        document = read_notebook(output, "run it again")
        tags = [set(cell["metadata"].get("tags", [])) for cell in document["cells"]]
        if any("injected-parameters" in own for own in tags):
            document["cells"] = [c for c, own in zip(document["cells"], tags, strict=True) if "parameters" not in own]
        captions.complete(document)
        document["metadata"]["papermill"] |= {"input_path": template.name, "output_path": output.name}
    write_atomic(output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _written_since(began: float) -> list[str]:
    """Return the results and generated files written since a moment, relative to the output folder."""
    files = (f for folder in (paths.RESULTS, paths.GENERATED) for f in folder.rglob("*") if f.is_file())
    # One second earlier, because file systems store coarser times than the clock gives.
    return sorted(f.relative_to(paths.OUTPUT).as_posix() for f in files if f.stat().st_mtime >= began - 1)


def _reason(output: Path, log: Path, status: int) -> str:
    """Return why a run failed, in a few words, from the partial notebook or else from papermill's log."""
    with suppress(OSError, FileError), reading(output, "run it again"):
        for number, cell in enumerate(read_notebook(output)["cells"]):
            for result in cell.get("outputs", []):
                if result.get("output_type") == "error":
                    message = " ".join(str(result.get("evalue", "")).split())
                    return f"cell {number}: {result.get('ename')}: {message}"
    if status < 0:
        return f"ended by signal {-status} (9 is sent when memory is exhausted)"
    lines = [line for line in map(str.strip, log.read_text(encoding="utf-8", errors="replace").split("\n")) if line]
    return lines[-1] if lines else f"papermill ended with status {status}"
