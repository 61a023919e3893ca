r"""The U-Net of Ronneberger et al. (2015), without a time input, as in discrete Parallel Score Matching (DPSM).

Convolutions are padded: on each level twice a 3x3 convolution, batch norm and ELU; max-pooling in the encoder, 2x2
transposed convolutions in the decoder, a 1x1 convolution to the output; a, 2a, 4a, 8a, 16a channels. In DPSM each
network is used at a single time, so that it needs no time input.

The released code never leaves training mode, and so normalises *test* images by the statistics of their batch: the
score of an image then depends on the others, and the integrated quantity is not the divergence of a vector field of
one image. ``batch_at_test`` reproduces that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.machine.checks import check_count
from psmlib.nets.image_module import ImageModule, arguments


class BatchNorm(nn.Module):
    r"""Batch norm (Ioffe and Szegedy, 2015): :math:`w\,(x-\mu)/\sqrt{v+\epsilon} + b` for each channel.

    In training mu and v are those of the batch, and their running means are stored for evaluation, that of the unbiased
    variance. Unlike torch's layer it can use the batch's own in evaluation mode, without changing the running means.

    Args:
        channels: Number of channels.
        momentum: Weight of the newest batch in the running means.
        eps: Constant added to the variance.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, batch_at_test: bool = False) -> Tensor:
        own = batch_at_test and not self.training
        mean, var = (None, None) if own else (self.running_mean, self.running_var)
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training or own, self.momentum, self.eps)


class DoubleConv(nn.Module):
    """3x3 convolution, batch norm and ELU, twice.

    Args:
        channels: Input channels.
        out: Output channels.
        bias: Whether the convolutions have a bias.
    """

    def __init__(self, channels: int, out: int, bias: bool):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, out, 3, padding=1, bias=bias) for c in (channels, out))
        self.norms = nn.ModuleList(BatchNorm(out) for _ in range(2))

    def forward(self, x: Tensor, batch_at_test: bool) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # with autograd, torch's ELU takes a third of the time of max(z, 0) + exp(min(z, 0)) - 1
            x = F.elu(norm(conv(x), batch_at_test))
        return x


class Ronneberger(ImageModule):
    """U-Net of an image.

    The defaults are the released setting: 31,043,651 parameters for three channels. That includes the biases of the
    convolutions, which the batch norm cancels; without them there are 31,037,763.

    Args:
        a: Channels of the finest level; each further level has twice as many.
        levels: Number of levels; 3 for 8x8 digits.
        channels: Channels of the images.
        bias: Whether the convolutions before a batch norm have a bias, which has no effect on the output.
        batch_at_test: Whether the statistics of the batch are used in evaluation mode too, as in the released code.
        pad: Whether images whose height or width is not divisible by 2 ** (levels - 1) are padded with zeros; else they
            are refused.
        zero_last: Whether the last layer is initialised to zero; in the released code it is not.
        channels_last: Whether weights and activations have the memory format channels last: a third faster on a CPU.
        seed: Seed of the weights, or a generator, which is advanced.
        dtype: Dtype of the parameters.
        device: Device of the parameters.

    Raises:
        ValueError: when a count is not positive.

    Example:
        >>> net = Ronneberger(a=4, levels=3, channels=1).eval()
        >>> net(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, a: int = 64, levels: int = 5, channels: int = 3, *, bias: bool = True, batch_at_test: bool = False,
        pad: bool = True, zero_last: bool = False, channels_last: bool = False, seed: int | torch.Generator = 0,
        dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    ):  # fmt: skip
        settings = arguments(locals())
        for name in ("a", "levels", "channels"):
            check_count(f"Ronneberger's {name}", settings[name])
        super().__init__(channels, levels, pad)
        self.settings = settings
        self.batch_at_test = batch_at_test
        widths = [a * 2**k for k in range(levels)]
        steps = list(zip(widths, widths[1:], strict=False))
        with torch.device("meta"):  # no storage, and no draws from torch's global generator
            self.down = nn.ModuleList(DoubleConv(p, q, bias) for p, q in [(channels, a), *steps])
            self.enlarge = nn.ModuleList(nn.ConvTranspose2d(q, p, 2, stride=2) for p, q in reversed(steps))
            self.up = nn.ModuleList(DoubleConv(2 * p, p, bias) for p, _ in reversed(steps))
            self.last = nn.Conv2d(a, channels, 1)
        self._initialise(seed, dtype, device, zero_last, channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output. Shape: (n, C, H, W) -> (n, C, H, W).

        Raises:
            ValueError: for images of another shape, dtype or device than the network's.
        """
        h, kept = self.prepare(x), []
        if (self.training or self.batch_at_test) and len(h) * h.shape[2] * h.shape[3] == self.multiple**2:
            fault = "Ronneberger cannot normalise by the statistics of a single pixel, at its coarsest level"
            raise ValueError(f"{fault}: use fewer levels, more images, or eval() without batch_at_test")
        for k, block in enumerate(self.down):
            if k:
                kept.append(h)
                h = F.max_pool2d(h, 2)
            h = block(h, self.batch_at_test)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            h = block(torch.cat([kept.pop(), enlarge(h)], 1), self.batch_at_test)
        return self.crop(self.last(h), x)


def small(channels: int = 1, a: int = 16, **settings) -> Ronneberger:
    """A U-Net of three levels (8x8, 4x4 and 2x2) for digits, in the memory format channels last, faster on a CPU.

    Args:
        channels: Channels of the images.
        a: Channels of the finest level.
        settings: Other arguments of :class:`Ronneberger`.

    Example:
        >>> small().parameter_count
        117393
    """
    return Ronneberger(a, **{"levels": 3, "channels": channels, "channels_last": True, **settings})
