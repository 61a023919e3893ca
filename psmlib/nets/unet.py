r"""The U-Net of denoising diffusion (Ho et al., 2020, Appendix B), in the variant of Parallel Score Matching.

Each level has residual blocks, scaled and shifted by the embedded time, and attention; the decoder receives the
activations of the encoder at each level (skip connections). ``UNet()`` has the 35,711,107 parameters of the released
setting: the paper's scripts call the package denoising-diffusion-pytorch with dim 64 and multipliers 1, 2, 4, 8, and
its releases 0.32.0 (November 2022) to 1.7.7 (June 2023) have that number. The function is that of 1.7.2 and 1.7.3
alone: up to 1.7.1 the blocks' convolutions are weight-standardised, up to 1.6.4 attention has LayerNorm in place of
RMSNorm, and from 1.7.4 on linear attention does not divide by the number of pixels. From 1.8.0 on there is full
attention at the coarsest level (``attention=("linear",) * 3 + ("full",)``: 35,710,339), and later still other norms.

The scalar input that represents the time is a setting, see :mod:`psmlib.nets.time_inputs`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.machine.checks import check_choice, check_count
from psmlib.nets.image_module import ImageModule, arguments
from psmlib.nets.time_inputs import TIME_INPUTS, embedded_time
from psmlib.process import Process, as_time

KINDS = ("linear", "full", None)
NORMS = ("group", "rms")


class RMSNorm(nn.Module):
    """Divides each pixel's channels by their root mean square and multiplies them with a weight per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        # 1e-12 keeps the derivative at a pixel of zeros finite
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12) * self.weight[:, None, None]


