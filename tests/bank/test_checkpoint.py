"""What was written reads back bit for bit, or is refused; a crash leaves the old file."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from psmlib.bank import checkpoint

ABOUT = {"lr": 1e-3, "edges": (0.0, 0.1, 1.0), "ema": None, "arch": "Plain()", "done": 50}


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"params": torch.randn(2, 5, generator=g), "mean": torch.randn(2, 5, dtype=torch.float64, generator=g)}


def test_a_file_reads_back_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "run.st"
    checkpoint.save(path, tensors(), ABOUT)
    found, about = checkpoint.load(str(path), ABOUT)
    assert set(found) == {"params", "mean"} and about == {**ABOUT, "edges": [0.0, 0.1, 1.0]}
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def test_views_and_leaves_may_be_written(tmp_path):
    whole = torch.arange(12.0).view(3, 4).requires_grad_()
    checkpoint.save(tmp_path / "a.st", {"column": whole[:, 1], "turned": whole.T, "row": whole[1]}, {})
    found, _ = checkpoint.load(tmp_path / "a.st")
    assert torch.equal(found["column"], whole[:, 1]) and torch.equal(found["turned"], whole.T)


def test_an_older_state_is_replaced(tmp_path):
    checkpoint.save(tmp_path / "a.st", {"params": torch.zeros(3)}, {"done": 1})
    checkpoint.save(tmp_path / "a.st", {"params": torch.ones(3)}, {"done": 2})
    found, about = checkpoint.load(tmp_path / "a.st")
    assert bool((found["params"] == 1).all()) and about == {"done": 2}
    assert [f.name for f in tmp_path.iterdir()] == ["a.st"]


@pytest.mark.parametrize("where", ["replace", "write"])
def test_a_crash_in_the_middle_leaves_the_old_file_and_no_scrap(tmp_path, monkeypatch, where):
    path = tmp_path / "a.st"
    checkpoint.save(path, tensors(), ABOUT)
    before = path.read_bytes()

    def full(_tensors, part, *_):
        with open(part, "wb") as file:
            file.write(b"half a file")
        raise OSError("disk full")

    def refuse(*_):
        raise OSError("disk full")

    if where == "replace":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"params": torch.zeros(1)}, {})
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["a.st"]
    assert torch.equal(checkpoint.load(path, ABOUT)[0]["params"], tensors()["params"])


@pytest.mark.parametrize("key, value", [("lr", 2e-3), ("edges", (0.0, 0.2, 1.0)), ("ema", 0.99), ("new", 1)])
def test_a_file_of_another_run_is_refused_in_one_sentence_that_names_the_difference(tmp_path, key, value):
    path = tmp_path / "a.st"
    checkpoint.save(path, tensors(), ABOUT)
    with pytest.raises(ValueError, match=f"made with {key} = .* but this run has .*: resume with the same") as caught:
        checkpoint.load(path, {**ABOUT, key: value})
    text = str(caught.value)
    assert "\n" not in text and ". " not in text and "a.st" in text
    checkpoint.load(path)
    checkpoint.load(path, {"lr": 1e-3})


def test_an_exact_float_is_asked_for(tmp_path):
    checkpoint.save(tmp_path / "a.st", tensors(), {"lr": 0.1 + 0.2})
    checkpoint.load(tmp_path / "a.st", {"lr": 0.1 + 0.2})
    with pytest.raises(ValueError, match="lr = 0.30000000000000004 but this run has 0.3"):
        checkpoint.load(tmp_path / "a.st", {"lr": 0.3})


def broken(kind: str, whole: bytes) -> bytes:
    return {
        "empty": b"", "text": b"hello", "header cut": whole[:20], "tensors cut": whole[:-7],
        "trailing": whole + b"more", "header length": b"\xff" * 8 + whole[8:], "not json": whole.replace(b"{", b"[", 1),
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["empty", "text", "header cut", "tensors cut", "trailing", "header length", "not json"]
)
def test_a_corrupt_file_is_refused_in_one_sentence(tmp_path, kind):
    path = tmp_path / "a.st"
    checkpoint.save(path, tensors(), ABOUT)
    path.write_bytes(broken(kind, path.read_bytes()))
    with pytest.raises(ValueError, match="a.st is not a checkpoint of psmlib .*: delete it and train anew") as caught:
        checkpoint.load(path, ABOUT)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_format_version_is_refused_in_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.st"
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", "3")
        checkpoint.save(path, tensors(), ABOUT)
        assert torch.equal(checkpoint.load(path, ABOUT)[0]["params"], tensors()["params"])
    with pytest.raises(ValueError, match="a.st has format version 3 but this psmlib reads version 2: read it") as later:
        checkpoint.load(path, ABOUT)
    checkpoint.save_file(tensors(), path, {"about": json.dumps(ABOUT)})  # as before files had a version
    with pytest.raises(ValueError, match="a.st has format version none but this psmlib reads version 2") as none:
        checkpoint.load(path)
    for error in (later, none):
        assert "\n" not in str(error.value) and ". " not in str(error.value)
    checkpoint.save(path, tensors(), ABOUT)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "2", "a change of the version is a change of this test"


def test_files_that_are_missing_or_of_another_kind_say_so(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*none.st: start without resume"):
        checkpoint.load(tmp_path / "none.st")
    checkpoint.save_file(tensors(), tmp_path / "plain.st")
    with pytest.raises(ValueError, match="plain.st is not a checkpoint of psmlib"):
        checkpoint.load(tmp_path / "plain.st")
    with pytest.raises(ValueError, match="is not a checkpoint of psmlib"):
        checkpoint.load(tmp_path)
