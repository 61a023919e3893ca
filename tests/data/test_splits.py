"""Fixed shuffles, the same on every machine."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psmlib.data.splits import shuffled, splitmix64, stratified


def test_the_hash_is_splitmix64():
    # the published first outputs of the generator with seed 1234567
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [splitmix64(i, 1234567) for i in range(5)] == known


def test_shuffles_do_not_change():
    digest = hashlib.sha256(shuffled(1797).astype("<i8").tobytes()).hexdigest()
    assert digest == "de1906f42e11cf3c65d7aabb7a13ef111c9a7752085540a9c16364f25f21f66f"


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_a_shuffle_is_a_permutation(n, salt):
    assert sorted(shuffled(n, salt).tolist()) == list(range(n))


def test_shuffles_scatter():
    """Positions and places are as good as independent, and so are shuffles of different salts."""
    n = 20_000
    for other in (np.arange(n), shuffled(n, 1)):
        assert abs(np.corrcoef(shuffled(n), other)[0, 1]) < 4 / n**0.5
    assert not np.array_equal(shuffled(n), shuffled(n, 1))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.lists(st.floats(0, 0.5), min_size=1, max_size=2))
def test_parts_hold_every_item_once_and_every_class_in_its_share(labels, shares):
    parts = stratified(labels, shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for c in set(labels):
        n = labels.count(c)
        for part, share in zip(parts, shares, strict=False):
            assert abs(sum(labels[i] == c for i in part) - share * n) <= 1


def test_every_prefix_of_a_part_is_mixed():
    labels = np.repeat(np.arange(10), 500)
    for part in stratified(labels, [0.7, 0.1]):
        for prefix in (200, len(part) // 2):
            count = np.bincount(labels[part[:prefix]], minlength=10)
            assert count.min() > 0.4 * prefix / 10 and count.max() < 1.8 * prefix / 10


def test_shares_are_checked():
    for shares in ([0.7, 0.4], [-0.1]):
        with pytest.raises(ValueError, match="must not be negative, nor sum to more than one"):
            stratified([0, 1], shares)
