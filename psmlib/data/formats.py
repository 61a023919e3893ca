"""Readers of the official archives of MNIST, CIFAR-10, CelebA and downsampled ImageNet.

torchvision reads the first three too, but it unpacks them beside the archive, does not check what was unpacked
earlier, and executes CIFAR-10's pickles. Here a file is opened only after its checksum is verified, and no code in it
is executed. The tests compare the two.

Each reader returns uint8 arrays by split, (n, C, H, W), and int64 labels under "train_labels" and "test_labels"
where the format has them.
"""

import gzip
import io
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from psmlib.data import archives
from psmlib.data.cache import memory_mapped
from psmlib.machine.parallel import threads
from psmlib.machine.progress import bar

Arrays = dict[str, np.ndarray]


def read_idx(path: Path, name: str = "mnist") -> np.ndarray:
    """One gzipped IDX file of bytes: 0, 0, type 8, number of axes, big-endian lengths, then the values.

    Raises:
        ValueError: when it is not one.
    """
    with archives.reading(name, path):
        content = gzip.decompress(path.read_bytes())
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not start like an IDX file of bytes")
        start = 4 + 4 * content[3]
        shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def mnist(download: bool = False, name: str = "mnist") -> Arrays:
    """The four files of MNIST (LeCun et al. 1998), or of Fashion-MNIST (Xiao et al. 2017): images (n, 1, 28, 28)."""
    paths = archives.collect(name, download)
    read = {file.split("-idx")[0]: read_idx(path, name) for file, path in paths.items()}
    out = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = read[f"{stem}-images"], read[f"{stem}-labels"]
        with archives.reading(name, paths[f"{stem}-labels-idx1-ubyte.gz"]):
            if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
                raise ValueError(f"images have shape {images.shape} and labels {labels.shape}")
        out |= {split: images[:, None], f"{split}_labels": labels.astype(np.int64)}
    return out


class _ArraysOnly(pickle.Unpickler):
    """An unpickler restricted to lists, dicts, text and arrays."""

    known = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    known["numpy.core.multiarray._reconstruct"] = np.array(0).__reduce__()[0]

    def find_class(self, module: str, name: str):
        full = f"{module}.{name}".replace("numpy._core", "numpy.core")
        if full not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return self.known[full]


def cifar10(download: bool = False) -> Arrays:
    """The python version of CIFAR-10 (Krizhevsky 2009): images (n, 3, 32, 32).

    Of the published versions it is the one whose checksum torchvision knows. Its batches are pickles, which an
    unpickler that can build only arrays opens after the checksum of the archive is verified.
    """
    (path,) = archives.collect("cifar10", download).values()
    wanted = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    batches, out = {}, {}
    with archives.reading("cifar10", path), tarfile.open(path) as tar:
        for member in tar:  # in file order, because each step back would decompress it from the start
            if (name := Path(member.name).name) in sum(wanted.values(), []):
                batches[name] = _ArraysOnly(tar.extractfile(member), encoding="latin1").load()
        for split, names in wanted.items():
            images = np.concatenate([batches[name]["data"] for name in names])
            labels = np.concatenate([np.asarray(batches[name]["labels"], np.int64) for name in names])
            if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
                raise ValueError(f"it has {split} images {images.dtype} {images.shape} and {len(labels)} labels")
            out |= {split: images.reshape(-1, 3, 32, 32), f"{split}_labels": labels}
    return out


