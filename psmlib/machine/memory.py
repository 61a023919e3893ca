"""Memory: free bytes of a device, a check before a run that may not fit, and the peak of a computation."""

import weakref

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def available(device: str | torch.device) -> int:
    """Free bytes on a device; for the CPU, the memory that the operating system reports as available.

    Example:
        >>> available("cpu") > 0
        True
    """
    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def check_memory(needed: float, device: str | torch.device, what: str) -> None:
    """Raises MemoryError when ``needed`` bytes are more than nine tenths of what is free.

    Args:
        needed: Predicted peak, in bytes.
        device: The device of the run.
        what: Name of the run, for the message.
    """
    free = available(device)
    if needed > 0.9 * free:
        need, has = f"{needed / 2**30:.1f} GiB", f"{torch.device(device)} has {free / 2**30:.1f} GiB free"
        mend = "use a smaller batch, fewer networks at a time, or another device"
        raise MemoryError(f"{what} needs about {need} but {has}: {mend}")


class HeldBytes(TorchDispatchMode):
    """Counts the bytes of the tensors created inside the context; work space within library calls is not counted.

    Args:
        *known: Tensors that existed before, whose storage, and so that of their views, is not counted.

    Attributes:
        peak: Most bytes held at one time.

    Example:
        >>> x = torch.zeros(1000)
        >>> with HeldBytes(x) as held:
        ...     y = (x[:500] + 1).double().sum()
        >>> held.peak                                               # 500 floats, and as many doubles
        6000
    """

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self._now, self.peak = 0, 0
        self._seen = weakref.WeakKeyDictionary({tensor.untyped_storage(): None for tensor in known})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen[storage] = None
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._release, storage.nbytes())
        return out

    def _release(self, size: int) -> None:
        self._now -= size
