r"""Counter-based random numbers, Philox-4x32-10: the same on every device and in any order of drawing.

A generator with a state returns its next numbers; a counter-based one (Salmon et al., 2011) is a function from a *key*
and a *counter* to random words. Here the key belongs to a network and the counter is (row of the batch, update, lane),
so that network k draws the same numbers alone, in a bank, in a shard of it or after a restart. :func:`words_ref`
computes the rounds in torch integers; the Triton kernel gives the same words in one launch for all networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.kernels.dispatch import choose, jit, tl, triton

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = 0xFFFFFFFF
ROWS = 512
"""Of a batch in one program of the Triton kernel."""


def _halves(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 x 32 bit product; int64 overflows, but the bits are right; the mask drops the sign."""
    product = a * multiplier
    return (product >> 32) & _LOW, product & _LOW


def philox_ref(counter: tuple[Tensor | int, ...], key: tuple[Tensor | int, ...]) -> tuple[Tensor, ...]:
    """Four random words for each counter: 10 rounds of Philox-4x32 in torch integers.

    Args:
        counter: Four words in [0, 2^32), int64, that broadcast together.
        key: Two words, likewise.

    Returns:
        Four words in [0, 2^32), int64, of the broadcast shape.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [hex(int(w)) for w in philox_ref((zero,) * 4, (zero,) * 2)]     # the generator's published first test
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (torch.as_tensor(c) for c in counter)
    k0, k1 = (torch.as_tensor(k) for k in key)
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _halves(c0, MULTIPLIERS[0]), _halves(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return c0, c1, c2, c3


def words_ref(keys: Tensor, first: int, updates: int, rows: int, lanes: int) -> Tensor:
    """The words of :func:`words` in torch operations."""
    like = {"dtype": torch.int64, "device": keys.device}
    row = torch.arange(rows, **like)
    update = torch.arange(first, first + updates, **like)[:, None]
    lane = torch.arange(lanes, **like)[:, None, None, None]
    key = keys[:, None, None]
    out = philox_ref((row, update, lane, torch.zeros((), **like)), (key & _LOW, (key >> 32) & _LOW))
    return torch.stack([word.expand(lanes, len(keys), updates, rows) for word in out], 1).flatten(0, 1)


def words(keys: Tensor, first: int, updates: int, rows: int, lanes: int) -> Tensor:
    """Random words for a range of updates of several networks, by the Triton kernel on CUDA.

    Args:
        keys: One key a network, int64. Shape: (K,).
        first: The first update, counted from the start of training.
        updates: How many updates, U.
        rows: Rows of a batch, B.
        lanes: Blocks of four words a row.

    Returns:
        Integers in [0, 2^32), int64. Shape: (4 lanes, K, U, B).

    Raises:
        ValueError: when keys are not of shape (K,) in int64, or the index of an update exceeds 32 bits.

    Example:
        >>> keys = torch.tensor([3, 4])
        >>> both = words(keys, 0, 2, 5, 1)
        >>> both.shape, torch.equal(both[:, 1:, 1:], words(keys[1:], 1, 1, 5, 1))
        (torch.Size([4, 2, 2, 5]), True)
    """
    if keys.dim() != 1 or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 of shape (K,), got {keys.dtype} of shape {tuple(keys.shape)}")
    if not 0 <= first <= first + updates <= 2**32:
        raise ValueError(f"updates {first} to {first + updates} are beyond the 32 bits of a counter: start from 0")
    return choose("Philox", keys.device.type, words_ref, words_triton)(keys, first, updates, rows, lanes)


def uniform(word: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Words as numbers in (0, 1], the middle of each of 2^32 cells; single precision rounds the last cells to 1.

    Example:
        >>> uniform(torch.tensor([0, 2**32 - 1])).tolist()
        [1.1641532182693481e-10, 0.9999999998835847]
    """
    return (word.to(dtype) + 0.5) * 2.0**-32


def normal(first: Tensor, second: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers from two words (Box and Muller, 1958).

    Example:
        >>> a, b = normal(*words(torch.tensor([1]), 0, 1, 10000, 1)[:2])
        >>> abs(float(a.mean())) < .05, abs(float(b.var()) - 1) < .05
        (True, True)
    """
    radius = uniform(first, dtype).log_().mul_(-2).sqrt_()
    angle = uniform(second, dtype).mul_(2 * torch.pi)
    return radius * angle.cos(), radius * angle.sin()


def words_triton(keys: Tensor, first: int, updates: int, rows: int, lanes: int) -> Tensor:
    """As :func:`words_ref`, to the bit.

    Raises:
        ImportError: when Triton is not installed.
    """
    if triton is None:
        raise ImportError("the Triton generator needs triton: install it, or use words_ref")
    out = torch.empty(4 * lanes, len(keys), updates, rows, dtype=torch.int64, device=keys.device)
    if out.numel():
        # each axis of a launch but the first is limited to 65,535 programs; updates and networks share the first
        grid = (len(keys) * updates, lanes, triton.cdiv(rows, ROWS))
        words_kernel[grid](out, keys, first, updates, rows, len(keys) * updates * rows, ROWS=ROWS)
    return out


@jit
def words_kernel(out, keys, first, updates, rows, plane, ROWS: tl.constexpr):
    """A program: a piece of the rows of one network and update, for one lane."""
    place, lane = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    key = tl.load(keys + place // updates)
    zero = tl.zeros([ROWS], tl.uint32)
    update = (first + place % updates).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, row.to(tl.uint32), zero + update, zero + lane.to(tl.uint32), zero)
    at = out + 4 * lane * plane.to(tl.int64) + place * rows + row
    inside = row < rows
    tl.store(at, w0.to(tl.int64), mask=inside)
    tl.store(at + plane, w1.to(tl.int64), mask=inside)
    tl.store(at + 2 * plane, w2.to(tl.int64), mask=inside)
    tl.store(at + 3 * plane, w3.to(tl.int64), mask=inside)
