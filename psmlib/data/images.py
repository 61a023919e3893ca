"""Image data sets: grey levels in fixed splits, dequantised on demand.

``digits`` and the ``photos`` come with scikit-learn; the papers' own sets come from files under data/raw. Images are
stored as integer levels, uint8, channels first, and converted to continuous data only by
:mod:`psmlib.data.dequantisation`, so that bits per dimension get the right offset.

``digits`` is split by class with a fixed shuffle. Its file does not say who wrote a digit. The digits are in the order
of their writers, and for two in five the nearest other image lies within 60 places, six times as often as by chance:
the writer of a test digit may also have written training digits. :mod:`psmlib.data.photos` describes the dependence of
photograph crops; :mod:`psmlib.data.formats` describes the crop of CelebA and the version of ImageNet.
"""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from psmlib.data import archives, formats, photos, shipped
from psmlib.data.dequantisation import affine, bits_per_dim, dequantise, quantise
from psmlib.data.draws import Draws
from psmlib.data.splits import stratified
from psmlib.machine.checks import check_choice, plain

__all__ = ["Draws", "Images", "bits_per_dim", "dequantise", "load", "quantise"]

SPLITS = ("train", "validation", "test")


class Images:
    """A data set of images in three splits.

    Args:
        name: As in the registry.
        arrays: uint8 images (n, C, H, W) under "train", "validation" and "test", and labels, if there are any, under
            "train_labels" and so on. Without validation images, the last ``cut`` training images are used.
        levels: Number of grey levels.
        flip: Whether training images may be mirrored.
        cut: Number of images at the end of the training set that become validation images.
        about: One line for tables and captions.

    Attributes:
        train: Training images. Shape: (n, C, H, W), uint8.
        validation: Images for choices such as early stopping.
        test: Images for figures to be reported.
        official_train: All official training images, on which the papers train; the same as ``train`` if there is an
            official validation set.
        train_labels: Classes, int64, or None; likewise validation_labels and test_labels.

    Raises:
        ValueError: when images are not uint8 (n, C, H, W), a split is empty, shapes differ, a level is not below
            ``levels``, or there is not one label for each image.

    Example:
        >>> digits = load("digits")
        >>> digits
        Images('digits', 17 levels of (1, 8, 8), 1258 train, 180 validation, 359 test)
        >>> x = digits.dequantise(digits.test, torch.Generator().manual_seed(0))
        >>> x.shape, bool((x >= 0).all() and (x < 1).all())
        (torch.Size([359, 1, 8, 8]), True)
    """

    def __init__(
        self, name: str, arrays: dict[str, np.ndarray], *, levels: int, flip: bool = False, cut: int = 0,
        about: str = "",
    ):  # fmt: skip
        self.name, self.levels, self.flip, self.about = name, plain(levels), flip, about
        levels, cut = self.levels, plain(cut)
        self.official_train = _tensor(name, arrays["train"])
        kept = len(self.official_train) - cut
        self.train, self.test = self.official_train[:kept], _tensor(name, arrays["test"])
        whole = arrays.get("validation")
        self.validation = self.official_train[max(kept, 0) :] if whole is None else _tensor(name, whole)
        labels = {split: arrays.get(f"{split}_labels") for split in SPLITS}
        if labels["train"] is not None and labels["validation"] is None:
            labels["train"], labels["validation"] = labels["train"][:kept], labels["train"][kept:]
        self.train_labels, self.validation_labels, self.test_labels = (
            None if found is None else torch.from_numpy(np.array(found, np.int64)) for found in labels.values()
        )
        if kept <= 0 or not min(len(getattr(self, split)) for split in SPLITS):
            raise ValueError(f"{name} has an empty split: keep fewer than {len(self.official_train)} for validation")
        if not self.train.shape[1:] == self.validation.shape[1:] == self.test.shape[1:]:
            raise ValueError(f"the splits of {name} have images of different shapes")
        if not isinstance(levels, int) or not 2 <= levels <= 256:
            raise ValueError(f"{name} cannot have {levels!r} grey levels: images are uint8, with 2 to 256")
        for split in SPLITS:
            held, found = getattr(self, split), getattr(self, f"{split}_labels")
            if found is not None and found.shape != (len(held),):
                raise ValueError(f"{name} has {len(found)} {split} labels for {len(held)} images: give one each")
            if (most := int(held.max())) >= levels:
                raise ValueError(f"{split} images of {name} have the level {most}, but only 0..{levels - 1} were named")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split))} {split}" for split in SPLITS)
        return f"Images({self.name!r}, {self.levels} levels of {self.shape}, {sizes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return tuple(self.train.shape[1:])

    @property
    def dim(self) -> int:
        """Number of values in one image, D."""
        return self.train[0].numel()

    @cached_property
    def centre(self) -> Tensor:
        """Mean of the dequantised training images on [0, 1), per value, float64. Shape: (C, H, W)."""
        total = sum(piece.sum(0, dtype=torch.int64) for piece in self.train.split(4096))
        return (total.double() / len(self.train) + 0.5) / self.levels

    def dequantise(
        self, x_levels: Tensor, generator: torch.Generator | None = None, *, scale: str = "unit",
        centred: bool = False, dtype: torch.dtype = torch.float64,
    ) -> Tensor:  # fmt: skip
        """Images as continuous data, (levels + uniform noise) / number of levels; the same shape.

        Args:
            x_levels: Some of this data set's images. Shape: (n, C, H, W).
            generator: Source of the noise.
            scale: "unit", [0, 1), or "symmetric", [-1, 1).
            centred: Subtract the mean training image (without mirror images), as Parallel Score Matching does.
            dtype: Of the result.
        """
        x = dequantise(x_levels, self.levels, generator, scale=scale, dtype=dtype)
        return x - self._middle(scale).to(x) if centred else x

    def quantise(self, x: Tensor, *, scale: str = "unit", centred: bool = False) -> Tensor:
        """Levels of continuous images, such as samples of a model. Shape: (n, C, H, W) or (n, D) -> (n, C, H, W)."""
        if centred:
            x = x.reshape(-1, *self.shape) + self._middle(scale).to(x)
        return quantise(x.reshape(-1, *self.shape), self.levels, scale=scale)

    def _middle(self, scale: str) -> Tensor:
        width, left = affine(scale)
        return width * self.centre + left

    def bits_per_dim(self, log_prob, scale: str | float | Tensor = "unit"):
        """Bits per dimension of log densities in nats; see :func:`psmlib.data.dequantisation.bits_per_dim`.

        Example:
            >>> round(load("digits").bits_per_dim(0.), 3)
            4.087
        """
        return bits_per_dim(log_prob, self.shape, self.levels, scale)

    def draws(
        self, split: str = "train", *, scale: str = "unit", centred: bool = False, flat: bool = False,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64,
    ) -> Draws:  # fmt: skip
        """Random images with fresh dequantisation noise, as data for :func:`psmlib.training.fit`.

        Args:
            split: "train", "official_train", "validation" or "test". Only the training images are ever mirrored.
            scale: "unit" or "symmetric".
            centred: Subtract the mean training image.
            flat: Points (n, D) rather than images.
            device: Of the levels and of the draws.
            dtype: Of the draws.

        Raises:
            ValueError: for an unknown split or scale.

        Example:
            >>> load("digits").draws(flat=True).sample(5, torch.Generator().manual_seed(0)).shape
            torch.Size([5, 64])
        """
        check_choice("split", split, (*SPLITS, "official_train"), of=self.name)
        width, left = affine(scale)
        shift = left - self._middle(scale) if centred else torch.full((1, 1, 1), left)
        manner = " ".join([self.name, split, scale, *["centred"] * centred])
        pool = getattr(self, split).to(device)
        mirrored = self.flip and split.endswith("train")
        return Draws(manner, pool, width / self.levels, shift.to(device, dtype), mirrored, flat)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of every split and of its labels, with types and shapes, as text.

        A notebook records it by ``results.data_hash(data.name, data.fingerprint)``.
        """
        lines = []
        for name in (split + kind for split in SPLITS for kind in ("", "_labels")):
            if (rows := getattr(self, name)) is not None:
                digest = hashlib.sha256()
                for piece in rows.split(4096):
                    digest.update(piece.numpy().tobytes())
                lines.append(f"{name} {rows.dtype} {tuple(rows.shape)} {digest.hexdigest()}")
        return "\n".join(lines).encode()

    @property
    def sha256(self) -> str:
        """SHA-256 of the fingerprint, which identifies the data and their splits."""
        return hashlib.sha256(self.fingerprint).hexdigest()


def _tensor(name: str, images: np.ndarray) -> Tensor:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"the images of {name} must be uint8 (n, C, H, W), got {images.dtype} {images.shape}")
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _digits(download: bool) -> dict[str, np.ndarray]:
    images, labels = shipped.digits()
    parts = dict(zip(SPLITS, stratified(labels, [0.7, 0.1]), strict=True))
    return {s: images[rows] for s, rows in parts.items()} | {f"{s}_labels": labels[rows] for s, rows in parts.items()}


def _photos(download: bool, size: int) -> dict[str, np.ndarray]:
    pictures = shipped.photographs()
    return {split: photos.crops(pictures, split, size) for split in SPLITS}


_READERS: dict[str, Callable[[bool], dict[str, np.ndarray]]] = {
    "digits": _digits, **{f"photos{size}": partial(_photos, size=size) for size in (8, 16, 32)},
    "mnist": formats.mnist, "fashion_mnist": partial(formats.mnist, name="fashion_mnist"), "cifar10": formats.cifar10,
    "celeba64": formats.celeba64, "imagenet64": formats.imagenet64,
}  # fmt: skip
_LOADED: dict[str, Images] = {}


def load(name: str, *, download: bool = False) -> Images:
    """A data set by name, read on the first call and then kept in memory.

    Args:
        name: digits, photos8, photos16, photos32, mnist, fashion_mnist, cifar10, celeba64 or imagenet64.
        download: Let torchvision fetch missing files to data/raw (mnist, fashion_mnist, cifar10; celeba64 if gdown is
            installed).

    Returns:
        The :class:`Images`.

    Raises:
        ValueError: for an unknown name, or a truncated or altered file.
        FileNotFoundError: for a missing file, saying what to get, how large it is and where to put it.

    Example:
        >>> load("digits").levels, load("digits").shape
        (17, (1, 8, 8))
        >>> load("digitz")
        Traceback (most recent call last):
        ...
        ValueError: unknown data set 'digitz': use one of digits, photos8, photos16, photos32, mnist, fashion_mnist, ...
    """
    check_choice("data set", name, _READERS)
    if name not in _LOADED:
        entry = archives.registry()[name]
        how = dict(levels=entry["levels"], flip=entry["flip"], cut=entry.get("cut", 0), about=entry["about"])
        images, shape = Images(name, _READERS[name](download), **how), tuple(entry["shape"])
        if images.shape != shape:
            raise ValueError(f"{name} has images of shape {images.shape} instead of {shape}: get its files again")
        _LOADED[name] = images
    return _LOADED[name]
