"""Downsampled ImageNet: no checksum is known, so types, shapes and numbers of its npz batches are checked."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from psmlib.data.images import load
from psmlib.machine import paths

DRAW = np.random.default_rng(0)
PART1, PART2, VAL = (f"Imagenet64_{part}_npz.zip" for part in ("train_part1", "train_part2", "val"))


def npz(images, **more):
    stream = io.BytesIO()
    np.savez(stream, data=images, labels=np.ones(len(images), np.int64), **more)
    return stream.getvalue()


def zip_of(members, folder="", compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(folder + name, content)
    return stream.getvalue()


@pytest.fixture
def batches(raw):
    """Ten batches of two or three images and a validation batch of four, in memory."""
    sizes = [2 + i % 2 for i in range(10)]
    raw.entries["imagenet64"] |= {"counts": {"train": sum(sizes), "test": 4}, "cut": 5}
    arrays = {f"train_data_batch_{i + 1}.npz": n for i, n in enumerate(sizes)} | {"val_data.npz": 4}
    return {name: DRAW.integers(0, 256, (n, 12288), dtype=np.uint8) for name, n in arrays.items()}


def zipped(batches):
    """The three archives as published; folders and order inside vary between them."""
    blobs = {name: npz(images, mean=np.zeros(12288)) for name, images in batches.items()}
    train = [name for name in blobs if name.startswith("train")]
    return {
        PART1: zip_of({name: blobs[name] for name in reversed(train[:5])}, "Imagenet64_train_part1_npz/"),
        PART2: zip_of({name: blobs[name] for name in train[5:]}),
        VAL: zip_of({"val_data.npz": blobs["val_data.npz"]}),
    }


def put(raw, files):
    for name, content in files.items():
        raw.put("imagenet64", name, content)


def check(data, batches):
    train = np.concatenate([batches[f"train_data_batch_{i}.npz"] for i in range(1, 11)]).reshape(-1, 3, 64, 64)
    assert np.array_equal(data.official_train, train) and np.array_equal(data.validation, train[-5:])
    assert np.array_equal(data.test, batches["val_data.npz"].reshape(-1, 3, 64, 64))
    assert len(data.train) == 20 and data.flip and data.train_labels is None


def test_zipped_as_published(raw, batches):
    put(raw, zipped(batches))
    before = {path: path.stat().st_mtime_ns for path in (raw.folder, *raw.folder.rglob("*"))}
    check(load("imagenet64"), batches)
    assert before == {path: path.stat().st_mtime_ns for path in (raw.folder, *raw.folder.rglob("*"))}
    assert len(list((paths.OUTPUT / "data" / "cache").iterdir())) == 2


def test_unzipped_batches(raw, batches):
    put(raw, {name: npz(images) for name, images in batches.items()})
    check(load("imagenet64"), batches)


def test_a_batch_missing_among_unzipped_ones_asks_for_the_archives(raw, batches):
    put(raw, {name: npz(images) for name, images in list(batches.items())[1:]})
    with pytest.raises(FileNotFoundError, match="imagenet64 needs Imagenet64_train_part1_npz.zip"):
        load("imagenet64")


def test_the_kept_copy_spares_the_archives(raw, batches, monkeypatch):
    put(raw, zipped(batches))
    first = load("imagenet64").sha256
    monkeypatch.setattr("psmlib.data.images._LOADED", {})
    monkeypatch.setattr(np.lib.npyio, "NpzFile", None)
    monkeypatch.setattr("psmlib.data.formats._npz_images", lambda *_: pytest.fail("read again"))
    assert load("imagenet64").sha256 == first


def flip_a_bit(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("name", [PART1, PART2, VAL])
def test_a_truncated_or_altered_archive_is_refused(raw, batches, name):
    whole = zipped(batches)
    middle = len(whole[name]) // 2
    for content in (whole[name][:-1], whole[name][:middle], b"", flip_a_bit(whole[name], middle)):
        put(raw, whole | {name: content})
        with pytest.raises(ValueError, match=f"^data/raw/imagenet64/{name} cannot be read as a file of") as caught:
            load("imagenet64")
        assert "\n" not in str(caught.value) and "get it again from https://image-net.org" in str(caught.value)
        kept = [file.name.split("-")[1] for file in (paths.OUTPUT / "data" / "cache").glob("*")]
        assert kept == (["train"] if name == VAL else [])  # nothing half read is kept


def test_an_unzipped_batch_altered_inside_is_refused(raw, batches):
    files = {name: npz(images) for name, images in batches.items()}
    for content in (files["val_data.npz"][:-30], flip_a_bit(files["val_data.npz"], 9000)):
        put(raw, files | {"val_data.npz": content})
        with pytest.raises(ValueError, match="^data/raw/imagenet64/val_data.npz cannot be read"):
            load("imagenet64")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((3, 12288), np.float32), "has images of float32"),
        (np.zeros((3, 3072), np.uint8), "has images of uint8 \\(3, 3072\\)"),
        (np.zeros((2, 12288), np.uint8), "there are 24 images up to here where the official set has 25"),
        (np.zeros((4, 12288), np.uint8), "there are 26 images up to here where the official set has 25"),
    ],
)
def test_a_batch_of_another_shape_or_count_is_refused(raw, batches, images, words):
    put(raw, zipped(batches | {"train_data_batch_10.npz": images}))
    with pytest.raises(ValueError, match=words):
        load("imagenet64")


def test_no_pickle_is_run(raw, batches, tmp_path):
    evil = np.array([Evil(tmp_path / "run")] * 3, dtype=object)
    for content, words in ((npz(evil), "allow_pickle=False"), (pickle.dumps(evil), "is not an npz archive")):
        files = {name: npz(images) for name, images in batches.items()}
        put(raw, files | {"train_data_batch_2.npz": content})
        with pytest.raises(ValueError, match=f"train_data_batch_2.npz cannot be read .*{words}"):
            load("imagenet64")
    assert not (tmp_path / "run").exists()


def test_the_pickled_variant_is_not_mistaken_for_the_npz_one(raw, batches):
    blobs = {name.removesuffix(".npz"): pickle.dumps({"data": images}) for name, images in batches.items()}
    put(raw, dict.fromkeys((PART1, PART2, VAL), zip_of(blobs)))
    with pytest.raises(ValueError, match="train_data_batch_1.npz, .* is in none of the archives"):
        load("imagenet64")
