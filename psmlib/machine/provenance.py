"""Provenance: which source, commit, machine and libraries stand behind a figure."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from psmlib import __version__
from psmlib.machine import paths


def source_hash(notebook: str) -> str:
    """SHA-256 over psmlib's Python files and the notebook's cells, whatever outputs it carries."""
    digest = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(paths.PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    template = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if template.is_file():
        cells = json.loads(template.read_text(encoding="utf-8"))["cells"]
        digest.update(json.dumps([(c["cell_type"], "".join(c["source"])) for c in cells]).encode())
    return digest.hexdigest()


def git_state() -> dict:
    """The commit, and whether the tree differs from it; "unknown" and None outside a checkout of the book.

    data/results and data/bench do not count: every run writes there, and a run is not a change of the source. A copy
    that travelled without its repository is told its commit by the environment variable PSMLIB_COMMIT; whether it
    differs nobody can tell there, but the source hash can be compared afterwards.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    state = {"commit": os.environ.get("PSMLIB_COMMIT", "unknown"), "dirty": None}
    try:
        # A copy unpacked inside some other repository must not borrow that one's commit.
        if not os.path.samefile(git("rev-parse", "--show-toplevel"), paths.ROOT):
            return state
        excluded = (":(exclude)data/results", ":(exclude)data/bench")
        state["dirty"] = bool(git("status", "--porcelain", "--", ".", *excluded))
        state["commit"] = git("rev-parse", "--verify", "HEAD")
    except (OSError, subprocess.SubprocessError):
        pass
    return state


def device_name(device: str = "cpu") -> str:
    """The model, in words, of the processor or accelerator that a device string stands for here."""
    if _on_gpu(device):
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name") and "unknown" not in line:
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or f"{platform.machine()} CPU"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries on which figures depend."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
    return {"python": platform.python_version(), "psmlib": __version__, **libraries}


def peak_memory() -> float | None:
    """The most memory this process has held so far, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10), 1)


def peak_gpu_memory(device: str) -> float | None:
    """The most memory PyTorch has held on an accelerator so far, in MiB; None on a processor."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if _on_gpu(device) else None


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.is_available()
