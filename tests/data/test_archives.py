"""Files of the reader: missing ones are named, damaged ones are refused, known ones are downloaded by torchvision."""

import re

import pytest
import torchvision.datasets as tv
from torchvision.datasets import utils

from psmlib.data import archives
from psmlib.data.archives import collect, missing, registry, size_in_words
from psmlib.data.images import load

SETS = ("mnist", "fashion_mnist", "cifar10", "celeba64", "imagenet64")


def fill(raw, name):
    """Every file of a data set, with some content that the registry trusts."""
    for file in raw.entries[name]["files"]:
        raw.put(name, file["name"], f"content of {file['name']}".encode() * 9)


def test_checksums_and_addresses_are_torchvisions():
    files = {name: {f["name"]: f for f in registry()[name]["files"]} for name in SETS}
    assert {n: f["md5"] for n, f in files["mnist"].items()} == dict(tv.MNIST.resources)
    assert {n: f["md5"] for n, f in files["fashion_mnist"].items()} == dict(tv.FashionMNIST.resources)
    assert registry()["mnist"]["url"] in tv.MNIST.mirrors
    assert registry()["fashion_mnist"]["url"] in tv.FashionMNIST.mirrors
    assert {n: f["md5"] for n, f in files["cifar10"].items()} == {tv.CIFAR10.filename: tv.CIFAR10.tgz_md5}
    assert registry()["cifar10"]["url"] + tv.CIFAR10.filename == tv.CIFAR10.url == registry()["cifar10"]["page"]
    known = {file: (drive, md5) for drive, md5, file in tv.CelebA.file_list}
    for name, file in files["celeba64"].items():
        assert (file["drive"], file["md5"]) == known[name]
    assert {f["md5"] for f in files["imagenet64"].values()} == {""}
    assert "url" not in registry()["imagenet64"]  # the reader has to agree to its terms


def test_files_belong_where_torchvision_puts_them():
    assert registry()["mnist"]["home"] == "MNIST/raw"  # as MNIST.raw_folder, from the name of the class
    assert registry()["fashion_mnist"]["home"] == "FashionMNIST/raw"
    assert registry()["celeba64"]["home"] == tv.CelebA.base_folder


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_named_with_size_and_place(raw, name):
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    text, entry = str(caught.value), raw.entries[name]
    for file in entry["files"]:
        assert f"{file['name']} ({size_in_words(file['bytes'])})" in text
    assert f"put in data/raw{'' if entry['home'] == '.' else '/' + entry['home']}" in text and entry["page"] in text
    assert ("download=True" in text) == (name != "imagenet64")
    assert ("install Debian's dataset-fashion-mnist" in text) == (name == "fashion_mnist")
    assert "\n" not in text and not re.search(r"\. [A-Z]", text) and str(raw.folder) not in text


def test_only_what_is_missing_is_named(raw):
    fill(raw, "mnist")
    raw.path("mnist", "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        collect("mnist")
    assert "t10k-labels" in str(caught.value) and "train-" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "celeba64"])
def test_every_file_is_refused_when_truncated_or_altered(raw, name):
    fill(raw, name)
    assert [path.name for path in collect(name).values()] == [f["name"] for f in raw.entries[name]["files"]]
    for file in raw.entries[name]["files"]:
        path = raw.path(name, file["name"])
        whole = path.read_bytes()
        for content, fault in [
            (whole[:-1], f"truncated ({len(whole) - 1} of {len(whole)} bytes)"),
            (b"", f"truncated (0 of {len(whole)} bytes)"),
            (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], "altered (wrong checksum)"),
            (whole + b"\0", "altered (wrong checksum)"),
        ]:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(fault)) as caught:
                collect(name)
            assert f"data/raw/{path.relative_to(raw.folder).as_posix()} is" in str(caught.value)
            assert "get it again from" in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(whole)


def test_flat_in_data_raw_is_found_too(raw):
    fill(raw, "celeba64")
    for path in raw.path("celeba64", "").iterdir():
        path.rename(raw.folder / path.name)
    assert {path.parent for path in collect("celeba64").values()} == {raw.folder}


def test_download_asks_torchvision_for_what_is_absent_or_damaged(raw, monkeypatch):
    fill(raw, "mnist")
    good = {path.name: path.read_bytes() for path in collect("mnist").values()}
    raw.path("mnist", "train-images-idx3-ubyte.gz").unlink()
    raw.path("mnist", "t10k-images-idx3-ubyte.gz").write_bytes(b"half")
    asked = []

    def fetch(url, folder, filename, md5):
        asked.append((url, filename))
        assert md5 == archives.registry()["mnist"]["files"][0 if "train" in filename else 2]["md5"]
        (folder / filename).write_bytes(good[filename])

    monkeypatch.setattr(utils, "download_url", fetch)
    collect("mnist", download=True)
    base = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    assert asked == [(base + f, f) for f in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")]
    collect("mnist", download=True)
    assert len(asked) == 2  # nothing is fetched twice


def test_celeba_is_asked_for_by_its_number(raw, monkeypatch):
    fill(raw, "celeba64")
    path = raw.path("celeba64", "list_eval_partition.txt")
    content, asked = path.read_bytes(), []
    path.unlink()

    def fetch(number, folder, filename, md5):
        asked.append(number)
        (folder / filename).write_bytes(content)

    monkeypatch.setattr(utils, "download_file_from_google_drive", fetch)
    collect("celeba64", download=True)
    assert asked == ["0B7EVK8r0v71pY0NSMzRuSXJEVkk"]


@pytest.mark.parametrize("error", [OSError("no route\nto host."), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_is_told_in_one_sentence(raw, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(utils, "download_url", fail)
    with pytest.raises(FileNotFoundError) as caught:
        load("cifar10", download=True)
    reason = " ".join(str(error).split()).rstrip(".")
    assert str(caught.value) == (
        f"cifar-10-python.tar.gz (170 MB) could not be downloaded ({reason}): "
        "get it from https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and put it in data/raw"
    )


def test_what_nobody_may_download_is_asked_of_the_reader(raw):
    with pytest.raises(FileNotFoundError, match=r"^imagenet64 needs Imagenet64_train_part1_npz.zip \(6.8 GB\): get"):
        load("imagenet64", download=True)


def test_a_failure_inside_a_file_is_about_that_file(raw):
    path = raw.put("cifar10", "cifar-10-python.tar.gz", b"")
    for error in (OSError("bad\n block."), KeyError("data"), EOFError(), TypeError("no")):
        with (
            pytest.raises(ValueError, match="^data/raw/cifar-10-python.tar.gz cannot be read as") as caught,
            archives.reading("cifar10", path),
        ):
            raise error
        assert "\n" not in str(caught.value) and "()" not in str(caught.value)
    with pytest.raises(MemoryError), archives.reading("cifar10", path):
        raise MemoryError


def test_sizes_in_words():
    words = [size_in_words(n) for n in (999, 1e6, 9.94e6, 12e6, 1.5e9)]
    assert words == ["1 kB", "1.0 MB", "9.9 MB", "12 MB", "1.5 GB"]
    assert isinstance(missing("mnist", registry()["mnist"]["files"]), FileNotFoundError)
