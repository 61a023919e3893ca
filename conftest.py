"""Everything that a test run writes goes to a folder of its own, never over a reader's book or kept results.

`make test` names that folder (build/test) and leaves it to be looked at; otherwise it goes with the run.
"""

import os
import shutil
import tempfile

import pytest

_made = "" if os.environ.get("PSMLIB_OUTPUT") else tempfile.mkdtemp(prefix="psmlib-test-")
if _made:
    os.environ["PSMLIB_OUTPUT"] = _made  # before psmlib.machine.paths is imported; workers and kernels inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already uses every core


def pytest_configure(config: pytest.Config) -> None:
    """Copy the book's sources and the kept results, once."""
    if not hasattr(config, "workerinput"):
        from psmlib.book.build import prepare
        from psmlib.machine.paths import OutputError

        try:
            prepare()
        except OutputError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Build the smoke book first: it takes longest, and one of two workers is busy with it nearly all the time."""
    items.sort(key=lambda item: item.path.name != "test_build.py")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder that this process made."""
    if _made and not hasattr(config, "workerinput"):
        shutil.rmtree(_made, ignore_errors=True)
