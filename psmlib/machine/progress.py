"""Progress bars that leave nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class _Cell:
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
        """Nothing is held back."""

    def clear(self) -> None:
        """Empties the output."""
        self._handle.update(self._wrap(""))


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


def _look() -> tuple[_Cell | None, dict]:
    """Where a bar goes: an output of the notebook, the terminal, or nowhere."""
    batch = bool(os.environ.get("PSMLIB_BATCH"))
    cell = _Cell() if _in_notebook() and not batch else None
    quiet = cell is None and (batch or not sys.stderr.isatty())
    shape = dict(ascii=True, ncols=90) if cell else {}
    return cell, dict(leave=False, disable=quiet, file=cell or sys.stderr, **shape)


def bar(items: Iterable[T], total: int | None = None, label: str = "", every: float = 0.5) -> Iterator[T]:
    """Passes items on, showing how far along and the time left.

    A terminal gets a line that disappears at the end; a notebook opened by a person gets an output that is
    emptied at the end; batch runs (environment variable PSMLIB_BATCH) and files get nothing.

    Args:
        items: What to pass on.
        total: How many there will be, if ``items`` has no length.
        label: Words before the bar.
        every: Seconds between updates.

    Example:
        >>> sum(bar([1, 2, 3]))
        6
    """
    cell, look = _look()
    try:
        yield from tqdm(items, total=total, desc=label or None, mininterval=every, **look)
    finally:
        if cell:
            cell.clear()


def fitting(run: Iterable, label: str = "training") -> Iterator:
    """A bar over the updates of :func:`psmlib.training.loop.fit`.

    Example:
        >>> list(fitting([]))
        []
    """
    cell, look = _look()
    line = None
    try:
        for progress in run:
            if line is None:
                line = tqdm(total=progress.updates, desc=label, unit="update", **look)
            line.update(progress.update - line.n)
            yield progress
    finally:
        if line is not None:
            line.close()
        if cell:
            cell.clear()
