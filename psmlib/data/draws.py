"""Random training batches of images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.data.dequantisation import add_noise
from psmlib.exact.dequantised import DequantisedData
from psmlib.machine.fingerprints import digest
from psmlib.process import Process


@dataclass(frozen=True, eq=False)
class Draws:
    """Random images with fresh dequantisation noise, each mirrored with probability 1/2 if ``mirrored``.

    Attributes:
        name: Data set, split, scale and centring, as recorded in a checkpoint.
        pool: The images to draw from. Shape: (N, C, H, W), uint8.
        factor: Width of a level after scaling.
        shift: What is added. Shape: broadcasts to (C, H, W).
        mirrored: Whether to flip left and right.
        flat: Whether draws are points (n, D).
    """

    name: str
    pool: Tensor
    factor: float
    shift: Tensor
    mirrored: bool
    flat: bool

    @property
    def fingerprint(self) -> str:
        """A digest of the images and of what is made of them."""
        return digest(self.pool, self.shift, self.factor, self.mirrored, self.flat)

    @property
    def dim(self) -> int:
        """Number of values in one image."""
        return self.pool[0].numel()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images, with replacement. Shape: (n, C, H, W), or (n, D) if flat."""
        device = generator.device if generator is not None else self.pool.device
        rows = torch.randint(len(self.pool), (n,), generator=generator, device=device)
        x = self.pool[rows.to(self.pool.device)].to(device)
        if self.mirrored:
            coin = torch.rand(n, generator=generator, device=device) < 0.5
            x = torch.where(coin[:, None, None, None], x.flip(-1), x)
        x = add_noise(x, generator, self.shift.dtype).mul_(self.factor).add_(self.shift.to(device))
        return x.flatten(1) if self.flat else x

    @property
    def levels(self) -> Tensor:
        """The images to draw from as integer levels, including mirror images. Shape: (N, C, H, W)."""
        return torch.cat([self.pool, self.pool.flip(-1)]) if self.mirrored else self.pool

    def middles(self) -> Tensor:
        """The images at the middle of their cells, as data for DiffusedData. Shape: (N, C, H, W), or (N, D).

        Example:
            >>> from psmlib.data.images import load
            >>> float(load("digits").draws().middles().min())                       # of level 0 of 17
            0.029411764705882353
        """
        points = (self.levels.to(self.shift.dtype) + 0.5) * self.factor + self.shift
        return points.flatten(1) if self.flat else points

    def diffused(self, process: Process) -> DequantisedData:
        """The exact score of the diffused draws under a process."""
        return DequantisedData(self.levels, self.factor, self.shift, process, flat=self.flat)
