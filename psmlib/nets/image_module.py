"""Base class of all networks of images: input checks, zero padding, initialisation, parameter and memory counts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.machine.memory import HeldBytes
from psmlib.machine.streams import stream
from psmlib.process import Process


def arguments(given: dict) -> dict:
    """The arguments, among ``locals()`` at the start of a network's ``__init__``, that define its architecture.

    Example:
        >>> arguments({"self": None, "dim": 64, "seed": 0})
        {'dim': 64}
    """
    return {k: v for k, v in given.items() if k not in ("self", "__class__", "kinds", "seed", "dtype", "device")}


def check_options(name: str, x: Tensor, weight: Tensor) -> None:
    """Raises ValueError unless images have the device and, outside autocast, the dtype of a network's weights."""
    if x.device != weight.device:
        raise ValueError(f"{name} is on {weight.device} but the images are on {x.device}: move either with .to")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"{name} holds {weight.dtype} but the images are {x.dtype}: convert either with .to")


class ImageModule(nn.Module):
    """A network of images.

    A subclass creates its layers under ``torch.device("meta")``, then calls :meth:`_initialise`; its ``forward`` begins
    with :meth:`prepare` and ends with :meth:`crop`.

    Args:
        channels: Channels of the images.
        levels: Number of levels; height and width must be multiples of 2 ** (levels - 1).
        pad: Whether images of other sizes are padded with zeros; else they are refused.

    Attributes:
        last: The last layer.
        settings: The arguments that define the architecture.
    """

    last: nn.Conv2d
    settings: dict

    def __init__(self, channels: int, levels: int, pad: bool):
        super().__init__()
        self.channels, self.multiple, self.pad = channels, 2 ** max(levels - 1, 0), pad

    def _initialise(self, seed: int | torch.Generator, dtype, device, zero_last: bool, channels_last: bool) -> None:
        """Allocates the parameters and draws them from torch's default distributions with one random stream."""
        generator = seed if isinstance(seed, torch.Generator) else stream(seed)
        self.to(dtype).to_empty(device=device)
        for module in self.modules():
            weight = getattr(module, "weight", None)
            for name, tensor in module.named_parameters(recurse=False):
                if weight.dim() == 1:  # a normalisation layer
                    tensor.data.fill_(float(name == "weight"))
                else:
                    bound = 1 / math.sqrt(weight[0].numel())
                    # drawn in float64 on the generator's device: the same network in any dtype and on any device
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
        """Peak memory of one call in bytes, parameters included.

        It is counted in a run on tensors without storage, which needs no memory and little time. Work space within the
        convolutions is not counted.

        Args:
            batch: Number of images.
            size: Their height and width.
            training: Whether to count gradients, activations saved for the backward pass and Adam's two moments too.
        """
        own = {n: torch.empty_like(p, device="meta", requires_grad=training) for n, p in self.named_parameters()}
        own |= {n: torch.empty_like(b, device="meta") for n, b in self.named_buffers()}
        state = sum(p.nbytes for p in own.values()) + training * 2 * sum(p.nbytes for p in self.parameters())
        held = HeldBytes()
        with held, torch.set_grad_enabled(training):
            like = next(iter(own.values()))
            x = like.new_empty(batch, self.channels, *size, requires_grad=False)
            out = torch.func.functional_call(self, own, self._example_inputs(x))
            if training:
                F.mse_loss(out, torch.zeros_like(out)).backward()
        return state + held.peak

    def inputs(self, x: Tensor, t: float | Tensor, process: Process) -> tuple[Tensor, ...]:
        """Inputs of ``forward`` for images ``x`` at times ``t``, of shape () or (n,): here the images alone."""
        return (x,)

    def _example_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Inputs of ``forward`` for images ``x`` at an arbitrary time."""
        return (x,)

    def prepare(self, x: Tensor) -> Tensor:
        """The images, checked and padded with zeros. Shape: (n, C, H, W) -> (n, C, H', W')."""
        name = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.channels or not x.shape[2] * x.shape[3]:
            raise ValueError(f"{name} takes images of shape (n, {self.channels}, H, W), got {tuple(x.shape)}")
        check_options(name, x, self.last.weight)
        high, wide = (-side % self.multiple for side in x.shape[-2:])
        if high or wide:
            if not self.pad:
                size = f"a {self.multiple}th, which {x.shape[2]}x{x.shape[3]} does not allow"
                raise ValueError(f"{name} halves its images to {size}: use fewer levels, or pad=True")
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return x

    def crop(self, y: Tensor, x: Tensor) -> Tensor:
        """The output without the padding. Shape: that of the images ``x``."""
        top, left = ((-side % self.multiple) // 2 for side in x.shape[-2:])
        return y[..., top : top + x.shape[2], left : left + x.shape[3]]
