"""Fixed shuffles that do not depend on library versions."""

from collections.abc import Sequence

import numpy as np

_MASK = 2**64 - 1


def splitmix64(index: int, salt: int = 0) -> int:
    """A 64-bit hash of an integer: the output function of SplitMix64 (Steele, Lea and Flood 2014, Figure 17).

    Random streams of libraries may change between versions; integer arithmetic does not.

    Example:
        >>> splitmix64(0) == 0xE220A8397B1DCDAF            # the first output of SplitMix64 with seed 0
        True
    """
    z = ((index + 1) * 0x9E3779B97F4A7C15 + salt) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def shuffled(n: int, salt: int = 0) -> np.ndarray:
    """A fixed permutation of 0 .. n - 1, int64. Shape: (n,).

    Example:
        >>> shuffled(6).tolist()
        [2, 4, 5, 1, 0, 3]
    """
    return np.array(sorted(range(n), key=lambda i: splitmix64(i, salt)), dtype=np.int64)


def stratified(labels: Sequence[int] | np.ndarray, shares: Sequence[float], salt: int = 0) -> list[np.ndarray]:
    """Splits a fixed shuffle into parts with the same proportion of each class.

    Args:
        labels: Class of each item. Shape: (n,).
        shares: Fractions of all parts but the last, which gets the rest.
        salt: Another integer gives another split.

    Returns:
        Indices of each part, shuffled once more, so that every prefix is representative; in the order of the first
        shuffle the prefixes of the last part are not.

    Raises:
        ValueError: when the shares are negative or sum to more than one.

    Example:
        >>> [part.tolist() for part in stratified([0, 0, 1, 1], [.5])]
        [[1, 2], [3, 0]]
    """
    if min(shares) < 0 or sum(shares) > 1:
        raise ValueError(f"the shares {list(shares)} must not be negative, nor sum to more than one")
    labels, order = np.asarray(labels), shuffled(len(labels), salt)
    part = np.full(len(labels), len(shares))
    for c in np.unique(labels):
        rows = order[labels[order] == c]
        ends = [round(end * len(rows)) for end in np.cumsum([0, *shares])]
        for k in range(len(shares)):
            part[rows[ends[k] : ends[k + 1]]] = k
    again = shuffled(len(labels), salt + 1)
    return [again[part[again] == k] for k in range(len(shares) + 1)]
