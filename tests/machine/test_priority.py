"""Work that lets everything else go first does so in its session too, which is what Linux weighs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = Path("/proc/self/autogroup")
CODE = "import os; from psmlib.machine.priority import step_back; step_back(); print(os.nice(0))"


@pytest.mark.skipif(not hasattr(os, "nice"), reason="the system has no priorities of this kind")
def test_it_has_the_lowest_priority_in_its_session_and_of_its_session():
    code = CODE + (f"; print(open({str(SESSION)!r}).read().split()[-1])" if SESSION.exists() else "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert done.stdout.split() == (["19", "19"] if SESSION.exists() else ["19"]), done.stderr
    assert os.nice(0) < 19, "the others keep theirs"
