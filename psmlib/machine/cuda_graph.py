"""Work on fixed buffers, recorded once and replayed: on a CUDA device as one graph, elsewhere by calling it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Captured:
    """A function without arguments that reads and writes tensors of its own.

    A step of small networks is dozens of launches of a few microseconds, and the time goes into launching. A CUDA graph
    launches them all at once. Before it is recorded the function must have run a few times, since libraries set
    themselves up in their first calls; what those runs change is put back.

    Args:
        f: The work; no tensor that it uses may be replaced later, and it may not ask the device for a value.
        device: Where it runs.
        changes: Tensors that ``f`` changes and that must not feel the runs before the recording.

    Example:
        >>> x = torch.zeros(2)
        >>> step = Captured(lambda: x.add_(1), "cpu", [x])
        >>> step(), step(), x.tolist()
        (None, None, [2.0, 2.0])
    """

    def __init__(self, f: Callable[[], object], device: str | torch.device, changes: Iterable[Tensor] = ()):
        self._replay: Callable[[], object] = f
        if torch.device(device).type == "cuda":
            self._replay = self._record(f, torch.device(device), list(changes)).replay

    @staticmethod
    def _record(f: Callable[[], object], device: torch.device, changes: list[Tensor]) -> torch.cuda.CUDAGraph:
        """The graph; the work is left as if it had never run."""
        before = [tensor.clone() for tensor in changes]
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    f()
            torch.cuda.current_stream().wait_stream(aside)
            for tensor, kept in zip(changes, before, strict=True):
                tensor.copy_(kept)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                f()
        return graph

    def __call__(self) -> None:
        """Does the work once."""
        self._replay()
