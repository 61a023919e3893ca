"""The images that come with scikit-learn: 1797 digits and two photographs.

They are read from the package's own files, because importing scikit-learn takes a hundred times as long; if the files
are not found, scikit-learn's loaders are used.
"""

import importlib.util
from pathlib import Path

import numpy as np


def package_file(name: str) -> Path | None:
    """The path of a file of scikit-learn's data sets, without importing scikit-learn; None if it is not there."""
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations or [] if spec else []
    return next((path for place in places if (path := Path(place, "datasets", name)).is_file()), None)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 1, 8, 8) with levels 0 .. 16, uint8, and labels (1797,), int64, in the order of the file.

    Example:
        >>> images, labels = digits()
        >>> images.shape, int(images.max()), labels[:3].tolist()
        ((1797, 1, 8, 8), 16, [0, 1, 2])
    """
    path = package_file("data/digits.csv.gz")
    if path is None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        table = np.column_stack([bunch.data, bunch.target])
    else:
        table = np.loadtxt(path, delimiter=",")
    return table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)


def photographs() -> np.ndarray:
    """china.jpg and flower.jpg, uint8. Shape: (2, 427, 640, 3).

    JPEG decoders may differ by one level in some pixels, so the data hash may differ between machines.
    """
    found = [package_file(f"images/{name}.jpg") for name in ("china", "flower")]
    if all(found):
        from PIL import Image

        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in found])
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)
