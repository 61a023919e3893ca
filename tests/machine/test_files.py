"""Atomic writing of files."""

import resource
import subprocess
import sys

import pytest
import torch

from psmlib.bank import checkpoint
from psmlib.machine.files import write_atomic


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    assert write_atomic(tmp_path / "a" / "b.md", "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_next_save_clears_what_a_killed_one_left(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, 1):  # 1 runs
        left = tmp_path / f".a[1].st.{process}.tmp"
        left.mkdir()
        (left / ".tmpQ7").write_text("half a file of safetensors, which it would rename")
    checkpoint.save(tmp_path / "a[1].st", {"x": torch.zeros(1)}, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a[1].st.1.tmp", "a[1].st"]


@pytest.fixture
def full_disk():
    """A limit on the size of files, at which a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_good_file_and_says_so(tmp_path, full_disk):
    checkpoint.save(tmp_path / "a.st", {"x": torch.zeros(1)}, {"done": 1})
    write_atomic(tmp_path / "b.json", "old")
    full_disk(1000)
    for name, write in (
        ("a.st", lambda path: checkpoint.save(path, {"x": torch.zeros(9999)}, {"done": 2})),
        ("b.json", lambda path: write_atomic(path, "x" * 9999)),
    ):
        with pytest.raises(OSError, match=f"{name} cannot be written .*File too large.*: free space there") as error:
            write(tmp_path / name)
        assert "\n" not in str(error.value)
    assert checkpoint.load(tmp_path / "a.st")[1] == {"done": 1} and (tmp_path / "b.json").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.st", "b.json"]
