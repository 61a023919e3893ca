"""Arrays too large for memory, or slow to make, kept as memory-mapped files in data/cache."""

import math
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from psmlib.machine import paths
from psmlib.machine.files import FileError, reading, replacing
from psmlib.machine.memory import check_memory


def folder() -> Path:
    """The folder of the cached files, below PSMLIB_OUTPUT like all output; it may be deleted."""
    return paths.OUTPUT / "data" / "cache"


def memory_mapped(stem: str, shape: tuple[int, ...], pieces: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """A uint8 array read from data/cache, where it is written first if it is missing.

    The file is written piece by piece and renamed when it is complete. A checksum follows the array; a damaged file is
    made anew. Where nothing can be written, the array is made in memory instead.

    Args:
        stem: Name of the file without its ending; different contents need different names.
        shape: Of the whole array.
        pieces: Yields its rows in order, m at a time. Shapes: (m, ...).

    Returns:
        The array; changes to it are not written to the file.

    Raises:
        ValueError: when the pieces do not add up to the shape.
        MemoryError: when it can neither be written nor held in memory.
    """
    path = folder() / f"{stem}.npy"
    if (kept := _open(path, shape)) is not None:
        return kept
    try:
        # not through a memory map, where a full disk kills the process
        with replacing(path) as new, open(new, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            checksum = 0
            for piece in _counted(pieces(), shape, stem):
                file.write(np.ascontiguousarray(piece))
                checksum = zlib.crc32(np.ascontiguousarray(piece), checksum)
            file.write(checksum.to_bytes(4))
        return np.load(path, mmap_mode="c")
    except OSError:
        return _in_memory(stem, shape, pieces)


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached array, if the file is there and as it was written."""
    with suppress(OSError, FileError), reading(path, "make it anew"):
        array, end = np.load(path, mmap_mode="c"), path.stat().st_size
        checksum = np.fromfile(path, np.uint8, offset=end - 4).tobytes()
        if array.shape == shape and array.dtype == np.uint8 and array.offset + array.nbytes + 4 == end:
            return array if zlib.crc32(array) == int.from_bytes(checksum) else None
    return None


def _counted(pieces: Iterable[np.ndarray], shape: tuple[int, ...], stem: str) -> Iterable[np.ndarray]:
    done = 0
    for piece in pieces:
        done += len(piece)
        if piece.shape[1:] != shape[1:] or piece.dtype != np.uint8 or done > shape[0]:
            break
        yield piece
    else:
        if done == shape[0]:
            return
    raise ValueError(f"{stem} has {done} or more images where {shape[0]} of shape {shape[1:]} were expected")


def _in_memory(stem: str, shape: tuple[int, ...], pieces: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    check_memory(math.prod(shape), "cpu", f"{stem} without a writable data/cache")
    array, done = np.empty(shape, np.uint8), 0
    for piece in _counted(pieces(), shape, stem):
        array[done : done + len(piece)] = piece
        done += len(piece)
    return array
