"""Running a kernel in Triton's interpreter, in a process of its own, because Triton decides when it is imported."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def interpreted():
    """Runs a script under the interpreter and returns what it prints last, read as JSON."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")

    def run(script: str):
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().split("\n")[-1])

    return run
