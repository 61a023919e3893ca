"""Provenance of a result: source code, commit, device, library versions and memory."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from psmlib import __version__
from psmlib.machine import paths
from psmlib.machine.files import FileError, read_notebook


def source_hash(notebook: str) -> str:
    """SHA-256 of psmlib's Python files and of the notebook's cells without their outputs."""
    digest = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(paths.PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    template = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if template.is_file():
        content = template.read_bytes()
        with suppress(FileError):  # results are not lost because somebody is just writing their notebook
            cells = read_notebook(template)["cells"]
            content = json.dumps([(c["cell_type"], "".join(c["source"])) for c in cells]).encode()
        digest.update(content)
    return digest.hexdigest()


def git_state() -> dict:
    """The commit, and whether the working tree differs from it; "unknown" and None outside a checkout of the book.

    Changes in data/results and data/bench are ignored, because every run writes there. For a copy of the files without
    its repository, the environment variable PSMLIB_COMMIT gives the commit; whether the copy differs from it is then
    unknown, but the source hashes can be compared afterwards.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    state = {"commit": os.environ.get("PSMLIB_COMMIT", "unknown"), "dirty": None}
    try:
        # A copy inside another repository must not report the commit of that one.
        if not os.path.samefile(git("rev-parse", "--show-toplevel"), paths.ROOT):
            return state
        excluded = (":(exclude)data/results", ":(exclude)data/bench")
        state["dirty"] = bool(git("status", "--porcelain", "--", ".", *excluded))
        state["commit"] = git("rev-parse", "--verify", "HEAD")
    except (OSError, subprocess.SubprocessError):
        pass
    return state


def device_name(device: str = "cpu") -> str:
    """The model name of the processor or GPU that a device string refers to on this machine."""
    if _on_gpu(device):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [x.partition(":")[2].strip() for x in lines if x.startswith("model name") and "unknown" not in x]
    return models[0] if models else platform.processor() or f"{platform.machine()} CPU"


def versions() -> dict[str, str]:
    """Versions of Python, psmlib and the libraries on which results depend."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
    return {"python": platform.python_version(), "psmlib": __version__, **libraries}


def peak_memory() -> float | None:
    """Peak memory of this process so far, in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10), 1)


def peak_gpu_memory(device: str) -> float | None:
    """Peak memory of PyTorch on a GPU so far, in MiB; None for the CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if _on_gpu(device) else None


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.is_available()
