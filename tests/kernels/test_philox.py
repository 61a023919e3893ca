"""Philox against the numbers its authors published, statistics, and itself cut up in every way."""

import pytest
import torch
from scipy import stats

from psmlib.kernels.philox import normal, philox_ref, uniform, words, words_ref


def as_words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(v) for v in values)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_published_vectors(counter, key, expected):
    assert tuple(int(w) for w in philox_ref(as_words(*counter), as_words(*key))) == expected


def test_a_word_depends_on_its_address_alone():
    keys = torch.tensor([3, 2**62 + 12345, 77])
    whole = words(keys, 100, 7, 9, 3)
    assert whole.shape == (12, 3, 7, 9)
    for k in range(3):
        for first, count in ((100, 3), (103, 4)):
            part = words(keys[k : k + 1], first, count, 9, 3)
            assert torch.equal(part[:, 0], whole[:, k, first - 100 : first - 100 + count])
    assert torch.equal(words(keys, 100, 7, 4, 2), whole[:8, :, :, :4])  # fewer rows and lanes: the same words


def test_neighbouring_addresses_are_unrelated():
    u = uniform(words(torch.arange(4), 0, 25, 200, 2))  # (8, 4, 25, 200)
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    for a, b in ((u[0], u[1]), (u[:, 0], u[:, 1]), (u[:, :, 0], u[:, :, 1]), (u[..., :-1], u[..., 1:])):
        a, b = a.flatten(), b.flatten()
        r = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert abs(float(r)) < 4 / len(a) ** 0.5


def test_normal_numbers():
    w = words(torch.tensor([9]), 0, 10, 5000, 1).flatten(1)
    for part in normal(w[0], w[1]):
        assert stats.kstest(part.numpy(), "norm").pvalue > 1e-4
    a, b = normal(w[2], w[3], torch.float32)
    assert a.dtype == torch.float32 and bool(a.isfinite().all())
    assert abs(float((a * b).mean())) < 4 / len(a) ** 0.5


def test_uniform_never_gives_zero():
    ends = torch.tensor([0, 2**32 - 1])
    for dtype in (torch.float32, torch.float64):
        u = uniform(ends, dtype)
        assert 0 < float(u[0]) < 2e-10 and float(u[1]) <= 1
    assert bool(torch.stack(normal(ends, ends, torch.float32)).isfinite().all())


@pytest.mark.parametrize(
    "keys, first, message",
    [
        (torch.ones(2), 0, "keys must be int64 of shape"),
        (torch.ones(2, 2, dtype=torch.int64), 0, "keys must be int64 of shape"),
        (torch.tensor([1]), 2**32, "are beyond the 32 bits of a counter"),
        (torch.tensor([1]), -1, "are beyond the 32 bits of a counter"),
    ],
)
def test_refusals(keys, first, message):
    with pytest.raises(ValueError, match=message):
        words(keys, first, 1, 1, 1)


def test_triton_gives_the_same_bits(interpreted):
    same = interpreted("""
        import json, torch
        from psmlib.kernels.philox import words_ref
        from psmlib.kernels.philox import words_triton
        keys = torch.tensor([3, 2**62 + 12345, 77])
        cases = ((keys, 0, 1, 1, 1), (keys[1:], 7, 3, 17, 2), (keys, 2**31 + 5, 2, 1023, 3), (keys, 1, 1, 0, 1))
        print(json.dumps([torch.equal(words_ref(*case), words_triton(*case)) for case in cases]))
    """)
    assert same == [True] * 4


def test_reference_is_what_a_cpu_takes():
    keys = torch.tensor([5])
    assert torch.equal(words(keys, 2, 3, 4, 2), words_ref(keys, 2, 3, 4, 2))
