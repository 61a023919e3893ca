"""How much memory a computation holds at a time, counted by the tensors it makes."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HeldBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it; what libraries take for themselves is not seen.

    Args:
        known: Tensors that were there before, so that views of them count nothing.

    Attributes:
        peak: Most bytes held at a time.

    Example:
        >>> x = torch.zeros(1000)
        >>> with HeldBytes(x) as held:
        ...     y = (x[:500] + 1).double().sum()
        >>> held.peak                                               # 500 floats, and as many doubles
        6000
    """

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._users: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                if place not in self._known and size:
                    self._users[place] = self._users.get(place, 0) + 1
                    self._now += size if self._users[place] == 1 else 0
                    self.peak = max(self.peak, self._now)
                    weakref.finalize(tensor, self._release, place, size)
        return out

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        self._now -= size if self._users[place] == 0 else 0
