"""CUDA graphs: a function on fixed buffers is captured once and replayed; on other devices it is simply called."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Captured:
    """A function without arguments that reads and writes fixed tensors, captured as a CUDA graph.

    A training step of small networks consists of dozens of kernels of a few microseconds, and most of the time goes
    into launching them. A CUDA graph launches them all at once. Before the capture the function runs a few times, since
    libraries initialise themselves in their first calls; the tensors that it changes are restored afterwards.

    Args:
        f: The function; the tensors it uses must not be replaced later, and it must not copy values to the CPU.
        device: The device of its tensors.
        changes: Tensors that ``f`` changes and whose values are to be restored after the warm-up.

    Example:
        >>> x = torch.zeros(2)
        >>> step = Captured(lambda: x.add_(1), "cpu", [x])
        >>> step(), step(), x.tolist()
        (None, None, [2.0, 2.0])
    """

    def __init__(self, f: Callable[[], object], device: str | torch.device, changes: Iterable[Tensor] = ()):
        self._replay = f
        if torch.device(device).type != "cuda":
            return
        before = [(tensor, tensor.clone()) for tensor in changes]
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    f()
            torch.cuda.current_stream().wait_stream(side)
            for tensor, kept in before:
                tensor.copy_(kept)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                f()
        self._replay = graph.replay

    def __call__(self) -> None:
        """Runs the function once."""
        self._replay()
