r"""The U-Net without time of discrete Parallel Score Matching.

The U-Net is that of Ronneberger et al. (2015) with padded convolutions: on each level 3x3 convolution, batch norm and
ELU twice; max-pooling on the way down, 2x2 transposed convolutions on the way up, 1x1 to the output, channels
a, 2a, 4a, 8a, 16a. One such network answers for one point of time, so it is told none.

The released code never leaves training mode, hence normalises *test* images by the statistics of the batch that they
come in: the score of an image then depends on its neighbours, and what is integrated is not the divergence of any
field of one image. ``batch_at_test`` brings that back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.nets.image_module import ImageModule, arguments


class BatchNorm(nn.Module):
    r"""Batch norm (Ioffe and Szegedy, 2015): :math:`w\,(x-\mu)/\sqrt{v+\epsilon} + b` for each channel.

    In training mu and v are the batch's, and running means of them are kept for the test; the variance kept is the
    unbiased one. Unlike torch's layer it can use the batch's at test time without touching the running ones.

    Args:
        channels: How many.
        momentum: Weight of the newest batch in the running means.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, batch_at_test: bool = False) -> Tensor:
        alone = batch_at_test and not self.training
        mean, var = (None, None) if alone else (self.running_mean, self.running_var)
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training or alone, self.momentum, self.eps)


class DoubleConv(nn.Module):
    """3x3 convolution, batch norm and ELU, twice.

    Args:
        wide_in: Channels that come in.
        wide: Channels that go out.
        bias: Whether the convolutions have one.
    """

    def __init__(self, wide_in: int, wide: int, bias: bool):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, wide, 3, padding=1, bias=bias) for c in (wide_in, wide))
        self.norms = nn.ModuleList(BatchNorm(wide) for _ in range(2))

    def forward(self, x: Tensor, batch_at_test: bool) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # with autograd, torch's ELU takes a third of the time of max(z, 0) + exp(min(z, 0)) - 1
            x = F.elu(norm(conv(x), batch_at_test))
        return x


class Ronneberger(ImageModule):
    """U-Net of an image alone.

    The defaults are the released setting: 31,043,651 parameters for three channels. That counts convolutions with the
    bias that the batch norm takes away again; without it there are 31,037,763.

    Args:
        a: Channels of the finest level; each further level has twice as many.
        levels: How many; 3 for 8x8 digits.
        channels: Of the images.
        bias: Whether the convolutions before a batch norm have a bias, which changes nothing.
        batch_at_test: Whether the statistics of the batch are used in evaluation mode too, as in the released code.
        pad: Whether images whose sides the levels do not halve evenly get a rim of zeros; else they are refused.
        zero_last: Whether the last layer starts at zero; in the released code it does not.
        channels_last: Whether weights and work are laid out channels last: a third faster on a CPU.
        seed: The weights depend on it alone; or a generator, which is advanced.
        dtype: Of the parameters.
        device: Of the parameters.

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
        for name, value in (("a", a), ("levels", levels), ("channels", channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Ronneberger's {name} must be a positive whole number, got {value!r}")
        super().__init__(channels, levels, pad)
        self.settings = settings
        self.batch_at_test = batch_at_test
        widths = [a * 2**k for k in range(levels)]
        steps = list(zip(widths, widths[1:], strict=False))
        with torch.device("meta"):  # no storage, and torch's global generator is left alone
            self.down = nn.ModuleList(DoubleConv(p, q, bias) for p, q in [(channels, a), *steps])
            self.enlarge = nn.ModuleList(nn.ConvTranspose2d(q, p, 2, stride=2) for p, q in reversed(steps))
            self.up = nn.ModuleList(DoubleConv(2 * p, p, bias) for p, _ in reversed(steps))
            self.last = nn.Conv2d(a, channels, 1)
        self._start(seed, dtype, device, zero_last, channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output. Shape: (n, C, H, W) -> (n, C, H, W).

        Raises:
            ValueError: for images of another shape, dtype or device than the network's.
        """
        h, kept = self.enter(x), []
        if (self.training or self.batch_at_test) and len(h) * h.shape[2] * h.shape[3] == self.multiple**2:
            raise ValueError(
                "Ronneberger cannot normalise by the statistics of a single pixel, which is what its coarsest level "
                "leaves of this batch: use fewer levels, more images, or eval() without batch_at_test"
            )
        for k, block in enumerate(self.down):
            if k:
                kept.append(h)
                h = F.max_pool2d(h, 2)
            h = block(h, self.batch_at_test)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            h = block(torch.cat([kept.pop(), enlarge(h)], 1), self.batch_at_test)
        return self.leave(self.last(h), x)


def small(channels: int = 1, a: int = 16, **settings) -> Ronneberger:
    """A U-Net of three levels, 8x8, 4x4 and 2x2, for digits; channels last, which suits a CPU.

    Args:
        channels: Of the images.
        a: Channels of the finest level.
        settings: As of :class:`Ronneberger`.

    Example:
        >>> small().parameter_count
        117393
    """
    return Ronneberger(a, **{"levels": 3, "channels": channels, "channels_last": True, **settings})
