r"""The Score of a bank of image networks: values, products with the Jacobian, and its trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from psmlib.bank.block_score import BlockScore
from psmlib.score import basis


class ImageScore(BlockScore):
    r"""A bank of image networks joined with its partition and process.

    Products with the Jacobian are computed in reverse mode, :math:`u^\top J`: for convolutions that is cheaper than
    forward mode, and a likelihood needs only :math:`u^\top J u`, which is the same either way.

    Where images are normalised by the statistics of their batch (``batch_at_test``), each output depends on all images
    of a call, so a call is never split into batches. The Jacobian then has blocks
    :math:`\partial v_i/\partial x_j`, and :math:`u^\top J u` is split over the images differently in the two modes.
    In both, its sum over images is the same, and the expectation of image i's share over probes is the trace of
    :math:`\partial v_i/\partial x_i`, which :meth:`predict_trace` computes one image at a time. One Jacobian per image
    would not describe such a field, and is refused.

    Args:
        bank: The networks.
        partition: As many blocks as the bank has networks.
        process: The Gaussian path.
        block: Freeze the choice of the network to this one.

    Raises:
        ValueError: as :class:`~psmlib.bank.block_score.BlockScore` does.

    Example:
        >>> from psmlib.nets import unet
        >>> from psmlib.bank.image_bank import ImageBank
        >>> from psmlib.partition import Partition
        >>> from psmlib.process import VP
        >>> score = ImageBank(unet.small(dim=8), 2).score(Partition([0, .1, 1]), VP(0., 10.))
        >>> score.eps(torch.zeros(3, 1, 8, 8), torch.tensor([.05, .5, 1.])).shape
        torch.Size([3, 1, 8, 8])
    """

    @property
    def _batch_dependent(self) -> bool:
        """Whether an image's output depends on the other images of the call."""
        return bool(self.bank.settings.get("batch_at_test"))

    def _rows(self, x: Tensor) -> int:
        if self._batch_dependent:
            return super()._rows(x)
        pixels = x[0, 0].numel() if len(x) else 1
        return max(1, (1 << 15 if x.device.type == "cpu" else 1 << 19) // pixels)

    def _piece(self, k: int) -> BlockScore:
        self.bank.network(k)  # made now: within a torch.func transformation it cannot be
        return super()._piece(k)

    def _network(self, k: int, x: Tensor, t: Tensor) -> Tensor:
        """The output of network k, in its own dtype."""
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
        self._refuse_if_batch_dependent()
        return self._network(self.block, x.to(self.bank.params.dtype), t).to(x.dtype)

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        def f(k: int, pair: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            y, v = pair.to(self.bank.params.dtype).chunk(2, 1)
            self.bank.network(k)  # as in _piece
            value, slope = torch.func.jvp(lambda z: self._network(k, z, s), (y,), (v,))
            return value.detach().to(x.dtype), slope.detach().to(x.dtype)

        return self._each_block(f, torch.cat([x, u], 1), t)

    def _refuse_if_batch_dependent(self) -> None:
        if self._batch_dependent:
            raise ValueError(
                "batch_at_test makes an image's output depend on the others, so that it has no Jacobian of its own: "
                'use divergence="exact" or "hutchinson" for likelihoods, or ImageBank.changed(batch_at_test=False)'
            )

    def _units(self, y: Tensor) -> Iterator[Tensor]:
        """Unit probes whose quadratic forms sum to the traces: for all images at once, or one image at a time."""
        parts = range(len(y)) if self._batch_dependent else [slice(None)]
        for e in basis(y):
            for part in parts:
                probe = torch.zeros_like(e)
                probe[part] = e[part]
                yield probe

    def _pullbacks(
        self, k: int, x: Tensor, s: Tensor, probes: Iterable[Tensor], keep: bool = True
    ) -> tuple[Tensor, Iterator[Tensor]]:
        """The output of network k, and u^T J of one probe u at a time; ``keep`` if there are several. Shapes: as x."""
        with torch.enable_grad():
            y = x.detach().to(self.bank.params.dtype).requires_grad_()
            value = self._network(k, y, s)
        rows = (torch.autograd.grad(value, y, u.to(y.dtype), retain_graph=keep)[0].to(x.dtype) for u in probes)
        return value.detach().to(x.dtype), rows

    def predict_quadratic(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        def f(k: int, pair: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            y, v = pair.chunk(2, 1)
            value, (row,) = self._pullbacks(k, y, s, [v], keep=False)
            return value, (row * v).flatten(1).sum(1)

        return self._each_block(f, torch.cat([x, u], 1), t)

    def predict_trace(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        def f(k: int, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            value, rows = self._pullbacks(k, y, s, self._units(y))
            total = y.new_zeros(len(y))
            for e, row in zip(self._units(y), rows, strict=True):
                total = total + (row * e).flatten(1).sum(1)
            return value, total

        return self._each_block(f, x, t)

    def predict_jacobian(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        self._refuse_if_batch_dependent()

        def f(k: int, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            value, rows = self._pullbacks(k, y, s, basis(y))
            return value, torch.stack([row.flatten(1) for row in rows], 1)

        return self._each_block(f, x, t)