class Attention(nn.Module):
    r"""Attention over the pixels of an image, added to its input.

    ``"full"`` is :math:`V\,\mathrm{softmax}(Q^\top K/\sqrt d)^\top` (Vaswani et al., 2017), at a cost quadratic in the
    pixels; ``"linear"`` is :math:`(V\,\mathrm{softmax}(K)^\top)\,\mathrm{softmax}(Q)` (Shen et al., 2021), linear in
    them: K over the pixels, Q over the channels.

    Args:
        channels: Channels of the images.
        kind: "linear" or "full".
        heads: Number of heads.
        head_dim: Channels of a head.
    """

    def __init__(self, channels: int, kind: str, heads: int, head_dim: int):
        super().__init__()
        self.kind, self.heads = kind, heads
        self.norm = RMSNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.out = nn.Conv2d(heads * head_dim, channels, 1)
        self.after = RMSNorm(channels) if kind == "linear" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        mixed = self.qkv(self.norm(x))
        q, k, v = mixed.reshape(n, 3, self.heads, mixed.shape[1] // (3 * self.heads), h * w).unbind(1)
        scale = q.shape[-2] ** -0.5
        # not torch's fused attention, which has no forward-mode derivative, needed for likelihoods
        if self.kind == "linear":
            y = (v @ k.softmax(-1).mT) @ (q.softmax(-2) * (scale / (h * w)))
        else:
            y = v @ (scale * q.mT @ k).softmax(-1).mT
        return x + self.after(self.out(y.reshape(n, self.out.in_channels, h, w)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with a norm and SiLU, added to the input; the time scales and shifts the first norm.

    Args:
        channels: Input channels.
        out: Output channels.
        time_dim: Length of the embedded time.
        norm: "group" or "rms".
        groups: Groups of the group norm.
        dropout: Dropout probability.
    """

    def __init__(self, channels: int, out: int, time_dim: int, norm: str, groups: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.time = nn.Linear(time_dim, 2 * out)
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.norm1, self.norm2 = (nn.GroupNorm(groups, out) if norm == "group" else RMSNorm(out) for _ in range(2))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return F.silu(self.norm2(self.conv2(h))) + self.skip(x)


class UNet(ImageModule):
    """U-Net of an image and a time.

    The defaults are the released setting. All weights have torch's default initialisation, those of the last layer too;
    DDPM's original code initialises the last layer to zero, as ``zero_last`` does.

    Args:
        dim: Channels of the finest level; even, since the embedded time has as many sines as cosines.
        dim_mults: Channels of each level in units of ``dim``; each level but the first halves the image.
        channels: Channels of the images.
        blocks: Residual blocks of each level, in the encoder and in the decoder.
        attention: "linear", "full" or None, one for all levels or one for each, finest first.
        middle: Likewise, between encoder and decoder.
        heads: Heads of each attention.
        head_dim: Channels of each head.
        norm: "group" or "rms" in the residual blocks.
        groups: Groups of the group norm; must divide the channels of every level.
        dropout: Dropout probability in the residual blocks.
        time_input: The scalar that represents the time, one of :data:`psmlib.nets.time_inputs.TIME_INPUTS`.
        time_scale: Factor on the time input before its sines are taken; useful for a network of a short block.
        pad: Whether images whose height or width is not divisible by 2 ** (levels - 1) are padded with zeros; else they
            are refused.
        zero_last: Whether the last layer is initialised to zero.
        channels_last: Whether weights and activations have the memory format channels last; not faster on a CPU.
        seed: Seed of the weights, or a generator, which is advanced.
        dtype: Dtype of the parameters.
        device: Device of the parameters.

    Raises:
        ValueError: for settings that are out of range or contradict each other.

    Example:
        >>> net = UNet(dim=8, dim_mults=(1, 2), channels=1, groups=4)
        >>> net(torch.zeros(5, 1, 8, 8), torch.rand(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, dim: int = 64, dim_mults: Sequence[int] = (1, 2, 4, 8), channels: int = 3, *, blocks: int = 2,
        attention: str | None | Sequence[str | None] = "linear", middle: str | None = "full",
        heads: int = 4, head_dim: int = 32, norm: str = "group", groups: int = 8, dropout: float = 0.0,
        time_input: str = "log_snr", time_scale: float = 1.0, pad: bool = True, zero_last: bool = False,
        channels_last: bool = False, seed: int | torch.Generator = 0,
        dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    ):  # fmt: skip
        kinds = (attention,) * len(dim_mults) if attention is None or isinstance(attention, str) else tuple(attention)
        settings = {**arguments(locals()), "dim_mults": tuple(dim_mults), "attention": kinds}
        super().__init__(channels, len(dim_mults), pad)
        self.settings = settings
        self.time_input, self.time_scale, self.dim = time_input, time_scale, dim
        self._check_settings()
        time_dim, widths = 4 * dim, [dim, *(dim * m for m in dim_mults)]
        pairs = list(zip(widths, widths[1:], strict=False))

        def block(channels: int, out: int) -> ResidualBlock:
            return ResidualBlock(channels, out, time_dim, norm, groups, dropout)

        def attend(channels: int, kind: str | None) -> nn.Module:
            return nn.Identity() if kind is None else Attention(channels, kind, heads, head_dim)

        def level_of(parts: list[nn.Module], attention: nn.Module, move: nn.Module) -> nn.ModuleDict:
            return nn.ModuleDict({"blocks": nn.ModuleList(parts), "attention": attention, "move": move})

        with torch.device("meta"):  # no storage, and no draws from torch's global generator
            self.first = nn.Conv2d(channels, dim, 7, padding=3)
            self.time = nn.Sequential(nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim), nn.SiLU())
            self.down, self.up = nn.ModuleList(), nn.ModuleList()
            for level, ((a, b), kind) in enumerate(zip(pairs, kinds, strict=True)):
                coarsest = level == len(pairs) - 1
                # a 2x2 convolution at stride 2 is the same map as pixel unshuffle and a 1x1 convolution
                move = nn.Conv2d(a, b, 3, padding=1) if coarsest else nn.Conv2d(a, b, 2, stride=2)
                self.down.append(level_of([block(a, a) for _ in range(blocks)], attend(a, kind), move))
            self.middle = nn.ModuleList([block(b, b), attend(b, middle), block(b, b)])
            for level, ((a, b), kind) in reversed(list(enumerate(zip(pairs, kinds, strict=True)))):
                move = nn.Conv2d(b, a, 3, padding=1)
                if level:
                    move = nn.Sequential(nn.Upsample(scale_factor=2), move)
                self.up.append(level_of([block(a + b, b) for _ in range(blocks)], attend(b, kind), move))
            self.final = block(2 * dim, dim)
            self.last = nn.Conv2d(dim, channels, 1)
        self._initialise(seed, dtype, device, zero_last, channels_last)

    def _check_settings(self) -> None:
        """Raises ValueError for settings that are out of range or contradict each other."""
        s, kinds = self.settings, self.settings["attention"]
        for name in ("dim", "channels", "blocks", "heads", "head_dim", "groups"):
            check_count(f"UNet's {name}", s[name])
        if not s["dim_mults"] or not all(isinstance(m, int) and m > 0 for m in s["dim_mults"]):
            raise ValueError(f"UNet's dim_mults must be positive whole numbers, one a level, got {s['dim_mults']}")
        if s["dim"] % 2 or s["dim"] < 4:
            raise ValueError(f"UNet's dim must be an even number of at least 4, for the time's sines, got {s['dim']}")
        check_choice("norm", s["norm"], NORMS)
        check_choice("time_input", s["time_input"], TIME_INPUTS)
        for name, kind in (("middle", s["middle"]), *(("attention", kind) for kind in kinds)):
            check_choice(name, kind, KINDS)
        if len(kinds) != len(s["dim_mults"]):
            raise ValueError(f"attention names {len(kinds)} levels but dim_mults has {len(s['dim_mults'])}")
        if s["norm"] == "group" and s["dim"] % s["groups"]:
            raise ValueError(f"groups={s['groups']} does not divide the {s['dim']} channels of a level: choose another")
        if not 0 <= s["dropout"] < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {s['dropout']!r}")

    def time_of(self, t: float | Tensor, process: Process) -> Tensor:
        """The network's time input at time t, see :func:`embedded_time`. Shape: that of t."""
        return embedded_time(self.time_input, t, process)

    def inputs(self, x: Tensor, t: float | Tensor, process: Process) -> tuple[Tensor, ...]:
        """Images and the time input at the times ``t``, computed in t's dtype and then rounded to that of x."""
        return x, self.time_of(as_time(t, x), process).to(x.dtype)

    def _example_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x.new_zeros(len(x))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The network's output.

        Args:
            x: Images. Shape: (n, C, H, W).
            time: Time inputs, see :meth:`time_of`. Shape: (n,), or () for one time for all.

        Returns:
            Shape: (n, C, H, W).

        Raises:
            ValueError: for images or times of another shape, dtype or device than the network's.
        """
        h, time = self.prepare(x), as_time(time, x)
        time = time if time.is_floating_point() else time.to(x.dtype)
        if time.dim() > 1 or (time.dim() and len(time) != len(x)):
            raise ValueError(f"UNet takes one time an image: {len(x)} images but times of shape {tuple(time.shape)}")
        e = self.time(self._waves(time.expand(len(x))).to(h.dtype))
        h = self.first(h)
        begin, kept = h, []
        for level in self.down:
            for block in level.blocks:
                h = block(h, e)
                kept.append(h)
            h = kept[-1] = level.attention(h)
            h = level.move(h)
        first, attention, second = self.middle
        h = second(attention(first(h, e)), e)
        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, kept.pop()], 1), e)
            h = level.move(level.attention(h))
        return self.crop(self.last(self.final(torch.cat([h, begin], 1), e)), x)

    def _waves(self, time: Tensor) -> Tensor:
        """Sines and cosines at frequencies from 1 to 1/10000 (Vaswani et al., 2017). Shape: (n,) -> (n, dim)."""
        half = self.dim // 2
        ladder = torch.arange(half, device=time.device, dtype=time.dtype) * (-math.log(10000) / (half - 1))
        phase = time[:, None] * (self.time_scale * ladder.exp())
        return torch.cat([phase.sin(), phase.cos()], 1)


def small(channels: int = 1, dim: int = 16, **settings) -> UNet:
    """A U-Net of two levels for 8x8 digits.

    Args:
        channels: Channels of the images.
        dim: Channels of the finer level, a multiple of 8.
        settings: Other arguments of :class:`UNet`.

    Example:
        >>> small().parameter_count
        188561
    """
    given = {"dim_mults": (1, 2), "attention": (None, "full"), "middle": "full", "head_dim": 16, "heads": 2}
    return UNet(dim, channels=channels, **{**given, **settings})
