"""Independent jobs in parallel processes, each with one thread.

On a CPU the networks of this book are so small that a second thread slows a matrix product down, while a second
process doubles the throughput.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import joblib
import torch

from psmlib.machine.deadline import Unfinished
from psmlib.machine.progress import bar

# joblib replaces a worker whose memory has grown and gives its jobs to another; nothing is lost
warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)


def cores() -> int:
    """Cores that this process may use.

    Example:
        >>> cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that starts none of the jobs that wait once an error or Ctrl-C ends the block.

    Example:
        >>> with threads(2) as pool:
        ...     list(pool.map(abs, [-1, 2]))
        [1, 2]
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _with_one_thread(f: Callable, job: tuple):
    """Runs one job with one thread."""
    torch.set_num_threads(1)
    return _unless_late(f, job)


def _unless_late(f: Callable, job: tuple):
    try:
        return f(*job)
    except Unfinished as unfinished:
        return unfinished


def parallel_map(
    f: Callable, jobs: Iterable[tuple], *, device: str = "cpu", label: str = "", workers: int | None = None
) -> list:
    """Calls f(*job) for each job in parallel processes and returns the results in the order of the jobs.

    A job that ends at a deadline gives its :class:`psmlib.machine.deadline.Unfinished` as its result.

    Args:
        f: A function; it may be defined in a notebook.
        jobs: Tuples of arguments; put the longest job first.
        device: On a "cuda" device the jobs run one after another in this process.
        label: Text before the progress bar.
        workers: Number of processes; by default the environment variable PSMLIB_WORKERS, else one per core.

    Example:
        >>> parallel_map(pow, [(2, 3), (3, 2)], workers=1)
        [8, 9]
    """
    jobs = list(jobs)
    workers = min(workers or int(os.environ.get("PSMLIB_WORKERS", 0)) or cores(), len(jobs) or 1)
    if not device.startswith("cpu") or workers == 1:
        return [_unless_late(f, job) for job in bar(jobs, label=label)]
    run = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1)
    return list(bar(run(joblib.delayed(_with_one_thread)(f, job) for job in jobs), total=len(jobs), label=label))
