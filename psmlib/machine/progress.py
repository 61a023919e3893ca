"""Progress bars that disappear when the work is done."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class _NotebookOutput:
    """A file for tqdm that writes into one updatable output of a notebook cell."""

    def __init__(self):
        from IPython.display import Pretty, display

        self._wrap = Pretty
        self._handle = display(Pretty(""), display_id=True)

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self._handle.update(self._wrap(text))

    def flush(self) -> None:
        """Does nothing: nothing is buffered."""

    def clear(self) -> None:
        """Empties the output."""
        self._handle.update(self._wrap(""))


def in_notebook() -> bool:
    """Whether the code runs in the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


@contextmanager
def _tqdm(items: Iterable | None = None, **settings) -> Iterator[tqdm]:
    """A tqdm bar in a notebook's output, in the terminal, or, in batch runs and files, nowhere."""
    batch = bool(os.environ.get("PSMLIB_BATCH"))
    cell = _NotebookOutput() if in_notebook() and not batch else None
    quiet = cell is None and (batch or not sys.stderr.isatty())
    look = dict(ascii=True, ncols=90) if cell else {}
    line = tqdm(items, leave=False, disable=quiet, file=cell or sys.stderr, **look, **settings)
    try:
        yield line
    finally:
        line.close()
        if cell:
            cell.clear()


def bar(items: Iterable, total: int | None = None, label: str = "", every: float = 0.5) -> Iterator:
    """Yields the items, showing how many are done and the time left.

    A terminal gets a line that disappears at the end; an interactive notebook gets an output that is emptied at the
    end; batch runs (environment variable PSMLIB_BATCH) and files get nothing.

    Args:
        items: What to yield.
        total: Number of items, if ``items`` has no length.
        label: Text before the bar.
        every: Seconds between updates.

    Example:
        >>> sum(bar([1, 2, 3]))
        6
    """
    with _tqdm(items, total=total, desc=label or None, mininterval=every) as line:
        yield from line


def training_bar(run: Iterable, label: str = "training") -> Iterator:
    """A bar over the updates of :func:`psmlib.training.loop.fit`, which yields its progress now and then.

    Example:
        >>> list(training_bar([]))
        []
    """
    with _tqdm(desc=label, unit="update") as line:
        for progress in run:
            line.total = progress.updates
            line.update(progress.update - line.n)
            yield progress
