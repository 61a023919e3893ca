"""Cached arrays are written once and completely, or made in memory where nothing can be written."""

import os

import numpy as np
import pytest

from psmlib.data import cache
from psmlib.data.cache import memory_mapped
from psmlib.machine import paths

WHOLE = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "OUTPUT", tmp_path)
    return tmp_path


class Source:
    """Pieces of WHOLE, and how often they were asked for."""

    def __init__(self, *ends):
        self.ends, self.asked = ends, 0

    def __call__(self):
        self.asked += 1
        return (WHOLE[a:b] for a, b in zip((0, *self.ends), self.ends, strict=False))


def test_made_once_and_read_back():
    source = Source(3, 7, 10)
    for _ in range(2):
        array = memory_mapped("a", WHOLE.shape, source)
        assert isinstance(array, np.memmap) and np.array_equal(array, WHOLE)
    assert source.asked == 1 and [file.name for file in cache.folder().iterdir()] == ["a.npy"]


def test_a_change_stays_in_the_process():
    memory_mapped("a", WHOLE.shape, Source(10))[:] = 0
    assert np.array_equal(memory_mapped("a", WHOLE.shape, Source(10)), WHOLE)


def test_pieces_need_not_be_contiguous():
    turned = np.ascontiguousarray(WHOLE.transpose(0, 2, 3, 1))
    assert np.array_equal(memory_mapped("a", WHOLE.shape, lambda: [turned.transpose(0, 3, 1, 2)]), WHOLE)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b[:20], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_copy_is_made_anew(spoil):
    memory_mapped("a", WHOLE.shape, Source(10))
    path = cache.folder() / "a.npy"
    path.write_bytes(spoil(path.read_bytes()))
    assert np.array_equal(memory_mapped("a", WHOLE.shape, Source(10)), WHOLE)


def test_a_copy_of_another_shape_or_type_is_made_anew():
    cache.folder().mkdir(parents=True)
    for other in (np.zeros((9, 3, 4, 4), np.uint8), np.zeros(WHOLE.shape, np.float32)):
        np.save(cache.folder() / "a.npy", other)
        assert np.array_equal(memory_mapped("a", WHOLE.shape, Source(10)), WHOLE)


@pytest.mark.parametrize("ends", [(3, 7), (3, 11, 12), ()])
@pytest.mark.parametrize("writable", [True, False])
def test_a_wrong_number_of_images_is_refused_and_leaves_nothing(ends, writable, output):
    if not writable:
        (output / "data").write_text("in the way")
    source = Source(*ends) if ends != (3, 11, 12) else lambda: [WHOLE, WHOLE[:1]]
    with pytest.raises(ValueError, match="where 10 of shape .* were expected"):
        memory_mapped("a", WHOLE.shape, source)
    assert not writable or list(cache.folder().iterdir()) == []


@pytest.mark.parametrize("piece", [WHOLE[:, :1], WHOLE.astype(np.int64)])
def test_pieces_of_another_kind_are_refused(piece):
    with pytest.raises(ValueError, match="were expected"):
        memory_mapped("a", WHOLE.shape, lambda: [piece])


def test_in_memory_where_nothing_can_be_written(output):
    (output / "data").write_text("in the way")
    array = memory_mapped("a", WHOLE.shape, Source(3, 10))
    assert not isinstance(array, np.memmap) and np.array_equal(array, WHOLE)


def test_a_full_disk_leaves_nothing_behind(monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert np.array_equal(memory_mapped("a", WHOLE.shape, Source(3, 10)), WHOLE)
    assert list(cache.folder().iterdir()) == []


def test_what_would_not_fit_in_memory_is_refused(output):
    (output / "data").write_text("in the way")
    with pytest.raises(MemoryError, match="without a writable data/cache"):
        memory_mapped("a", (2**50, 3, 4, 4), Source(10))


def test_a_failure_of_the_source_is_passed_on():
    def broken():
        yield WHOLE[:3]
        raise ValueError("the archive ends here")

    with pytest.raises(ValueError, match="the archive ends here"):
        memory_mapped("a", WHOLE.shape, broken)
    assert list(cache.folder().iterdir()) == []
