r"""A bank of U-Nets: K networks of images, held as one stack of parameters, and its reading as a Score.

The networks are modules whose weights are windows on rows of the stack, so optimiser, moving average and checkpoints
are those of any other bank. They are run one by one, which takes the memory of one; how much faster they would be as
groups of one convolution (:mod:`psmlib.benchmarks.grouped`), or under ``torch.func.vmap``, the benchmark "unets" tells.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from psmlib.bank import checkpoint
from psmlib.bank.image_score import ImageScore
from psmlib.bank.stack import in_order, places, room, stretch
from psmlib.machine.memory import check_memory
from psmlib.machine.streams import stream
from psmlib.nets.image_module import ImageModule
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import Process

ARCHITECTURES = {"UNet": UNet, "Ronneberger": Ronneberger}
"""By name, for reading a bank back from its file."""


class ImageBank:
    """K networks of images with one architecture.

    Args:
        net: One network of the kind; its settings, dtype and device are those of all, its weights are not used.
        size: K.
        native: What the output is read as: "eps" or "velocity".
        seed: Network k starts from the stream (seed, k), whatever K is.
        only: Make these networks alone, a part of the bank that :meth:`joined` puts together with the others: parts
            can be trained by processes or machines of their own.

    Attributes:
        params: Parameters, a row for each network, laid out by :mod:`psmlib.bank.stack`, so that P is a little more
            than their number. Shape: (K, P), fewer rows in a part.
        buffers: Running statistics, likewise. Shape: (K, B).
        first: The block that the first network answers for; not 0 in a part alone.
        whole: K, also in a part.

    Raises:
        ValueError: when size is not positive, or ``only`` names none of the networks.
        MemoryError: when the parameters do not fit, before any is made.

    Example:
        >>> from psmlib.nets import unet
        >>> bank = ImageBank(unet.small(dim=8), 3, seed=0)
        >>> bank.params.shape, len(bank)
        (torch.Size([3, 50512]), 3)
    """

    widths: tuple[int, ...] = ()
    """No layers as matrices: an optimiser that needs them refuses."""

    def __init__(self, net: ImageModule, size: int, *, native: str = "eps", seed: int = 0, only: range | None = None):
        only = stretch(size, only, "an ImageBank")
        self.first, self.whole = only.start, size
        self.kind, self.settings, self.native, self.seed = type(net), dict(net.settings), native, seed
        like = next(net.parameters())
        self._allocate(len(only), net, like.dtype, like.device)
        for k in range(len(only)):
            made = self.kind(**self.settings, seed=stream(seed, only[k], 0), dtype=like.dtype, device=like.device)
            for row, tensor in _windows(made, self.params[k], self.buffers[k]):
                row.copy_(tensor.detach())
        self._blank = _blank(made)

    def _allocate(self, size: int, net: ImageModule, dtype: torch.dtype, device: torch.device) -> None:
        parameters, buffers = room(net.parameters()), room(net.buffers())
        needed = size * (parameters + buffers) * torch.empty((), dtype=dtype).element_size()
        check_memory(needed, device, f"{size} networks of {net.parameter_count:,} parameters")
        self.params = torch.zeros(size, parameters, dtype=dtype, device=device)
        self.buffers = torch.zeros(size, buffers, dtype=dtype, device=device)

    def __setattr__(self, name: str, value) -> None:
        if name in ("params", "buffers"):
            self._networks: dict[int, ImageModule] = {}  # those that were made look at another stack
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.params)

    def __repr__(self) -> str:
        return f"ImageBank({len(self)} x {self.kind.__name__} of {self._blank.parameter_count:,} parameters)"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_networks": {}}  # windows would lose their sight of the stack on the way

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.params.device

    @property
    def description(self) -> str:
        """The architecture in words, for a checkpoint to remember."""
        return f"{self.kind.__name__}({self.settings})"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that tells one bank of an architecture from another, by name; rows are networks."""
        return {"params": self.params, "buffers": self.buffers}

    def network(self, k: int) -> ImageModule:
        """Network k, in evaluation mode and frozen; its weights are windows on row k, and change with it.

        It counts from the first network that is held here, also in a part of a bank.
        """
        if k not in self._networks:
            # .data, which has a version counter of its own: with the stack's, a step of one network would upset
            # autograd at another that is in its backward pass in another thread
            seen = {
                id(tensor): nn.Parameter(window.data, False) if isinstance(tensor, nn.Parameter) else window.data
                for window, tensor in _windows(self._blank, self.params[k], self.buffers[k])
            }
            self._networks[k] = copy.deepcopy(self._blank, seen)
        return self._networks[k]

    def bind_gradients(self, k: int, row: Tensor) -> None:
        """Makes a backward pass through network k add its gradient to ``row``. Shape: (P,)."""
        net = self.network(k)
        for window, tensor in _windows(net, row, self.buffers[k]):
            if isinstance(tensor, nn.Parameter):
                tensor.grad = window

    def copy(self, params: Tensor | None = None, buffers: Tensor | None = None) -> ImageBank:
        """A bank of the same architecture with its own tensors: copies of these, or of those given."""
        other = copy.copy(self)
        other.params = (self.params if params is None else params).clone()
        other.buffers = (self.buffers if buffers is None else buffers).clone()
        return other

    @classmethod
    def joined(cls, parts: Iterable[ImageBank]) -> ImageBank:
        """One bank of the parts of a bank, in whatever order they come.

        Args:
            parts: Banks that were made alike but for ``only``.

        Raises:
            ValueError: when they are not all the parts of one bank.

        Example:
            >>> from psmlib.nets import unet
            >>> parts = [ImageBank(unet.small(dim=8), 3, only=part) for part in (range(2, 3), range(2))]
            >>> ImageBank.joined(parts).first, len(ImageBank.joined(parts))
            (0, 3)
        """
        parts = in_order(parts)
        bank = copy.copy(parts[0])
        bank.params, bank.buffers = (torch.cat([p.tensors[name] for p in parts]) for name in ("params", "buffers"))
        return bank

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ImageBank:
        """A copy on another device or in another dtype."""
        place = {"device": device or self.device, "dtype": dtype or self.params.dtype}
        return self.copy(params=self.params.to(**place), buffers=self.buffers.to(**place))

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
        other.settings = {**self.settings, **settings}
        other._blank = _blank(self.kind(**other.settings))
        if _layout(other._blank) != _layout(self._blank):
            raise ValueError(f"{settings} would change the parameters or their layout: make a new ImageBank with them")
        return other

    def save(self, path: str | Path, **about) -> None:
        """Writes the networks to a safetensors file, with ``about`` beside them."""
        arch = {"arch": self.kind.__name__, "settings": self.settings, "native": self.native, "seed": self.seed}
        checkpoint.save(path, self.tensors, {**about, **arch, "first": self.first, "whole": self.whole})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> tuple[ImageBank, dict]:
        """Reads what :meth:`save` wrote: the bank and its description.

        Raises:
            ValueError: when the file is missing, broken, or not of a bank of image networks.

        Example:
            >>> import tempfile
            >>> from psmlib.nets import unet
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     ImageBank(unet.small(dim=8), 2).save(f"{folder}/two.safetensors", updates=100)
            ...     bank, about = ImageBank.load(f"{folder}/two.safetensors")
            >>> bank, about["updates"]
            (ImageBank(2 x UNet of 50,505 parameters), 100)
        """
        tensors, about = checkpoint.load(path)
        if set(tensors) != {"params", "buffers"} or about.get("arch") not in ARCHITECTURES:
            raise ValueError(f"{path} does not hold a bank of image networks: write it with ImageBank.save")
        bank = object.__new__(cls)
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in about["settings"].items()}
        bank.kind, bank.settings = ARCHITECTURES[about["arch"]], settings
        bank._blank = _blank(bank.kind(**settings))
        if room(bank._blank.parameters()) != tensors["params"].shape[1]:
            raise ValueError(f"{path} holds other parameters than a {bank.description} has: train its networks anew")
        bank.native, bank.seed = about["native"], about["seed"]
        bank.first, bank.whole = about["first"], about["whole"]
        bank.params, bank.buffers = tensors["params"].to(device), tensors["buffers"].to(device)
        return bank, about

    def score(self, partition: Partition, process: Process) -> ImageScore:
        """The Score of this bank, network k answering for block k.

        Args:
            partition: As many blocks as there are networks.
            process: The Gaussian path.

        Raises:
            ValueError: when this is a part of a bank, or the three do not fit together.
        """
        return ImageScore(self, partition, process)


def _blank(net: ImageModule) -> ImageModule:
    """The network without its numbers: on the meta device, in evaluation mode, frozen."""
    return net.to("meta").eval().requires_grad_(False)


def _layout(net: ImageModule) -> list[tuple]:
    """What must be the same for a row of the stack to mean the same."""
    return [(name, tensor.shape, tensor.stride()) for name, tensor in net.state_dict().items()]


def _windows(net: ImageModule, params: Tensor, buffers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a window on a row and the tensor of the network that belongs there, in the tensor's own layout."""
    for row, tensors in ((params, net.parameters()), (buffers, net.buffers())):
        for at, tensor in places(tensors):
            # the strides themselves, not a view in the order they stand for: of a weight of one channel either layout
            # can be meant, and the convolutions would take the other
            yield row[at : at + tensor.numel()].as_strided(tensor.shape, tensor.stride()), tensor