def cropped_face(jpeg: bytes, crop: int = 140, size: int = 64) -> np.ndarray:
    """The central square of an aligned face, resized with an antialiased bilinear filter. Shape: (3, size, size).

    140 pixels of 178 x 218 is the crop of Song and Ermon (2019), usual in score-based work; the crop of Parallel Score
    Matching is not known.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    small = image.crop((left, top, left + crop, top + crop)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def celeba64(download: bool = False) -> Arrays:
    """Aligned CelebA (Liu et al. 2015) at 64 x 64, in the three official splits.

    The first call decodes 200,000 JPEG files in a few minutes and keeps 2.5 GB in data/cache.
    """
    zipped, table = archives.collect("celeba64", download).values()
    with archives.reading("celeba64", table):
        rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()]
        splits = {"train": "0", "validation": "1", "test": "2"}
        names = {split: [file for file, part in rows if part == code] for split, code in splits.items()}
        if sum(map(len, names.values())) != len(rows) or not all(names.values()):
            raise ValueError("a split is empty or unknown")
    ordered = [f"img_align_celeba/{file}" for part in names.values() for file in part]

    def decoded() -> Iterator[np.ndarray]:
        with archives.reading("celeba64", zipped), zipfile.ZipFile(zipped) as archive, threads() as pool:
            starts = range(0, len(ordered), 1024)
            for i in bar(starts, label="CelebA at 64 x 64"):
                yield np.stack(list(pool.map(lambda file: cropped_face(archive.read(file)), ordered[i : i + 1024])))

    key = archives.registry()["celeba64"]["files"][0]["md5"][:8]
    images = memory_mapped(f"celeba64-crop140-{key}", (len(ordered), 3, 64, 64), decoded)
    ends = np.cumsum([len(part) for part in names.values()])[:-1]
    return dict(zip(names, np.split(images, ends), strict=True))


def imagenet64(download: bool = False) -> Arrays:
    """Downsampled ImageNet (Chrabaszcz et al. 2017) from npz batches, zipped as published or unzipped.

    These are the images that image-net.org distributes now; those of van den Oord et al. (2016), used in older papers,
    were withdrawn, and bits per dimension of the two are not comparable. torchvision knows no checksum, so the
    archives' own CRC-32, types, shapes and the number of images are checked. The pickled variant of these files is not
    read. The first call keeps 16 GB in data/cache.
    """
    entry = archives.registry()["imagenet64"]
    wanted = {"train": [f"train_data_batch_{i}.npz" for i in range(1, 11)], "test": ["val_data.npz"]}
    plain = {file: archives.find("imagenet64", file) for files in wanted.values() for file in files}
    zipped = [] if all(plain.values()) else list(archives.collect("imagenet64", download).values())
    out = {}
    for split, files in wanted.items():
        if zipped:
            sources = _members(zipped[:-1] if split == "train" else zipped[-1:], files)
        else:
            sources = [(plain[file], plain[file]) for file in files]
        # the file size identifies the content, in place of a checksum
        size, count = sum(path.stat().st_size for path in {path for path, _ in sources}), entry["counts"][split]
        pieces = partial(_npz_batches, sources, count)
        out[split] = memory_mapped(f"imagenet64-{split}-{size}", (count, 3, 64, 64), pieces)
    return out


def _members(zips: list[Path], files: list[str]) -> list[tuple[Path, zipfile.Path]]:
    """Archive and member of each batch, in any folder of the archive."""
    found: dict[str, tuple[Path, zipfile.Path]] = {}
    for path in zips:
        with archives.reading("imagenet64", path), zipfile.ZipFile(path) as archive:
            found |= {Path(member).name: (path, zipfile.Path(path, member)) for member in archive.namelist()}
    with archives.reading("imagenet64", zips[-1]):
        if absent := [file for file in files if file not in found]:
            raise ValueError(f"{', '.join(absent)} is in none of the archives")
    return [found[file] for file in files]


def _npz_batches(sources: list[tuple[Path, Path | zipfile.Path]], count: int) -> Iterator[np.ndarray]:
    """The images of all batches of a split, whose number must be that of the official set."""
    done = 0
    for path, batch in bar(sources, label="ImageNet at 64 x 64"):
        images = _npz_images(path, batch)
        done += len(images)
        with archives.reading("imagenet64", path):
            if done > count or batch is sources[-1][1] and done < count:
                raise ValueError(f"there are {done} images up to here where the official set has {count}")
        yield images


def _npz_images(path: Path, batch: Path | zipfile.Path) -> np.ndarray:
    """The images of one npz batch, a file or a member of the archive at `path`. Shape: (n, 3, 64, 64)."""
    with archives.reading("imagenet64", path), tempfile.TemporaryFile() as spool:
        # npz needs random access, for which a compressed member is decompressed from the start each time
        with batch.open("rb") as file:
            shutil.copyfileobj(file, spool, 1 << 20)
        if not zipfile.is_zipfile(spool):
            raise ValueError(f"{batch.name} is not an npz archive")
        spool.seek(0)
        with np.load(spool, allow_pickle=False) as arrays:
            data = arrays["data"]
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 12288:
            raise ValueError(f"{batch.name} has images of {data.dtype} {data.shape}")
        return data.reshape(-1, 3, 64, 64)
