r"""Glow, a normalising flow of images (Kingma and Dhariwal, 2018, Figure 2).

At each of L levels the image is squeezed (blocks of 2x2 pixels become channels) and passes K steps of the flow; between
levels half of the channels are split off as latents. All latents are standard normal, so

.. math:: \log p(x) = \sum_l \log N(z_l; 0, I) + \log\left|\det\frac{\partial z}{\partial x}\right|

where the learned Gaussians of the latents are part of the map x -> z. The paper has L = 3, K = 32 and 512 hidden
channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.machine.checks import check_count
from psmlib.machine.streams import stream
from psmlib.nets.glow_layers import ActNorm, Split, Step
from psmlib.nets.image_module import check_options


class Glow(nn.Module):
    """A normalising flow of images of one shape.

    Args:
        shape: Shape of an image: channels, height, width.
        levels: Number of scales; height and width must be divisible by 2 ** levels.
        steps: Steps of the flow on each level.
        hidden: Channels within a coupling.
        seed: Seed of the initial parameters, which are the same in any dtype and on any device.
        dtype: Dtype of the parameters.
        device: Device of the parameters.

    Raises:
        ValueError: when a number is not positive, or height or width is not divisible by 2 ** levels.

    Example:
        >>> flow = Glow((1, 8, 8))
        >>> x = flow.sample(5, torch.Generator().manual_seed(0))
        >>> x.shape, flow.log_prob(x).shape, flow.parameter_count
        (torch.Size([5, 1, 8, 8]), torch.Size([5]), 29996)
    """

    def __init__(
        self, shape: Sequence[int], *, levels: int = 2, steps: int = 4, hidden: int = 32, seed: int = 0,
        dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    ):  # fmt: skip
        super().__init__()
        self.settings = dict(levels=levels, steps=steps, hidden=hidden)
        self.shape, generator = _checked(shape, **self.settings), stream(seed)
        channels, height, width = self.shape
        self.steps, self.splits = nn.ModuleList(), nn.ModuleList()
        self.latent_shapes: list[tuple[int, int, int]] = []
        for level in range(levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            self.steps.append(nn.ModuleList(Step(channels, hidden, generator) for _ in range(steps)))
            if level < levels - 1:
                self.splits.append(Split(channels))
                channels //= 2
            self.latent_shapes.append((channels, height, width))
        self.top = ActNorm(channels)  # the learned Gaussian of the last latents
        self.to(dtype=dtype, device=device)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Sets the scales and shifts of all actnorms so that the outputs of each have mean 0 and variance 1 on a batch.

        Args:
            x: Images. Shape: (n, C, H, W).

        Raises:
            ValueError: for images of another shape or dtype, or on another device.
        """
        self._check_images(x)
        for k, level in enumerate(self.steps):
            x = F.pixel_unshuffle(x, 2)
            for step in level:
                x = step.initialise(x)
            if k < len(self.splits):
                x = self.splits[k](x)[0]
        self.top.initialise(x)

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latents of images, finest level first, and the log determinant of the Jacobian of the map.

        Args:
            x: Images. Shape: (n, C, H, W).

        Returns:
            Tensors of shapes (n, \\*latent_shapes[l]), and one of shape (n,), in nats.

        Raises:
            ValueError: for images of another shape or dtype, or on another device.
        """
        self._check_images(x)
        latents, log_det = [], x.new_zeros(len(x))
        for k, level in enumerate(self.steps):
            x = F.pixel_unshuffle(x, 2)
            for step in level:
                x, change = step(x)
                log_det = log_det + change
            if k < len(self.splits):
                x, latent, change = self.splits[k](x)
            else:
                latent, change = self.top(x)
            latents.append(latent)
            log_det = log_det + change
        return latents, log_det

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """The images of latents: the inverse of :meth:`encode`. Shape: (n, C, H, W)."""
        x = self.top.inverse(latents[-1])
        for k in reversed(range(len(self.steps))):
            if k < len(self.splits):
                x = self.splits[k].inverse(x, latents[k])
            for step in reversed(self.steps[k]):
                x = step.inverse(x)
            x = F.pixel_shuffle(x, 2)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of images, in nats. Shape: (n, C, H, W) -> (n,).

        Raises:
            ValueError: for images of another shape or dtype, or on another device.
        """
        latents, log_det = self.encode(x)
        square = sum(z.square().flatten(1).sum(1) for z in latents)
        return log_det - 0.5 * square - 0.5 * math.prod(self.shape) * math.log(2 * math.pi)

    forward = log_prob

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draws images. Shape: (n, C, H, W).

        Args:
            n: Number of images.
            generator: Source of randomness.
            temperature: Standard deviation of the latents.
        """
        options = dict(generator=generator, dtype=torch.float64, device=generator.device if generator else "cpu")
        draws = [torch.randn(n, *shape, **options) for shape in self.latent_shapes]
        return self.decode([(temperature * z).to(self.top.shift) for z in draws])

    def _check_images(self, x: Tensor) -> None:
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this Glow is of images of shape (n, {str(self.shape)[1:]}, got {tuple(x.shape)}")
        check_options("Glow", x, self.top.shift)


def _checked(shape: Sequence[int], levels: int, steps: int, hidden: int) -> tuple[int, int, int]:
    """The shape, after a check of all arguments."""
    for name, value in (("levels", levels), ("steps", steps), ("hidden", hidden)):
        check_count(f"Glow's {name}", value)
    if len(shape) != 3 or any(side < 1 for side in shape):
        raise ValueError(f"Glow takes images of shape (channels, height, width), got {tuple(shape)}")
    _, height, width = shape
    if height % 2**levels or width % 2**levels:
        times = next(k for k in range(levels) if height % 2 ** (k + 1) or width % 2 ** (k + 1))
        mend = f"use levels={times} or fewer" if times else "give the images even sides"
        raise ValueError(f"Glow halves its images {levels} times, which {height}x{width} does not allow: {mend}")
    return tuple(int(side) for side in shape)
