"""The direction of imports: every room looks down, and no two modules look at each other."""

import subprocess
import sys

from psmlib.machine import paths

LINT = "import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint(standalone_mode=False))"


def lint(folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LINT.replace("lint(s", "lint(['--no-cache'], s")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_rooms_import_one_way():
    found = lint(paths.ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


def test_an_import_upwards_is_found(tmp_path):
    """The contracts can fail: a copy in which a low room looks up."""
    import shutil

    shutil.copytree(paths.PACKAGE, tmp_path / "psmlib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "psmlib" / "solvers.py").open("a") as file:
        file.write("\nfrom psmlib.data import toys\n")
    found = lint(tmp_path)
    assert found.returncode != 0 and "psmlib.solvers -> psmlib.data.toys" in found.stdout
