"""Random streams: generators that depend on a seed and a path of integers alone, so that work can be cut anywhere."""

from __future__ import annotations

import torch


def stream_key(seed: int, *path: int) -> int:
    """A number of 63 bits that depends on the seed and a path of integers alone.

    Example:
        >>> stream_key(0, 3) == stream_key(0, 3), stream_key(0, 3) == stream_key(0, 4)
        (True, False)
    """
    state = int(seed) & 0xFFFFFFFFFFFFFFFF
    for part in (0x9E3779B9, *path):  # splitmix64: neighbouring paths give unrelated states
        state = (state + 0x9E3779B97F4A7C15 * (int(part) + 1)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def stream(seed: int, *path: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that depends on the seed and a path of integers alone, so that runs can be cut up anywhere.

    Example:
        >>> a, b = stream(0, 3), stream(0, 3)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    return torch.Generator(device).manual_seed(stream_key(seed, *path))
