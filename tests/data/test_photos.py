"""Crops of the photographs share no pixel between splits, and scikit-learn's images are read correctly."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from psmlib.data import photos, shipped
from psmlib.data.images import load
from psmlib.data.photos import STRIPS, corners, crops

SIZES = (8, 16, 32)


@pytest.fixture(scope="module")
def numbered():
    """Two photographs in which every pixel has a number of its own, three bytes of one word."""
    word = np.arange(2 * 427 * 640, dtype="<u4").reshape(2, 427, 640)
    return np.stack([(word >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], -1)


def pixels(cut):
    """The numbers of the pixels in some crops."""
    words = cut.astype(np.uint32)
    return words[:, 0] | words[:, 1] << 8 | words[:, 2] << 16


@pytest.mark.parametrize("size", SIZES)
def test_no_pixel_is_in_two_splits_and_gaps_are_sixteen_wide(numbered, size):
    columns = {}
    for split in STRIPS:
        seen = np.zeros((2, 427, 640), bool)
        seen.reshape(-1)[pixels(crops(numbered, split, size))] = True
        columns[split] = {(int(p), int(c)) for p, c in np.argwhere(seen.any(1))}
    for split, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        near = {(p, c + d) for p, c in columns[split] for d in range(-16, 17)}
        assert not near & columns[other], f"{split} and {other} are closer than 16 columns"
    assert {p for p, _ in columns["test"]} == {0, 1}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_crops_to_be_judged_do_not_overlap(numbered, split, size):
    numbers = pixels(crops(numbered, split, size))
    assert len(np.unique(numbers)) == numbers.size


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_is_a_piece_of_its_photograph(numbered, size):
    cut = pixels(crops(numbered, "train", size)).astype(np.int64)
    steps = cut - cut[:, :1, :1]
    assert (steps == np.arange(size)[:, None] * 640 + np.arange(size)).all()
    assert len(np.unique(cut[:, 0, 0])) == len(cut)  # no crop twice
    assert ((cut[:, 0, 0] % 640) % photos.STRIDE == 0).all()


def test_the_documented_numbers():
    table = {8: (19110, 848, 848), 16: (16686, 208, 208), 32: (12078, 52, 52)}
    for size, numbers in table.items():
        assert tuple(2 * len(corners(split, size)) for split in STRIPS) == numbers
        row = f"{size:<8} " + " ".join(
            f"{n:<{w}}" for n, w in zip((f"{k:,}" for k in numbers), (8, 12, 6), strict=True)
        )
        assert row.rstrip() in photos.__doc__
    apart = sum(2 * (27 * 16 // 32) * ((end - start) // 32) for start, end in STRIPS["train"])
    assert apart == 260 and "at most 260 are disjoint" in photos.__doc__
    assert sum(end - start for start, end in STRIPS["train"]) == 384


def test_borders_respect_the_coding_blocks():
    strips = sorted(strip for split in STRIPS.values() for strip in split)
    assert all(edge % 16 == 0 for strip in strips for edge in strip)
    assert all(b[0] - a[1] == 16 for a, b in zip(strips, strips[1:], strict=False))
    assert strips[0][0] == 0 and strips[-1][1] == 640


@pytest.mark.parametrize("size", SIZES)
def test_the_registry_has_them(size):
    data = load(f"photos{size}")
    assert data.shape == (3, size, size) and data.levels == 256 and data.flip and data.train_labels is None
    assert (len(data.train), len(data.test)) == (2 * len(corners("train", size)), 2 * len(corners("test", size)))


def test_a_prefix_holds_both_photographs(numbered):
    first = pixels(crops(numbered, "train", 32)[:200])[:, 0, 0] // (427 * 640)
    assert 60 < first.sum() < 140


def test_a_size_that_does_not_fit_is_refused(numbered):
    for size in (0, 33):
        with pytest.raises(ValueError, match="do not fit in strips of 32 columns"):
            crops(numbered, "test", size)


def test_digits_and_photographs_are_scikit_learns():
    images, labels = shipped.digits()
    bunch = load_digits()
    assert images.dtype == np.uint8 and np.array_equal(images[:, 0], bunch.images)
    assert labels.dtype == np.int64 and np.array_equal(labels, bunch.target)
    assert np.array_equal(shipped.photographs(), np.stack(load_sample_images().images))


def test_scikit_learn_is_asked_where_its_files_have_moved(monkeypatch):
    images, labels = shipped.digits()
    photographs = shipped.photographs()
    monkeypatch.setattr(shipped, "package_file", lambda name: None)
    assert np.array_equal(shipped.digits()[0], images) and np.array_equal(shipped.digits()[1], labels)
    assert shipped.digits()[0].dtype == np.uint8 and np.array_equal(shipped.photographs(), photographs)
