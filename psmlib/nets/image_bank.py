r"""A bank of U-Nets: K networks of images, held as one stack of parameters, and its reading as a Score.

The networks are modules whose weights are windows on rows of the stack, so optimiser, moving average and checkpoints
are those of any other bank. They are run one by one: on a CPU a convolution is busy enough with one network's batch,
and batching them (``torch.func.vmap``) was slower.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from psmlib import checkpoint
from psmlib.gaussian_path import Process
from psmlib.memory import check_memory
from psmlib.nets.bank import stream
from psmlib.nets.image_module import ImageModule
from psmlib.nets.image_score import ImageScore
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition

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

    Raises:
        ValueError: when size is not positive, or ``only`` names none of the networks.
        MemoryError: when the parameters do not fit, before any is made.

    Example:
        >>> from psmlib.nets import unet
        >>> bank = ImageBank(unet.small(dim=8), 3, seed=0)
        >>> bank.params.shape, len(bank)
        (torch.Size([3, 50505]), 3)
    """

    widths: tuple[int, ...] = ()
    """No layers as matrices: an optimiser that needs them refuses."""

    def __init__(self, net: ImageModule, size: int, *, native: str = "eps", seed: int = 0, only: range | None = None):
        if size < 1:
            raise ValueError(f"an ImageBank needs at least one network, got size={size}")
        only = range(size) if only is None else only
        if not only or only.step != 1 or not 0 <= only.start < only.stop <= size:
            raise ValueError(f"only={only} is no stretch of the {size} networks: give a range within 0..{size}")
        self.first, self.whole = only.start, size
        self.kind, self.settings, self.native, self.seed = type(net), dict(net.settings), native, seed
        like = next(net.parameters())
        self._allocate(len(only), net.parameter_count, sum(b.numel() for b in net.buffers()), like.dtype, like.device)
        for k in range(len(only)):
            made = self.kind(**self.settings, seed=stream(seed, only[k], 0), dtype=like.dtype, device=like.device)
            for row, tensor in _windows(made, self.params[k], self.buffers[k]):
                row.copy_(tensor.detach())

    def _allocate(self, size: int, parameters: int, buffers: int, dtype: torch.dtype, device: torch.device) -> None:
        needed = size * (parameters + buffers) * torch.empty((), dtype=dtype).element_size()
        check_memory(needed, device, f"{size} networks of {parameters:,} parameters")
        self.params = torch.empty(size, parameters, dtype=dtype, device=device)
        self.buffers = torch.empty(size, buffers, dtype=dtype, device=device)
        self._networks: dict[int, ImageModule] = {}

    def __len__(self) -> int:
        return len(self.params)

    def __repr__(self) -> str:
        return f"ImageBank({len(self)} x {self.kind.__name__} of {self.params.shape[1]:,} parameters)"

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
        """Network k, in evaluation mode and frozen; its weights are windows on row k, and change with it."""
        if k not in self._networks:
            net = self.kind(**self.settings, dtype=self.params.dtype, device=self.device)
            for row, tensor in _windows(net, self.params[k], self.buffers[k]):
                tensor.data = row
            self._networks[k] = net.eval().requires_grad_(False)
        return self._networks[k]

    def bind_gradients(self, k: int, row: Tensor) -> None:
        """Makes a backward pass through network k add its gradient to ``row``. Shape: (P,)."""
        net = self.network(k)
        for window, tensor in _windows(net, row, self.buffers[k]):
            if isinstance(tensor, torch.nn.Parameter):
                tensor.grad = window

    def copy(self, **tensors: Tensor) -> ImageBank:
        """A bank of the same architecture with its own parameters: a copy of these, or of those given."""
        other = copy.copy(self)
        other.params = tensors.get("params", self.params).clone()
        other.buffers = tensors.get("buffers", self.buffers).clone()
        other._networks = {}
        return other

    @classmethod
    def joined(cls, parts: Iterable[ImageBank]) -> ImageBank:
        """One bank of the parts of a bank, in whatever order they come.

        Raises:
            ValueError: when they are not all the parts of one bank.

        Example:
            >>> from psmlib.nets import unet
            >>> parts = [ImageBank(unet.small(dim=8), 3, only=part) for part in (range(2, 3), range(2))]
            >>> ImageBank.joined(parts).first, len(ImageBank.joined(parts))
            (0, 3)
        """
        parts = sorted(parts, key=lambda part: part.first)
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part))
        kinds = {(part.kind, repr(part.settings), part.native, part.whole) for part in parts}
        if [part.first for part in parts] != starts[:-1] or len(kinds) != 1 or starts[-1] != parts[0].whole:
            found = [(part.first, len(part)) for part in parts]
            raise ValueError(f"the parts (first, size) = {found} do not make one bank: give each part once")
        bank = copy.copy(parts[0])
        bank.params, bank.buffers = (torch.cat([p.tensors[name] for p in parts]) for name in ("params", "buffers"))
        bank._networks = {}
        return bank

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ImageBank:
        """A copy on another device or in another dtype."""
        place = {"device": device or self.device, "dtype": dtype or self.params.dtype}
        return self.copy(params=self.params.to(**place), buffers=self.buffers.to(**place))

    def changed(self, **settings) -> ImageBank:
        """The same networks under other settings that leave their parameters as they are.

        Example:
            >>> from psmlib.nets import ronneberger
            >>> ImageBank(ronneberger.small(a=4), 2).changed(batch_at_test=True).settings["batch_at_test"]
            True
        """
        other = self.copy()
        other.settings = {**self.settings, **settings}
        made = self.kind(**other.settings)
        if made.parameter_count != self.params.shape[1]:
            raise ValueError(f"{settings} would change the number of parameters: make a new ImageBank with them")
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
        """
        tensors, about = checkpoint.load(path)
        if set(tensors) != {"params", "buffers"} or about.get("arch") not in ARCHITECTURES:
            raise ValueError(f"{path} does not hold a bank of image networks: write it with ImageBank.save")
        bank = object.__new__(cls)
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in about["settings"].items()}
        bank.kind, bank.settings = ARCHITECTURES[about["arch"]], settings
        bank.native, bank.seed, bank._networks = about["native"], about["seed"], {}
        bank.first, bank.whole = about["first"], about["whole"]
        bank.params, bank.buffers = tensors["params"].to(device), tensors["buffers"].to(device)
        return bank, about

    def score(self, partition: Partition, process: Process) -> ImageScore:
        """The Score of this bank, network k answering for block k."""
        return ImageScore(self, partition, process)


def _windows(net: ImageModule, params: Tensor, buffers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a window on a row and the tensor of the network that belongs there, in the tensor's own layout."""
    for row, tensors in ((params, net.parameters()), (buffers, net.buffers())):
        at = 0
        for tensor in tensors:
            piece, at = row[at : at + tensor.numel()], at + tensor.numel()
            if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
                o, i, h, w = tensor.shape
                yield piece.view(o, h, w, i).permute(0, 3, 1, 2), tensor
            else:
                yield piece.view(tensor.shape), tensor
