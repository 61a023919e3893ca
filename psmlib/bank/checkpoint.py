"""Training states in safetensors: written atomically, read with a check that they fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


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
        save_file(held, part, {"about": json.dumps(about)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path, about: dict | None = None, vary: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], dict]:
    """Reads what :func:`save` wrote.

    Args:
        path: The file.
        about: What the description must say; None takes any.
        vary: Keys in which the two descriptions may differ.

    Returns:
        The tensors and the file's description.

    Raises:
        ValueError: when the file cannot be read, or says something else than ``about``.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            found = json.loads((file.metadata() or {})["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {path}: start without resume, or name the file that was written") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint of psmlib ({error}): delete it and train anew") from None
    if about is not None:
        told = json.loads(json.dumps(about))
        for key in told:
            if key not in vary and found.get(key) != told[key]:
                raise ValueError(
                    f"checkpoint {path} was made with {key} = {found.get(key)!r} but this run has {told[key]!r}: "
                    f"resume with the same {key}, or write to another file"
                )
    return tensors, found
