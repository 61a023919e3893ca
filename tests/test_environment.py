"""pyproject.toml, requirements.lock and environment.yml describe one and the same environment."""

import re
import tomllib

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import psmlib
from psmlib.machine import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
"""What the lock installs; the extra `bench` is left to those who want it."""
LOCK = (paths.ROOT / "requirements.lock").read_text()
PINS = [Requirement(line) for line in LOCK.splitlines() if line.strip() and not line.startswith("#")]
CONDA = yaml.safe_load((paths.ROOT / "environment.yml").read_text())


@pytest.mark.parametrize("text", DECLARED)
def test_every_dependency_is_locked_at_a_version_that_it_allows(text: str) -> None:
    wanted = Requirement(text)
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert pins, f"{wanted.name} is not in requirements.lock: run make lock"
    for pin in pins:
        version = str(pin.specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), f"{pin} is outside {wanted}: run make lock"


@pytest.mark.parametrize("minor", [11, 12])
def test_the_lock_serves_python(minor: int) -> None:
    machine = default_environment() | {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.7",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(machine)]
    names = [canonicalize_name(pin.name) for pin in chosen]
    assert len(names) == len(set(names)), "two versions of a package would be installed"
    missing = {canonicalize_name(Requirement(text).name) for text in DECLARED} - set(names)
    assert not missing, f"Python 3.{minor} would get no {', '.join(sorted(missing))}"


def test_every_pin_is_exact_and_names_no_address() -> None:
    assert all(re.fullmatch(r"==[\w.!+]+", str(pin.specifier)) and pin.url is None for pin in PINS)
    assert not re.search(r"://|^\s*-|@", LOCK, re.MULTILINE), "the lock names an address or an option"


def test_conda_installs_the_lock_and_the_package() -> None:
    conda = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock", "-e ."]  # pip options on a line of -e are refused by conda
    assert "pip" in conda
    assert CONDA["name"] == PROJECT["name"]
    assert {re.split(r"[=<>!~ ]", entry)[0] for entry in conda} == {"python", "pip"}, "a package outside the lock"


def test_conda_python_is_one_that_the_project_supports() -> None:
    (python,) = (e for e in CONDA["dependencies"] if isinstance(e, str) and e.startswith("python"))
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert allowed.contains(python.partition("=")[2].lstrip("=") + ".0")
    assert f"(3, {PROJECT['requires-python'].removeprefix('>=3.')})" in (paths.ROOT / "Makefile").read_text()


def test_one_version() -> None:
    assert psmlib.__version__ == PROJECT["version"]
