"""A temporary data/raw, with a registry that takes the checksums of the files that a test writes there."""

import copy
import hashlib
from pathlib import Path

import pytest

from psmlib.data import archives, images
from psmlib.machine import paths


class Raw:
    """data/raw in a temporary folder."""

    def __init__(self, folder: Path, entries: dict):
        self.folder, self.entries = folder, entries

    def path(self, name: str, file: str) -> Path:
        return self.folder / self.entries[name]["home"] / file

    def put(self, name: str, file: str, content: bytes, trust: bool = True) -> Path:
        """Writes a file where it belongs; if trusted, its checksum and size go into the registry."""
        path = self.path(name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        for entry in self.entries[name]["files"]:
            if trust and entry["name"] == file and entry["md5"]:
                entry |= {"md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}
        return path


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Raw:
    entries = copy.deepcopy(archives.registry())
    entries["fashion_mnist"]["package"]["folder"] = str(tmp_path / "package")  # it may be installed here
    monkeypatch.setattr(archives, "registry", lambda: entries)
    monkeypatch.setattr(paths, "DATA", tmp_path / "reader")
    monkeypatch.setattr(paths, "OUTPUT", tmp_path / "output")
    monkeypatch.setattr(images, "_LOADED", {})
    (tmp_path / "reader" / "raw").mkdir(parents=True)
    return Raw(tmp_path / "reader" / "raw", entries)
