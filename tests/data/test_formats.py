"""The official formats: small archives are read as they were written, and as torchvision reads them."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from psmlib.data import formats
from psmlib.data.archives import collect
from psmlib.data.images import load
from psmlib.machine import paths

DRAW = np.random.default_rng(0)


def pixels(*shape):
    return DRAW.integers(0, 256, shape, dtype=np.uint8)


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.startswith("data/raw/") and "get it again from" in text


# --- MNIST --------------------------------------------------------------------------------------------------


def idx(array):
    return gzip.compress(
        b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


@pytest.fixture
def mnist(raw):
    raw.entries["mnist"]["cut"] = 2
    sets = {
        stem: (pixels(n, 28, 28), DRAW.integers(0, 10, n, dtype=np.uint8)) for stem, n in (("train", 7), ("t10k", 3))
    }
    for stem, (images, labels) in sets.items():
        raw.put("mnist", f"{stem}-images-idx3-ubyte.gz", idx(images))
        raw.put("mnist", f"{stem}-labels-idx1-ubyte.gz", idx(labels))
    return sets


def test_mnist_comes_back(mnist, raw):
    data, (images, labels) = load("mnist"), mnist["train"]
    assert data.shape == (1, 28, 28) and data.levels == 256 and not data.flip
    assert np.array_equal(data.train[:, 0], images[:5]) and np.array_equal(data.validation[:, 0], images[5:])
    assert np.array_equal(data.official_train[:, 0], images)
    assert data.train_labels.tolist() == labels[:5].tolist() and data.validation_labels.tolist() == labels[5:].tolist()
    assert np.array_equal(data.test[:, 0], mnist["t10k"][0]) and data.test_labels.tolist() == mnist["t10k"][1].tolist()
    assert data.train.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert load("mnist") is data


def test_fashion_mnist_is_read_from_its_package_too(mnist, raw):
    package = Path(raw.entries["fashion_mnist"]["package"]["folder"])
    package.mkdir()
    raw.entries["fashion_mnist"]["cut"] = 2
    for file in raw.entries["fashion_mnist"]["files"]:
        content = raw.path("mnist", file["name"]).read_bytes()
        (package / file["name"]).write_bytes(content)
        file["packed"] = hashlib.md5(content).hexdigest()  # other than that of the files as they are published
    assert torch.equal(load("fashion_mnist").official_train, load("mnist").official_train)
    assert load("fashion_mnist").shape == (1, 28, 28)
    (package / file["name"]).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"^t10k-labels-idx1-ubyte.gz is truncated .* get it again from"):
        collect("fashion_mnist")


def test_mnist_is_what_torchvision_reads(mnist, raw):
    for path in (raw.folder / "MNIST" / "raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    for train, split in ((True, "official_train"), (False, "test")):
        theirs = torchvision.datasets.MNIST(raw.folder, train=train)
        assert torch.equal(theirs.data, getattr(load("mnist"), split)[:, 0])
    assert torch.equal(theirs.targets, load("mnist").test_labels)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"no gzip", "Not a gzipped file"),
        (gzip.compress(b"\0\0\x09\x01\0\0\0\x01\0"), "does not start like an IDX file"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 7, 28, 28) + bytes(100)), "cannot be read"),
        (idx(np.zeros((7, 28, 27), np.uint8)), "images have shape"),
        (idx(np.zeros((6, 28, 28), np.uint8)), "images have shape"),
        (idx(np.zeros((7, 28, 28), np.uint8))[:-9], "ended before"),
    ],
    ids=["no gzip", "type", "too short", "width", "count", "truncated"],
)
def test_a_bad_idx_file_is_told(mnist, raw, content, words):
    raw.put("mnist", "train-images-idx3-ubyte.gz", content)
    with pytest.raises(ValueError, match=words) as caught:
        load("mnist")
    assert one_sentence(caught)


# --- CIFAR-10 -----------------------------------------------------------------------------------------------


def python2_pickle(images, labels):
    """A batch as Python 2 and the numpy of 2009 pickled it, protocol 2: text and bytes are one type."""

    def text(s):
        return b"U" + bytes([len(s)]) + s

    def number(i):
        return b"J" + struct.pack("<i", i)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R(" + number(3) + text(b"|") + b"NNN"
    dtype += number(-1) * 2 + b"K\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R("
    array += b"K\1" + number(images.shape[0]) + number(images.shape[1]) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<I", images.size) + bytes(images) + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    pairs = text(b"data") + array + text(b"labels") + listed + text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}(" + pairs + b"u."


def tar_of(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def cifar(raw):
    raw.entries["cifar10"]["cut"] = 4
    names = ["data_batch_4", "test_batch", "data_batch_3", "data_batch_2", "data_batch_5", "data_batch_1"]
    batches = {name: (pixels(3, 3072), DRAW.integers(0, 10, 3).tolist()) for name in names}
    members = {"batches.meta": b"not read"} | {name: python2_pickle(*batch) for name, batch in batches.items()}
    raw.put("cifar10", "cifar-10-python.tar.gz", tar_of(members))
    return batches, members


def test_cifar_comes_back_in_the_order_of_its_batches(cifar, raw):
    data, (batches, _) = load("cifar10"), cifar
    images = np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    labels = sum((batches[f"data_batch_{i}"][1] for i in range(1, 6)), [])
    assert np.array_equal(data.official_train, images) and np.array_equal(data.validation, images[-4:])
    assert data.train_labels.tolist() + data.validation_labels.tolist() == labels and len(data.train) == 11
    assert np.array_equal(data.test.flatten(1), batches["test_batch"][0])
    assert data.flip and data.shape == (3, 32, 32)
    assert sorted(p.name for p in raw.folder.iterdir()) == ["cifar-10-python.tar.gz"]  # nothing is unpacked there


def test_cifar_is_what_torchvision_reads(cifar, raw, tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name, content in cifar[1].items():
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    for train, split in ((True, "official_train"), (False, "test")):
        theirs = torchvision.datasets.CIFAR10(tmp_path, train=train)
        assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), getattr(load("cifar10"), split))
    assert theirs.targets == load("cifar10").test_labels.tolist()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("trust", [True, False])
def test_a_pickle_from_outside_is_never_run(cifar, raw, tmp_path, trust):
    bad = tar_of(cifar[1] | {"data_batch_3": pickle.dumps({"data": Evil(tmp_path / "run"), "labels": []}, 2)})
    raw.put("cifar10", "cifar-10-python.tar.gz", bad, trust=trust)
    words = r"it asks for .*open, which an array does not need" if trust else r"truncated|altered"
    with pytest.raises(ValueError, match=words) as caught:
        load("cifar10")
    assert one_sentence(caught) and not (tmp_path / "run").exists()


def test_nothing_is_opened_before_its_checksum_is_right(cifar, raw, monkeypatch):
    monkeypatch.setattr(formats.tarfile, "open", lambda *_, **__: pytest.fail("the archive was opened"))
    path = raw.path("cifar10", "cifar-10-python.tar.gz")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="altered"):
        load("cifar10")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {k: v for k, v in m.items() if k != "data_batch_2"},
        lambda m: m | {"data_batch_2": python2_pickle(np.zeros((3, 3071), np.uint8), [1, 2, 3])},
        lambda m: m | {"test_batch": python2_pickle(np.zeros((3, 3072), np.uint8), [1, 2])},
        lambda m: m | {"test_batch": m["test_batch"][:-20]},
        lambda m: m | {"test_batch": pickle.dumps([1, 2], 2)},
    ],
    ids=["batch", "width", "labels", "truncated", "list"],
)
def test_a_cifar_archive_of_another_kind_is_told(cifar, raw, change):
    raw.put("cifar10", "cifar-10-python.tar.gz", tar_of(change(cifar[1])))
    with pytest.raises(ValueError, match="cannot be read as a file of cifar10") as caught:
        load("cifar10")
    assert one_sentence(caught)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "celeba64"])
def test_a_read_only_data_raw_will_do(request, raw, name):
    request.getfixturevalue(name.removesuffix("10").removesuffix("64"))
    before = {path: path.stat().st_mtime_ns for path in (raw.folder, *raw.folder.rglob("*"))}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert len(load(name).test)
    for path in before:
        path.chmod(0o755)
    # the superuser may write anywhere, so what was written is looked at too
    assert before == {path: path.stat().st_mtime_ns for path in (raw.folder, *raw.folder.rglob("*"))}


# --- CelebA -------------------------------------------------------------------------------------------------


def jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def zip_of(members, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def celeba(raw):
    faces = {
        f"{i:06}.jpg": jpeg(np.kron(pixels(22, 18, 3), np.ones((10, 10, 1), np.uint8))[:218, :178]) for i in range(7)
    }
    parts = [0, 0, 0, 0, 1, 2, 2]
    table = "".join(f"{file} {part}\n" for file, part in zip(faces, parts, strict=True))
    raw.put("celeba64", "img_align_celeba.zip", zip_of({f"img_align_celeba/{k}": v for k, v in faces.items()}))
    raw.put("celeba64", "list_eval_partition.txt", table.encode())
    return faces


def test_celeba_has_its_official_splits_cropped_as_torchvision_crops(celeba, raw):
    data = load("celeba64")
    assert [len(x) for x in (data.train, data.validation, data.test)] == [4, 1, 2] and data.train_labels is None
    assert data.official_train.shape == data.train.shape
    theirs = torchvision.transforms.Compose(
        [
            torchvision.transforms.CenterCrop(140),
            torchvision.transforms.Resize(64),
            torchvision.transforms.PILToTensor(),
        ]
    )
    want = torch.stack([theirs(Image.open(io.BytesIO(content))) for content in celeba.values()])
    assert torch.equal(torch.cat([data.train, data.validation, data.test]), want)
    assert len(list((paths.OUTPUT / "data" / "cache").iterdir())) == 1


def test_celeba_is_decoded_once_and_its_kept_copy_is_private(celeba, raw, monkeypatch):
    first = load("celeba64").sha256
    monkeypatch.setattr("psmlib.data.images._LOADED", {})
    monkeypatch.setattr(formats, "cropped_face", lambda _: pytest.fail("decoded again"))
    again = load("celeba64")
    assert again.sha256 == first
    again.train.zero_()
    monkeypatch.setattr("psmlib.data.images._LOADED", {})
    assert load("celeba64").sha256 == first


def test_celeba_without_a_cache_stays_in_memory(celeba, raw):
    paths.OUTPUT.write_text("a file where a folder would have to be made")
    assert load("celeba64").train.shape == (4, 3, 64, 64)


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("list_eval_partition.txt", b"000000.jpg 0\n000001.jpg 1\n000002.jpg 3\n", "a split is empty or unknown"),
        ("list_eval_partition.txt", b"000000.jpg 0\n000001.jpg\n", "partition.txt cannot be read"),
        ("list_eval_partition.txt", b"000000.jpg 0\n000001.jpg 1\n000009.jpg 2\n", "000009.jpg"),
        ("img_align_celeba.zip", zip_of({f"img_align_celeba/{i:06}.jpg": b"no jpeg" for i in range(7)}), "identify"),
        ("img_align_celeba.zip", b"no zip", "not a zip file"),
    ],
    ids=["split", "column", "face", "jpeg", "zip"],
)
def test_a_bad_celeba_file_is_told(celeba, raw, file, content, words):
    raw.put("celeba64", file, content)
    with pytest.raises(ValueError, match=words) as caught:
        load("celeba64")
    assert one_sentence(caught)
    assert not [p for p in (paths.OUTPUT / "data" / "cache").glob("*")]
