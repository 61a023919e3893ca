"""Checkpoint files in the safetensors format: written atomically, and read only if they fit the run."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "1"
"""Version of the files, stored in each; raise it when files of an earlier version can no longer be read."""


def save(path: str | Path, tensors: dict[str, Tensor], about: dict) -> None:
    """Writes tensors and a description to ``path``, or leaves what was there untouched.

    Args:
        path: The file.
        tensors: Named tensors.
        about: A JSON-like description; ``load`` compares it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        save_file(held, part, {"format": FORMAT, "about": json.dumps(about)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path, about: dict | None = None) -> tuple[dict[str, Tensor], dict]:
    """Reads what :func:`save` wrote.

    Args:
        path: The file.
        about: What the description must say; None accepts any.

    Returns:
        The tensors and the file's description.

    Raises:
        ValueError: when the file cannot be read, has another format version, or its description differs from ``about``.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/run.safetensors", {"params": torch.zeros(3)}, {"lr": .1, "done": 50})
        ...     load(f"{folder}/run.safetensors", {"lr": .1})
        ({'params': tensor([0., 0., 0.])}, {'lr': 0.1, 'done': 50})
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            version, found = metadata.get("format", "none"), json.loads(metadata["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {path}: start without resume, or name the file that was written") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint of psmlib ({error}): delete it and train anew") from None
    if version != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format version {version} but this psmlib reads version {FORMAT}: read it with the "
            "psmlib that wrote it, or delete it and train anew"
        )
    if about is not None:
        check_same(found, about, f"checkpoint {path}", "resume", "write to another file")
    return tensors, found


def check_same(found: dict, mine: dict, what: str, verb: str, instead: str) -> None:
    """Refuses a file that another run made.

    Args:
        found: What the file says of the run behind it.
        mine: What this run says of itself, as JSON can hold it.
        what: The file, in words.
        verb: What the same settings would allow.
        instead: What else to do.

    Raises:
        ValueError: naming the first setting that differs.

    Example:
        >>> check_same({"lr": .1}, {"lr": .2}, "checkpoint a.st", "resume", "write to another file")
        Traceback (most recent call last):
        ...
        ValueError: checkpoint a.st was made with lr = 0.1 but this run has 0.2: resume with the same lr, or write ...
    """
    for key, value in json.loads(json.dumps(mine)).items():
        if found.get(key) != value:
            raise ValueError(
                f"{what} was made with {key} = {found.get(key)!r} but this run has {value!r}: {verb} with the same "
                f"{key}, or {instead}"
            )
