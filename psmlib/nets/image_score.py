r"""The Score of a bank of image networks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from psmlib.nets.block_score import BlockScore


class ImageScore(BlockScore):
    r"""A bank of image networks joined with its partition and process.

    Products with the Jacobian are taken backwards, :math:`u^\top J`: for a convolution that is cheaper than forwards,
    and a likelihood needs :math:`u^\top J u` alone, which is the same from either side.

    Example:
        >>> from psmlib.nets import unet
        >>> from psmlib.nets.image_bank import ImageBank
        >>> from psmlib.partition import Partition
        >>> from psmlib.process import VP
        >>> score = ImageBank(unet.small(dim=8), 2).score(Partition([0, .1, 1]), VP(0., 10.))
        >>> score.eps(torch.zeros(3, 1, 8, 8), torch.tensor([.05, .5, 1.])).shape
        torch.Size([3, 1, 8, 8])
    """

    def _rows(self, x: Tensor) -> int:
        pixels = x[0, 0].numel() if len(x) else 1
        return max(1, (1 << 15 if x.device.type == "cpu" else 1 << 19) // pixels)

    def _network(self, k: int, x: Tensor, t: Tensor) -> Tensor:
        """What network k says, in its own dtype."""
        net = self.bank.network(k)
        return net(*net.inputs(x, self._time(t, k), self.process))

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        def f(k: int, y: Tensor, s: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (self._network(k, y.to(self.bank.params.dtype), s).to(x.dtype),)

        return self._each_block(f, x, t)[0]

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        if self.block is None:
            raise ValueError("only one network of a bank can be differentiated at a time: choose it by on_block(t)")
        return self._network(self.block, x.to(self.bank.params.dtype), t).to(x.dtype)

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        def f(k: int, pair: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            y, v = pair.to(self.bank.params.dtype).chunk(2, 1)
            value, slope = torch.func.jvp(lambda z: self._network(k, z, s), (y,), (v,))
            return value.detach().to(x.dtype), slope.detach().to(x.dtype)

        return self._each_block(f, torch.cat([x, u], 1), t)

    def _pullback(self, k: int, x: Tensor, s: Tensor, probes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """What network k says and the sum of u^T J u over the probes. Shapes: (n, *shape), (n,)."""
        with torch.enable_grad():
            y = x.detach().to(self.bank.params.dtype).requires_grad_()
            value, total = self._network(k, y, s), x.new_zeros(len(x))
            for u in probes:
                pulled = torch.autograd.grad(value, y, u.to(y.dtype), retain_graph=True)[0]
                total = total + (pulled * u).flatten(1).sum(1)  # in the dtype of x: u has it
        return value.detach().to(x.dtype), total

    def predict_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        def f(k: int, pair: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            y, v = pair.chunk(2, 1)
            return self._pullback(k, y, s, [v])

        return self._each_block(f, torch.cat([x, u], 1), t)

    def predict_trace(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        def f(k: int, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            basis = torch.eye(y[:1].numel(), dtype=y.dtype, device=y.device).reshape(-1, 1, *y.shape[1:])
            return self._pullback(k, y, s, (e.expand_as(y) for e in basis))

        return self._each_block(f, x, t)
