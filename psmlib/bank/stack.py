"""A stack of K networks of one architecture, one row of parameters each: the base class of every bank.

Within a row each tensor begins at a multiple of eight numbers, so of 16 bytes in any precision: GPU kernels load that
much at a time and fail on a weight that is not aligned. The gaps hold zeros and stay zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.machine.checks import check_count, plain
from psmlib.machine.memory import check_memory
from psmlib.machine.streams import stream
from psmlib.process import PREDICTIONS


class NetworkStack:
    """What :class:`~psmlib.bank.mlp_bank.Bank` and :class:`~psmlib.bank.image_bank.ImageBank` have in common.

    A subclass names its ``architectures``, sets ``row_sizes`` and ``parameter_count`` in :meth:`_build`, and gives one
    network its first values in :meth:`_initialise`.

    Args:
        kind: The architecture's class.
        settings: Its arguments.
        size: K.
        native: What the output is read as: "eps" or "velocity".
        seed: Network k starts from the stream (seed, k), whatever K is.
        only: Make only these networks, a part of the bank; :meth:`joined` puts the parts together.
        dtype: Of the parameters.
        device: Of the parameters.

    Attributes:
        params: Parameters, one row per network. Shape: (K, P), fewer rows in a part.
        first: Index of the first network in the whole bank; not 0 in a part.
        whole: K, also in a part.
        row_sizes: Numbers in a row of each tensor, by the tensor's name.
        parameter_count: Parameters of one network.

    Raises:
        ValueError: when size is not positive, or ``only`` is not a range within it.
        MemoryError: when the parameters do not fit, before they are allocated.

    Example:
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> Bank(Plain(), 4), Bank(Plain(), 4, only=range(2, 4)).first
        (Bank(4 x Plain of 30,952 parameters), 2)
    """

    architectures: ClassVar[dict[str, type]]
    """By name, to read a bank back from its file."""

    widths: tuple[int, ...] = ()
    """Widths of the layers, for optimisers that work on matrices; empty where the layers are not matrices."""

    params: Tensor
    row_sizes: dict[str, int]
    parameter_count: int

    def __init__(
        self, kind: type, settings: dict, size: int, *, native: str, seed: int, only: range | None,
        dtype: torch.dtype, device: str | torch.device,
    ):  # fmt: skip
        check_count("size", size)
        size, seed = int(size), plain(seed)
        only = range(size) if only is None else only
        if not only or only.step != 1 or not 0 <= only.start < only.stop <= size:
            raise ValueError(f"only={only} selects no unbroken range of networks: give one within 0..{size}, of step 1")
        self.first, self.whole, self.native, self.seed = only.start, size, native, seed
        self._build(kind, settings)
        bytes_needed = len(only) * sum(self.row_sizes.values()) * dtype.itemsize
        check_memory(bytes_needed, device, f"{len(only)} networks of {self.parameter_count:,} parameters")
        for name, numbers in self.row_sizes.items():
            setattr(self, name, torch.zeros(len(only), numbers, dtype=dtype, device=device))
        for row, k in enumerate(only):
            self._initialise(row, stream(seed, k, 0))

    def _build(self, kind: type, settings: dict) -> None:
        """Sets everything that the architecture decides; no parameters yet."""
        self.kind, self.settings = kind, settings

    def _initialise(self, row: int, generator: torch.Generator) -> None:
        """Fills a row with a network's first values."""
        raise TypeError(f"{type(self).__name__} does not define _initialise(row, generator)")

    def __len__(self) -> int:
        return len(self.params)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} x {self.kind.__name__} of {self.parameter_count:,} parameters)"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.params.device

    @property
    def description(self) -> str:
        """The architecture in words, as checkpoints store it."""
        return f"{self.kind.__name__}({self.settings})"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that differ between banks of one architecture, by name; rows are networks."""
        return {name: getattr(self, name) for name in self.row_sizes}

    def copy(self, **tensors: Tensor) -> Self:
        """A bank of the same architecture with its own tensors: copies of these, or of those given by name.

        Tensors with another number of rows make a whole bank of that many networks.

        Raises:
            ValueError: for an unknown name, or tensors with different numbers of rows.
        """
        held = {**self.tensors, **tensors}
        if held.keys() != self.tensors.keys() or len({len(rows) for rows in held.values()}) > 1:
            raise ValueError(f"a copy needs {' and '.join(self.tensors)} with one row per network, got {list(tensors)}")
        other = copy.copy(self)
        for name, rows in held.items():
            setattr(other, name, rows.clone())
        if len(other) != len(self):
            other.first, other.whole = 0, len(other)
        return other

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy on another device or in another dtype."""
        options = {"device": device or self.device, "dtype": dtype or self.params.dtype}
        return self.copy(**{name: rows.to(**options) for name, rows in self.tensors.items()})

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """The bank that parts of it make together, in whatever order they come.

        Args:
            parts: Banks that were made alike but for ``only``.

        Raises:
            ValueError: when they are not all the parts of one bank.

        Example:
            >>> from psmlib.bank.mlp_bank import Bank
            >>> from psmlib.nets.mlp import Plain
            >>> parts = [Bank(Plain(), 3, only=part) for part in (range(2, 3), range(2))]
            >>> torch.equal(Bank.joined(parts).params, Bank(Plain(), 3).params)
            True
        """
        parts = sorted(parts, key=lambda part: part.first)
        networks = [part.first + k for part in parts for k in range(len(part))]
        kinds = {(part.description, part.native, part.seed, part.params.dtype, part.whole) for part in parts}
        if len(kinds) != 1 or networks != list(range(parts[0].whole)):
            found = [(part.first, len(part)) for part in parts]
            raise ValueError(f"the parts (first, size) = {found} do not make one bank: give each part of one bank once")
        bank = copy.copy(parts[0])
        for name in bank.row_sizes:
            setattr(bank, name, torch.cat([part.tensors[name] for part in parts]))
        return bank

    def save(self, path: str | Path, **about) -> None:
        """Writes the networks to a safetensors file, with ``about`` beside them."""
        own = {"arch": self.kind.__name__, "settings": self.settings, "native": self.native, "seed": self.seed}
        checkpoint.save(path, self.tensors, {**about, **own, "first": self.first, "whole": self.whole})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> tuple[Self, dict]:
        """Reads what :meth:`save` wrote: the bank and its description.

        Raises:
            ValueError: when the file is missing, broken, or holds no bank of this class.

        Example:
            >>> import tempfile
            >>> from psmlib.bank.mlp_bank import Bank
            >>> from psmlib.nets.mlp import Plain
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Bank(Plain(), 2).save(f"{folder}/two.safetensors", updates=100)
            ...     bank, about = Bank.load(f"{folder}/two.safetensors")
            >>> bank, about["updates"]
            (Bank(2 x Plain of 30,952 parameters), 100)
        """
        tensors, about = checkpoint.load(path)
        if about.get("arch") not in list(cls.architectures):
            raise ValueError(f"{path} does not hold the networks of {cls.__name__}: write it with {cls.__name__}.save")
        bank, numbers = object.__new__(cls), [about.get(name) for name in ("seed", "first", "whole")]
        if not isinstance(about.get("settings"), dict) or not all(type(number) is int for number in numbers):
            raise ValueError(f"{path} does not tell which networks it holds: write it with {cls.__name__}.save")
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in about["settings"].items()}
        try:
            bank._build(cls.architectures[about["arch"]], settings)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no network that can be made ({error}): train its networks anew") from None
        rows = {len(tensor) for tensor in tensors.values() if tensor.dim()}
        if {name: rows.shape[1:] for name, rows in tensors.items()} != {k: (n,) for k, n in bank.row_sizes.items()}:
            raise ValueError(f"{path} holds other parameters than a {bank.description} has: train its networks anew")
        if len(rows) != 1 or not 0 <= about["first"] < about["first"] + min(rows) <= about["whole"]:
            raise ValueError(
                f"{path} holds {rows} networks from {about['first']} on of {about['whole']}: train them anew"
            )
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError(f"{path} holds whole numbers where parameters should be: train its networks anew")
        if about.get("native") not in PREDICTIONS:
            raise ValueError(f"{path} does not say what its networks predict: train them anew")
        for name, rows in tensors.items():
            setattr(bank, name, rows.to(device))
        for name in ("native", "seed", "first", "whole"):
            setattr(bank, name, about[name])
        return bank, about


ALIGNMENT = 8
"""Every tensor begins at a multiple of this many numbers."""


def offsets(tensors: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each tensor and where its numbers begin in a row.

    Example:
        >>> [at for at, _ in offsets([torch.zeros(3), torch.zeros(2, 5), torch.zeros(1)])]
        [0, 8, 24]
    """
    at = 0
    for tensor in tensors:
        yield at, tensor
        at += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT


def row_size(tensors: Iterable[Tensor]) -> int:
    """Numbers in a row that holds these tensors.

    Example:
        >>> row_size([torch.zeros(3), torch.zeros(2, 5), torch.zeros(1)]), row_size([])
        (32, 0)
    """
    return sum(-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors)
