r"""A bank of K networks of images (U-Nets), held as one stack of parameters, and its reading as a Score.

The networks are modules whose weights are views of rows of the stack, so optimiser, moving average and checkpoints
are those of any other bank. They are run one by one, which takes the memory of one; the benchmark "unets" compares that
with ``torch.func.vmap`` and CUDA graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from psmlib.bank.image_score import ImageScore
from psmlib.bank.stack import NetworkStack, offsets, row_size
from psmlib.nets.image_module import ImageModule
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import Process


class ImageBank(NetworkStack):
    """K networks of images with one architecture.

    Args:
        net: One such network; its settings, dtype and device are those of all, its weights are not used.
        size: K.
        native: What the output is read as: "eps" or "velocity".
        seed: Network k starts from the stream (seed, k), whatever K is.
        only: Make only these networks, a part of the bank; :meth:`joined` puts the parts together, which can be
            trained by different processes or machines.

    Attributes:
        params: Parameters, one row per network, laid out by :mod:`psmlib.bank.stack`, so that P is a little more
            than their number. Shape: (K, P), fewer rows in a part.
        buffers: Running statistics, likewise. Shape: (K, B).

    Raises:
        ValueError: as :class:`~psmlib.bank.stack.NetworkStack` does.
        MemoryError: likewise.

    Example:
        >>> from psmlib.nets import unet
        >>> bank = ImageBank(unet.small(dim=8), 3, seed=0)
        >>> bank.params.shape, bank
        (torch.Size([3, 50512]), ImageBank(3 x UNet of 50,505 parameters))
    """

    architectures = {"UNet": UNet, "Ronneberger": Ronneberger}

    buffers: Tensor

    def __init__(self, net: ImageModule, size: int, *, native: str = "eps", seed: int = 0, only: range | None = None):
        like = next(net.parameters())
        options = {"dtype": like.dtype, "device": like.device}
        super().__init__(type(net), dict(net.settings), size, native=native, seed=seed, only=only, **options)

    def _build(self, kind: type[ImageModule], settings: dict) -> None:
        super()._build(kind, settings)
        # the network without numbers: on the meta device, in evaluation mode, frozen
        self._blank = kind(**settings).to("meta").eval().requires_grad_(False)
        self.parameter_count = self._blank.parameter_count
        self.row_sizes = {"params": row_size(self._blank.parameters()), "buffers": row_size(self._blank.buffers())}

    def _initialise(self, row: int, generator: torch.Generator) -> None:
        net = self.kind(**self.settings, seed=generator, dtype=self.params.dtype, device=self.device)
        for view, tensor in _views(net, self.params[row], self.buffers[row]):
            view.copy_(tensor.detach())

    def __setattr__(self, name: str, value) -> None:
        if name in ("params", "buffers"):
            self._networks: dict[int, ImageModule] = {}  # those made before are views of another stack
        super().__setattr__(name, value)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_networks": {}}  # after unpickling, views would no longer share the stack's memory

    def network(self, k: int) -> ImageModule:
        """Network k, in evaluation mode and frozen; its weights are views of row k, and change with it.

        In a part of a bank, k counts from the part's first network.
        """
        if k not in self._networks:
            # .data has its own version counter: with the stack's, an update of one network would make autograd fail
            # in the backward pass of another network in another thread
            memo = {
                id(tensor): nn.Parameter(view.data, False) if isinstance(tensor, nn.Parameter) else view.data
                for view, tensor in _views(self._blank, self.params[k], self.buffers[k])
            }
            self._networks[k] = copy.deepcopy(self._blank, memo)
        return self._networks[k]

    def bind_gradients(self, k: int, row: Tensor) -> None:
        """Makes a backward pass through network k add its gradient to ``row``. Shape: (P,)."""
        net = self.network(k)
        for view, tensor in _views(net, row, self.buffers[k]):
            if isinstance(tensor, nn.Parameter):
                tensor.grad = view

    def changed(self, **settings) -> ImageBank:
        """The same networks under other settings that leave their parameters as they are.

        Args:
            settings: As of the architecture.

        Raises:
            ValueError: when the parameters would have other names, shapes or places in memory.

        Example:
            >>> from psmlib.nets import ronneberger
            >>> ImageBank(ronneberger.small(a=4), 2).changed(batch_at_test=True).settings["batch_at_test"]
            True
        """
        other = self.copy()
        other._build(self.kind, {**self.settings, **settings})
        if _layout(other._blank) != _layout(self._blank):
            raise ValueError(f"{settings} would change the parameters or their layout: make a new ImageBank with them")
        return other

    def score(self, partition: Partition, process: Process) -> ImageScore:
        """The Score of this bank, network k answering for block k.

        Args:
            partition: As many blocks as there are networks.
            process: The Gaussian path.

        Raises:
            ValueError: when this is a part of a bank, or the three do not fit together.
        """
        return ImageScore(self, partition, process)


def _layout(net: ImageModule) -> list[tuple]:
    """What must be the same for a row of the stack to mean the same."""
    return [(name, tensor.shape, tensor.stride()) for name, tensor in net.state_dict().items()]


def _views(net: ImageModule, params: Tensor, buffers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a view of a row and the tensor of the network that it holds, in the tensor's own memory format."""
    for row, tensors in ((params, net.parameters()), (buffers, net.buffers())):
        for at, tensor in offsets(tensors):
            # exactly the tensor's strides: those of a weight with one channel agree with either memory format, and
            # with other strides the convolutions would choose the other one
            yield row[at : at + tensor.numel()].as_strided(tensor.shape, tensor.stride()), tensor
