"""Atomic writing of files."""

import os
from pathlib import Path


def write_atomic(path: Path, text: str | bytes) -> Path:
    """Writes a file in one step: a reader sees the old one or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile, whose files only their owner may read
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
