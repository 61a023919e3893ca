"""Checkpoint files in the safetensors format: written atomically, and read only if whole and of the same run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from psmlib.machine.files import replacing
from psmlib.machine.fingerprints import add

FORMAT = "2"
"""Version of the files, stored in each; raise it when files of an earlier version can no longer be read."""


def save(path: str | Path, tensors: dict[str, Tensor], about: dict) -> None:
    """Writes tensors and a description to ``path``, or leaves what was there untouched.

    Args:
        path: The file.
        tensors: Named tensors.
        about: A JSON-like description; ``load`` compares it.

    Raises:
        OSError: when it cannot be written.
    """
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(about)
    with replacing(path) as new:
        try:
            save_file(held, new, {"format": FORMAT, "about": text, "sha256": digest(held, text)})
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from None


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of named tensors and a text; safetensors itself detects a truncated file but not a changed number.

    Example:
        >>> import torch
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)}) != digest({"a": torch.zeros(2, 1)})
        True
    """
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        add(found, tensors[name], f"{name} ")
    return found.hexdigest()


def load(
    path: str | Path, about: dict | None = None, like: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict]:
    """Reads what :func:`save` wrote.

    Args:
        path: The file.
        about: What the description must say; None accepts any.
        like: Tensors that the file must hold, as to names, shapes and dtypes; None accepts any.

    Returns:
        The tensors and the file's description.

    Raises:
        ValueError: when the file cannot be read, has another format version, or is not as it was written; when its
            description or tensors are others than wanted; or when a number in it is not finite.

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
            version, text = metadata.get("format", "none"), metadata["about"]
            found = json.loads(text)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {path}: start without resume, or name the file that was written") from None
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not a checkpoint of psmlib ({error}): delete it and train anew") from None
    if version != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format version {version} but this psmlib reads version {FORMAT}: read it with the "
            "psmlib that wrote it, or delete it and train anew"
        )
    if metadata.get("sha256") != digest(tensors, text) or not isinstance(found, dict):
        raise ValueError(f"checkpoint {path} is not as it was written: delete it and train anew")
    if about is not None:
        check_same(found, about, f"checkpoint {path}", "resume", "write to another file")
    if like is not None:
        _check_like(path, tensors, like)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} in checkpoint {path} is not finite: delete it and train anew")
    return tensors, found


def _check_like(path: str | Path, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    if odd := tensors.keys() ^ like.keys():
        verb = "lacks" if min(odd) in like else "has an unknown tensor"
        raise ValueError(f"checkpoint {path} {verb} {min(odd)!r}: delete it and train anew")
    for name, wanted in like.items():
        held = tensors[name]
        if held.shape != wanted.shape or held.dtype != wanted.dtype:
            kinds = [f"{t.dtype} of shape {tuple(t.shape)}" for t in (held, wanted)]
            raise ValueError(f"{name} in checkpoint {path} is {kinds[0]}, not {kinds[1]}: delete it and train anew")


def seconds_in(found: dict, path: str | Path) -> float:
    """The seconds of training in a file's description.

    Raises:
        ValueError: when they are missing or no finite number from 0 on.
    """
    value = found.get("seconds")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"checkpoint {path} has seconds = {value!r}, no time: delete it and train anew")
    return float(value)


def count_in(found: dict, path: str | Path, name: str = "done") -> int:
    """A number of updates in a file's description.

    Raises:
        ValueError: when it is missing or no whole number from 0 on.
    """
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"checkpoint {path} has {name} = {value!r}, no number of updates: delete it and train anew")
    return value


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
