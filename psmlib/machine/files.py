"""Files: read whole or refused in a sentence, and written so that a reader finds the old one or the new one, whole."""

import glob
import json
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FileError(ValueError):
    """A file is damaged or is another than was meant; the sentence names it and the mend."""


@contextmanager
def reading(what: str | Path, mend: str, kind: str = "") -> Iterator[None]:
    """Turns any error of the block, which reads a file and checks what it holds, into one sentence about the file.

    Args:
        what: The file, as messages name it.
        mend: What the reader can do.
        kind: What it should have been, such as " as a file of mnist".

    Raises:
        FileNotFoundError: when there is no file.
        FileError: when it cannot be read, or is damaged in any of the many ways in which a file can be.

    Example:
        >>> with reading("a.json", "make it anew"):
        ...     json.loads("{half")["value"]
        Traceback (most recent call last):
        ...
        psmlib.machine.files.FileError: a.json cannot be read (Expecting property name enclosed in double quotes: ...
    """
    try:
        yield
    except (FileError, MemoryError):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} is not there: {mend}") from None
    except Exception as error:
        text = f"it has no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or str(error)
        why = textwrap.shorten(text, 500, placeholder=" ...").rstrip(".") or type(error).__name__
        raise FileError(f"{what} cannot be read{kind} ({why}): {mend}") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without the byte order mark that some editors put at its head."""
    return Path(path).read_text(encoding="utf-8-sig")


def read_notebook(path: Path, mend: str = "restore it from the repository") -> dict:
    """The JSON document of a notebook, each cell with its type, source and metadata.

    Raises:
        FileNotFoundError: when there is none.
        FileError: when it is damaged.
    """
    with reading(f"{path.parent.name}/{path.name}", mend):
        document = json.loads(read_text(path))
        for cell in document["cells"]:
            source, tags = cell["source"], cell["metadata"].get("tags", [])
            texts = [cell["cell_type"], *(source if isinstance(source, list) else [source]), *tags]
            if not all(isinstance(text, str) for text in texts) or not isinstance(document.get("metadata", {}), dict):
                raise ValueError("a cell has something else where text should be")
    return document


def write_atomic(path: Path, text: str | bytes) -> Path:
    """Writes a file in one step: a reader sees the old one or the new one, never half of it."""
    with replacing(path) as new:
        new.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new file that takes the place of another when the block ends without an error.

    It is on the disk before it takes its name, so that a crash of the machine leaves one of the two, and everybody may
    read it whom the umask allows. It is written in a folder of its own, since some writers make further files beside
    it; what a killed process left of earlier attempts is removed.

    Args:
        path: The file, in a folder that is made if it is missing.

    Yields:
        Where to write.

    Raises:
        OSError: when it cannot be written; what was there before is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as new:
        ...         _ = new.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp") / path.name
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        temporary.touch()  # with the umask's mode, which some writers of files do not ask for
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(f"{path} cannot be written ({why}): free space there, or write to another place") from None
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


def _remove_left_over(path: Path) -> None:
    """Removes temporary folders of this path whose process has ended."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = re.fullmatch(r"\.(\d+)\.tmp", left.name.removeprefix(f".{path.name}"))
        if number and not _runs(int(number[1])):
            shutil.rmtree(left, ignore_errors=True)


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
