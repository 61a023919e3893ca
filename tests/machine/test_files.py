"""Atomic writing of files."""

from psmlib.machine.files import write_atomic


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    assert write_atomic(tmp_path / "a" / "b.md", "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
