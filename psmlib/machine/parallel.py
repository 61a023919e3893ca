"""Independent jobs shared out over processes, each with one thread.

On a CPU the networks of this book are so small that a second thread slows a matrix product down, while a
second process doubles the work done.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable

import joblib
import torch

from psmlib.machine.progress import bar

# a worker that has grown is replaced, its jobs go to the next; a reader need not hear of it
warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)


def cores() -> int:
    """Cores that this process may use.

    Example:
        >>> cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone(f: Callable, job: tuple):
    """Runs one job with one thread, and with its errors named."""
    torch.set_num_threads(1)
    return f(*job)


def share(
    f: Callable, jobs: Iterable[tuple], *, device: str = "cpu", label: str = "", workers: int | None = None
) -> list:
    """Calls f(*job) for each job and returns the answers in the order of the jobs.

    Args:
        f: A function; it may be defined in a notebook.
        jobs: Tuples of arguments. Put the longest first.
        device: On a "cuda" device the jobs run one after another in this process.
        label: For the progress bar.
        workers: Processes; by default the environment variable PSMLIB_WORKERS, else one per core.

    Example:
        >>> share(pow, [(2, 3), (3, 2)], workers=1)
        [8, 9]
    """
    jobs = list(jobs)
    workers = min(workers or int(os.environ.get("PSMLIB_WORKERS", 0)) or cores(), len(jobs) or 1)
    if not device.startswith("cpu") or workers == 1:
        return [f(*job) for job in bar(jobs, label=label)]
    run = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1)
    return list(bar(run(joblib.delayed(_alone)(f, job) for job in jobs), total=len(jobs), label=label))
