r"""Colour crops of two photographs, in splits that share no pixel.

Each photograph, 427 x 640, is cut in upright strips: five for training (384 columns in all), two of 32 columns for
validation and two for test, with gaps of 16 columns between them. All borders are multiples of 16, the block size
of JPEG with halved colour, so that no coding block reaches into two strips. Strips of the three splits alternate,
because the left and right parts of these pictures differ.

Training crops overlap (every fourth row and column); validation and test crops do not. The number of crops is far
larger than that of independent images: of the 12,078 training crops of 32 x 32, at most 260 are disjoint, and
neighbours share 7/8 of their pixels. Grey values 16 columns apart still correlate at .85 (china.jpg) and .80
(flower.jpg), so test crops resemble training crops across the gap, and each other: a standard error over test crops
underestimates the error over photographs.

======== ======== ============ ======
size     train    validation   test
======== ======== ============ ======
8        19,110   848          848
16       16,686   208          208
32       12,078   52           52
======== ======== ============ ======
"""

from collections.abc import Sequence

import numpy as np

from psmlib.data.splits import shuffled

STRIPS: dict[str, tuple[tuple[int, int], ...]] = {
    "train": ((0, 80), (144, 224), (288, 352), (416, 496), (560, 640)),
    "validation": ((240, 272), (512, 544)),
    "test": ((96, 128), (368, 400)),
}
"""First column and the one after the last of each strip."""

STRIDE = 4
"""Distance of neighbouring training crops."""


def corners(split: str, size: int, height: int = 427) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of the crops of one split, the same in each photograph.

    Example:
        >>> len(corners("test", 32)), corners("test", 32)[:2]
        (26, [(0, 96), (32, 96)])
    """
    step = STRIDE if split == "train" else size
    columns = [c for start, end in STRIPS[split] for c in range(start, end - size + 1, step)]
    return [(r, c) for c in columns for r in range(0, height - size + 1, step)]


def crops(pictures: Sequence[np.ndarray] | np.ndarray, split: str, size: int) -> np.ndarray:
    """All crops of one split in a fixed shuffled order, uint8.

    Args:
        pictures: The photographs, channels last. Shape: (2, 427, 640, 3).
        split: "train", "validation" or "test".
        size: Height and width of a crop, at most 32.

    Returns:
        Shape: (n, 3, size, size).

    Raises:
        ValueError: for a size that does not fit in the strips.

    Example:
        >>> crops(np.zeros((2, 427, 640, 3), np.uint8), "test", 32).shape
        (52, 3, 32, 32)
    """
    if not 1 <= size <= 32:
        raise ValueError(f"crops of size {size} do not fit in strips of 32 columns: use at most 32")
    cut = [
        picture[r : r + size, c : c + size].transpose(2, 0, 1)
        for picture in pictures
        for r, c in corners(split, size, picture.shape[0])
    ]
    return np.stack([cut[i] for i in shuffled(len(cut))])
