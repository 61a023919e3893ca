"""Paths of all folders and files that the library reads or writes.

Two environment variables change them:

* `PSMLIB_ROOT`: the repository, if it is not the folder above the package.
* `PSMLIB_OUTPUT`: the folder below which everything is *written* (executed notebooks, generated pages, results,
  benchmarks, the built book); by default the repository itself. The tests set it, so that they never overwrite the
  results of a reader's run.

Example:
    >>> from psmlib.machine import paths
    >>> paths.PAPER_VALUES.relative_to(paths.ROOT).as_posix()
    'data/paper_values.toml'
    >>> paths.EXECUTED.relative_to(paths.OUTPUT).as_posix()
    'book/_executed'
"""

import os
from pathlib import Path


def _folder(variable: str, default: Path) -> Path:
    """Return the folder an environment variable names, or the default if it is unset or empty."""
    return Path(os.environ.get(variable) or default).expanduser().resolve()


class OutputError(ValueError):
    """Nothing can or may be written where PSMLIB_OUTPUT says."""


def check_output() -> None:
    """Raises OutputError unless the output folder is one, or can be made."""
    inside = next(folder for folder in (OUTPUT, *OUTPUT.parents) if folder.exists())
    if not inside.is_dir() or not os.access(inside, os.W_OK | os.X_OK):
        fault = "is no folder" if not inside.is_dir() else "cannot be written to"
        raise OutputError(f"{inside} {fault}: name a folder for the output in PSMLIB_OUTPUT")


PACKAGE: Path = Path(__file__).resolve().parents[1]
ROOT: Path = _folder("PSMLIB_ROOT", PACKAGE.parent)
NOTEBOOKS: Path = ROOT / "notebooks"
DATA: Path = ROOT / "data"
PAPER_VALUES: Path = DATA / "paper_values.toml"
EXACT_VALUES: Path = DATA / "exact_values.json"
LOCK: Path = ROOT / "requirements.lock"

OUTPUT: Path = _folder("PSMLIB_OUTPUT", ROOT)
BOOK: Path = OUTPUT / "book"
EXECUTED: Path = BOOK / "_executed"
GENERATED: Path = BOOK / "_generated"
BUILD: Path = OUTPUT / "build"
HTML: Path = BUILD / "_build" / "html"
RESULTS: Path = OUTPUT / "data" / "results"
BENCH: Path = OUTPUT / "data" / "bench"
