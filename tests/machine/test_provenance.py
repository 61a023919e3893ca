"""Provenance: the source hash and the state of the git repository."""

import json
import os
import subprocess

import pytest

from psmlib.machine import paths
from psmlib.machine.provenance import git_state, source_hash


def test_the_source_hash_follows_the_cells_and_the_package_but_not_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "pkg")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("x = 1")

    def hashed(source, outputs=()):
        cell = dict(cell_type="code", source=[source], outputs=list(outputs), metadata={})
        (tmp_path / "nb.ipynb").write_text(json.dumps({"cells": [cell]}))
        return source_hash("nb")

    first = hashed("1 + 1")
    assert hashed("1 + 1", ["2"]) == first != hashed("1 + 2") and source_hash("none") != first
    (tmp_path / "pkg" / "a.py").write_text("x = 2")
    assert hashed("1 + 1") != first


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small git repository that stands for the book's."""
    root = tmp_path / "repo"
    (root / "data" / "results").mkdir(parents=True)
    monkeypatch.setattr(paths, "ROOT", root)
    for key, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}.items():
        monkeypatch.setenv(key, value)

    def git(*arguments):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", "-C", root, *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (root / "a.py").write_text("1")
    (root / "data" / "results" / "r.json").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    return root, git


def test_commit_and_dirty_flag_are_git_s_own_and_results_do_not_count(repository):
    root, git = repository
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (root / "data" / "results" / "r.json").write_text("2")
    assert git_state()["dirty"] is False
    (root / "a.py").write_text("2")
    assert git_state()["dirty"] is True


def test_without_git_or_inside_another_repository_the_commit_is_unknown(repository, tmp_path, monkeypatch):
    unknown = {"commit": "unknown", "dirty": None}
    root, _ = repository
    monkeypatch.delenv("PSMLIB_COMMIT", raising=False)
    (root / "copy").mkdir()
    monkeypatch.setattr(paths, "ROOT", root / "copy")
    assert git_state() == unknown
    (tmp_path / "alone").mkdir()
    monkeypatch.setattr(paths, "ROOT", tmp_path / "alone")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state() == unknown
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setenv("PATH", "")
    assert git_state() == unknown
    monkeypatch.setenv("PSMLIB_COMMIT", "abc")  # what a copy without its repository was told
    assert git_state() == {"commit": "abc", "dirty": None}
