r"""K networks of images as one wide network of grouped convolutions.

Side by side in the channels, (n, K C, H, W), K networks become the K groups of one convolution, and K norms become one
norm of K times the channels: one call a layer instead of K, for devices that one small network does not fill. Where
channels meet (skips, attention, the shift by the time) they are kept apart. The gradient of a sum of K losses is that
of each network by its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.stack import places, room
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import Attention, ResidualBlock, RMSNorm, UNet


class Grouped:
    """The networks of a bank as one.

    The parameters lie layer by layer, each layer's networks one after another, so that a layer is a window on them and
    an optimiser that works number by number takes them all at once.

    Args:
        bank: The networks, on their device and in their dtype; they are copied.

    Attributes:
        params: All parameters. Shape: (1, K P).
        grad: Their gradients, to which a backward pass adds. Shape: (1, K P).
        buffers: All running statistics. Shape: (1, K B).
        net: The wide network; it starts in training mode.

    Raises:
        ValueError: when the networks drop values out, which each draws from a stream of its own.

    Example:
        >>> from psmlib.nets import ronneberger
        >>> bank = ImageBank(ronneberger.small(a=4), 3)
        >>> Grouped(bank)(torch.zeros(3, 5, 1, 8, 8)).shape
        torch.Size([3, 5, 1, 8, 8])
    """

    def __init__(self, bank: ImageBank):
        if bank.settings.get("dropout"):
            raise ValueError("networks with dropout draw from streams of their own: train them one by one with fit")
        self.size, self._like = len(bank), bank.to("meta")
        self.params, self.buffers = (t.new_zeros(1, t.numel()) for t in (bank.params, bank.buffers))
        self.grad, seen = torch.zeros_like(self.params), {}
        one = bank.network(0)
        for rows, wide, tensors in (
            (bank.params, self.params, one.parameters()),
            (bank.buffers, self.buffers, one.buffers()),
        ):
            for at, tensor in places(tensors):
                part = slice(at * self.size, (at + tensor.numel()) * self.size)
                wide[0, part].view(self.size, -1).copy_(rows[:, at : at + tensor.numel()])
                seen[id(tensor)] = self._window(wide[0, part], tensor)
                if isinstance(tensor, nn.Parameter):
                    seen[id(tensor)] = nn.Parameter(seen[id(tensor)])
                    seen[id(tensor)].grad = self._window(self.grad[0, part], tensor)
        self.net = _widened(copy.deepcopy(one, seen), self.size).train()

    def _window(self, part: Tensor, tensor: Tensor) -> Tensor:
        """A layer's numbers as the wide network has them; the first axis is the outermost in either memory format."""
        return part.as_strided((self.size * tensor.shape[0], *tensor.shape[1:]), tensor.stride())

    def __call__(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """What each network says of its own images.

        Args:
            x: Images. Shape: (K, n, C, H, W).
            time: As :meth:`ImageModule.inputs` gives it, if the networks take one. Shape: (K, n).

        Returns:
            Shape: (K, n, C, H, W).
        """
        wide = x.transpose(0, 1).flatten(1, 2)
        if self._like.settings.get("channels_last"):
            wide = wide.contiguous(memory_format=torch.channels_last)
        said = _ronneberger(self.net, self.size, wide) if time is None else _unet(self.net, self.size, wide, time)
        return said.unflatten(1, (self.size, -1)).transpose(0, 1)

    def bank(self) -> ImageBank:
        """The networks as they are now, as a bank. A copy."""
        one = self._like.network(0)
        return self._like.copy(self._rows(self.params, one.parameters()), self._rows(self.buffers, one.buffers()))

    def gradients(self) -> Tensor:
        """The gradients as a bank keeps them. Shape: (K, P)."""
        return self._rows(self.grad, self._like.network(0).parameters())

    def _rows(self, wide: Tensor, tensors: Iterable[Tensor]) -> Tensor:
        """What lies layer by layer, with a row for each network."""
        tensors = list(tensors)
        rows = wide.new_zeros(self.size, room(tensors))
        for at, tensor in places(tensors):
            n = tensor.numel()
            rows[:, at : at + n] = wide[0, at * self.size : (at + n) * self.size].view(self.size, -1)
        return rows


def _widened(net: nn.Module, size: int) -> nn.Module:
    """A network whose tensors are wide already, with its layers told so."""
    net.channels *= size
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.in_channels, module.out_channels, module.groups = (
                size * n for n in (module.in_channels, module.out_channels, module.groups)
            )
        elif isinstance(module, nn.GroupNorm):
            module.num_groups, module.num_channels = size * module.num_groups, size * module.num_channels
    return net


def _beside(size: int, *parts: Tensor) -> Tensor:
    """Channels of several tensors together, network by network. Shapes: (n, K c_i, H, W) -> (n, K sum c_i, H, W)."""
    if parts[-1].is_contiguous(memory_format=torch.channels_last) and not parts[-1].is_contiguous():
        # joined where the channels lie, or the memory format would be lost
        last = [part.permute(0, 2, 3, 1).unflatten(3, (size, -1)) for part in parts]
        return torch.cat(last, 4).flatten(3).permute(0, 3, 1, 2)
    return torch.cat([part.unflatten(1, (size, -1)) for part in parts], 2).flatten(1, 2)


def _ronneberger(net: Ronneberger, size: int, x: Tensor) -> Tensor:
    """:meth:`Ronneberger.forward` for networks side by side."""
    h, kept = net.enter(x), []
    for k, block in enumerate(net.down):
        if k:
            kept.append(h)
            h = F.max_pool2d(h, 2)
        h = block(h, net.batch_at_test)
    for enlarge, block in zip(net.enlarge, net.up, strict=True):
        h = block(_beside(size, kept.pop(), enlarge(h)), net.batch_at_test)
    return net.leave(net.last(h), x)


def _unet(net: UNet, size: int, x: Tensor, time: Tensor) -> Tensor:
    """:meth:`UNet.forward` for networks side by side."""
    h = net.enter(x)
    e = net._waves(time.flatten()).to(h.dtype).unflatten(0, time.shape)
    for layer in net.time:
        e = _linear(layer, e) if isinstance(layer, nn.Linear) else layer(e)
    h = net.first(h)
    begin, kept = h, []
    for level in net.down:
        for i, block in enumerate(level.blocks):
            h = _residual(block, size, h, e)
            if i == len(level.blocks) - 1:
                h = _attend(level.attention, size, h)
            kept.append(h)
        h = level.move(h)
    first, attention, second = net.middle
    h = _residual(second, size, _attend(attention, size, _residual(first, size, h, e)), e)
    for level in net.up:
        for block in level.blocks:
            h = _residual(block, size, _beside(size, h, kept.pop()), e)
        h = level.move(_attend(level.attention, size, h))
    return net.leave(net.last(_residual(net.final, size, _beside(size, h, begin), e)), x)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Shape: (K, n, in) -> (K, n, out)."""
    weight, bias = (tensor.unflatten(0, (len(x), -1)) for tensor in (layer.weight, layer.bias))
    return torch.baddbmm(bias[:, None], x, weight.mT)


def _norm(norm: nn.Module, size: int, x: Tensor) -> Tensor:
    """A norm by its name in :class:`UNet`; that of a pixel's channels takes each network's own."""
    if not isinstance(norm, RMSNorm):
        return norm(x)
    apart = x.unflatten(1, (size, -1))
    scale = torch.rsqrt(apart.square().mean(2, keepdim=True) + 1e-12)
    return (apart * scale * norm.weight.view(size, -1, 1, 1)).flatten(1, 2)


def _residual(block: ResidualBlock, size: int, x: Tensor, time: Tensor) -> Tensor:
    """:meth:`ResidualBlock.forward` for networks side by side. Shapes: (n, K C, H, W), (K, n, time_dim)."""
    moved = _linear(block.time, time).transpose(0, 1)
    scale, shift = (part.flatten(1)[:, :, None, None] for part in moved.chunk(2, 2))
    h = F.silu(_norm(block.norm1, size, block.conv1(x)) * (1 + scale) + shift)
    return F.silu(_norm(block.norm2, size, block.conv2(h))) + block.skip(x)


def _attend(attention: nn.Module, size: int, x: Tensor) -> Tensor:
    """:meth:`Attention.forward` for networks side by side."""
    if not isinstance(attention, Attention):
        return x
    n, _, h, w = x.shape
    mixed = attention.qkv(_norm(attention.norm, size, x))
    q, k, v = mixed.reshape(n, size, 3, attention.heads, -1, h * w).unbind(2)
    scale = q.shape[-2] ** -0.5
    if attention.kind == "linear":
        y = (v @ k.softmax(-1).mT) @ (q.softmax(-2) * (scale / (h * w)))
    else:
        y = v @ (scale * q.mT @ k).softmax(-1).mT
    return x + _norm(attention.after, size, attention.out(y.reshape(n, -1, h, w)))
