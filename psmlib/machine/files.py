"""Atomic writing of files: whatever happens, a reader finds the old file or the new one, whole."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAMAGED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What reading a damaged or foreign file may raise, once it has been opened; readers refuse it in a sentence."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without the byte order mark that some editors put at its head."""
    return Path(path).read_text(encoding="utf-8-sig")


def write_atomic(path: Path, text: str | bytes) -> Path:
    """Writes a file in one step: a reader sees the old one or the new one, never half of it."""
    with replacing(path) as new:
        new.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new file that takes the place of another when the block ends without an error.

    It is on the disk before it takes its name, so that a crash of the machine leaves one of the two, and everybody may
    read it whom the umask allows. What a killed process left of earlier attempts is removed.

    Args:
        path: The file, in a folder that is made if it is missing.

    Yields:
        Where to write.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as new:
        ...         _ = new.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()  # with the umask's mode, which some writers of files do not ask for
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_left_over(path: Path) -> None:
    """Removes temporary files of this path whose process has ended."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        number = re.fullmatch(r"\.(\d+)\.tmp", left.name.removeprefix(f".{path.name}"))
        if number and not _runs(int(number[1])):
            with suppress(OSError):
                left.unlink()


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it runs, but for another user
        return True
    return True


def _sync(folder: Path) -> None:
    """Puts the folder's new entry on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
