"""What all networks of images have in common: checks of their input, the rim, the start, the counts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.machine.memory import HeldBytes
from psmlib.machine.streams import stream
from psmlib.process import Process


def arguments(given: dict) -> dict:
    """Those of a network's arguments, ``locals()`` at its start, that make the same network again but for its weights.

    Example:
        >>> arguments({"self": None, "dim": 64, "seed": 0})
        {'dim': 64}
    """
    return {k: v for k, v in given.items() if k not in ("self", "__class__", "kinds", "seed", "dtype", "device")}


class ImageModule(nn.Module):
    """A network of images: checks of its input, the rim, the start, the counts.

    A subclass builds its layers under ``torch.device("meta")``, calls :meth:`_start`, and in ``forward`` :meth:`enter`
    first and :meth:`leave` last.

    Args:
        channels: Of the images.
        levels: How many; the sides of an image must be multiples of 2 ** (levels - 1).
        pad: Whether other images get a rim of zeros; else they are refused.
    """

    last: nn.Conv2d
    settings: dict
    """The arguments that make the same network again, but for its weights."""

    def __init__(self, channels: int, levels: int, pad: bool):
        super().__init__()
        self.channels, self.multiple, self.pad = channels, 2 ** max(levels - 1, 0), pad

    def _start(
        self, seed: int | torch.Generator, dtype: torch.dtype, device: str | torch.device,
        zero_last: bool, channels_last: bool,
    ) -> None:  # fmt: skip
        """Gives the layers their storage and their first values: torch's own distributions, from one stream."""
        generator = seed if isinstance(seed, torch.Generator) else stream(seed)
        self.to(dtype).to_empty(device=device)
        for module in self.modules():
            weight = getattr(module, "weight", None)
            for name, tensor in module.named_parameters(recurse=False):
                if weight.dim() == 1:  # a norm
                    tensor.data.fill_(float(name == "weight"))
                else:
                    bound = 1 / math.sqrt(weight[0].numel())
                    # drawn in float64 on the generator's device: the same network in any dtype, on any device
                    draw = torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device=generator.device)
                    tensor.data.copy_((2 * draw - 1) * bound)
            for name, tensor in module.named_buffers(recurse=False):
                tensor.fill_(float(name == "running_var"))
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)
        if channels_last:  # the convolutions take their layout from their weights
            self.to(memory_format=torch.channels_last)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def memory(self, batch: int, size: tuple[int, int], *, training: bool = True) -> int:
        """Bytes that one call needs at its peak, the network's own included.

        It is counted by a run on tensors without storage, so it takes no memory and little time. What the
        convolutions of a library need as work space is not in it.

        Args:
            batch: Images at once.
            size: Their height and width.
            training: Whether to count gradients and Adam's two moments as well, and what the backward pass keeps.
        """
        own = {n: torch.empty_like(p, device="meta", requires_grad=training) for n, p in self.named_parameters()}
        own |= {n: torch.empty_like(b, device="meta") for n, b in self.named_buffers()}
        state = sum(p.nbytes for p in own.values()) + training * 2 * sum(p.nbytes for p in self.parameters())
        held = HeldBytes()
        with held, torch.set_grad_enabled(training):
            like = next(iter(own.values()))
            x = like.new_empty(batch, self.channels, *size, requires_grad=False)
            out = torch.func.functional_call(self, own, self._arguments(x))
            if training:
                F.mse_loss(out, torch.zeros_like(out)).backward()
        return state + held.peak

    def inputs(self, x: Tensor, t: float | Tensor, process: Process) -> tuple[Tensor, ...]:
        """What to call the network with for images ``x`` at times ``t``, of shape () or (n,): here the images alone."""
        return (x,)

    def _arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with."""
        return (x,)

    def enter(self, x: Tensor) -> Tensor:
        """The images, checked, with their rim of zeros. Shape: (n, C, H, W) -> (n, C, H', W')."""
        name, weight = type(self).__name__, self.last.weight
        if x.dim() != 4 or x.shape[1] != self.channels or not x.shape[2] * x.shape[3]:
            raise ValueError(f"{name} takes images of shape (n, {self.channels}, H, W), got {tuple(x.shape)}")
        if x.device != weight.device:
            raise ValueError(f"{name} is on {weight.device} but the images are on {x.device}: move either with .to")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} holds {weight.dtype} but the images are {x.dtype}: convert either with .to")
        rim = [-side % self.multiple for side in x.shape[-2:]]
        if not any(rim):
            return x
        if not self.pad:
            raise ValueError(
                f"{name} halves its images to a {self.multiple}th, which {x.shape[2]}x{x.shape[3]} does not allow: "
                f"use fewer levels, or pad=True"
            )
        top, left = (r // 2 for r in rim)
        return F.pad(x, (left, rim[1] - left, top, rim[0] - top))

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """The output without the rim. Shape: that of the images ``x``."""
        top, left = ((-side % self.multiple) // 2 for side in x.shape[-2:])
        return y[..., top : top + x.shape[2], left : left + x.shape[3]]
