"""The network of one core against the bank's kernel: three-way in single precision, to rounding in double."""

import pytest
import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP, parameter_count
from psmlib.kernels.column_mlp import ColumnMLP, network_for

F64 = torch.float64
ATOL = {torch.float32: 3e-6, F64: 1e-13}
WIDTHS = [4, 33, 17, 2]


def make(B: int, widths=WIDTHS) -> tuple[Tensor, ...]:
    """Parameters, inputs, targets and weights of rows, float64 but exact in float32."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1, parameter_count(widths)), (1, B, widths[0]), (1, B, widths[-1]), (1, B)]
    flat, *rest = (torch.randn(*shape, generator=g).double() for shape in shapes)
    return 0.5 * flat, *rest


def check(found, plain, exact) -> None:
    """Each result may err twice as much as the bank's kernel in its dtype, which is checked against plain torch."""
    for f, p, e in zip(found, plain, exact, strict=True):
        assert f.shape == e.shape and f.dtype == p.dtype
        errors = [float((x.double() - e).abs().max()) for x in (f, p)]
        assert errors[0] <= 2 * errors[1] + ATOL[f.dtype] * max(1.0, float(e.abs().max()))


def turned(x: Tensor) -> Tensor:
    """The same numbers with the last two axes swapped in memory."""
    return x.mT.contiguous().mT


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("B", [1, 17, 1023])
def test_outputs_losses_and_gradients(B, dtype, weighted):
    def passes(kind, flat, h, target, weight):
        work, grad = kind(WIDTHS, h), torch.full_like(flat, torch.nan)  # what is not written stays visible
        loss = work.gradient(flat, h, target, grad, weight if weighted else None)
        return work.forward(flat, h), loss, grad

    exact = make(B)
    low = [x.to(dtype) for x in exact]
    plain = passes(BankMLP, *low), passes(BankMLP, *exact)
    check(passes(ColumnMLP, *low), *plain)
    check(passes(ColumnMLP, turned(low[0]), turned(low[1]), turned(low[2]), low[3]), *plain)


def test_buffers_and_views_are_reused_without_remembering():
    flat, h, target, _ = make(17)
    work, grad, wanted = ColumnMLP(WIDTHS, h), torch.empty_like(flat), torch.empty_like(flat)
    for step in range(12):
        if step % 3 == 2:
            flat = flat.clone()  # a new tensor, often where an old one was
        flat -= 0.05 * step
        loss = work.gradient(flat, h + step, target, grad)
        check((loss, grad), *[(BankMLP(WIDTHS, h).gradient(flat, h + step, target, wanted), wanted)] * 2)


def test_large_inputs_neither_overflow_nor_lose_the_slope():
    flat = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    z = torch.tensor([[[-1e4], [-80.0], [0.0], [80.0], [1e4]]])
    value = ColumnMLP([1, 1, 1], z).forward(flat, z)
    torch.testing.assert_close(value.flatten(), torch.tensor([-1.0, -1.0, 0.0, 80.0, 1e4]))


def test_which_class_serves():
    one = torch.empty(1, 5, 4)
    assert isinstance(network_for(WIDTHS, one), ColumnMLP)
    for other in (one.half(), one.to("meta"), one.expand(2, -1, -1)):
        assert isinstance(network_for(WIDTHS, other), BankMLP)
    with pytest.raises(ValueError, match=r"inputs of shape \(1, B, 4\), got \(2, 5, 4\)"):
        ColumnMLP(WIDTHS, torch.empty(2, 5, 4))


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("B", [1, 17, 1023])
def test_outputs_and_derivatives_along_directions(B, m, dtype):
    flat, h, _, _ = make(B)
    tangents = torch.randn(1, m, B, 4, generator=torch.Generator().manual_seed(1)).double()
    like = h.new_empty(1, (1 + m) * B, 4, dtype=dtype)
    low = [x.to(dtype) for x in (flat, h, tangents)]
    plain = BankMLP(WIDTHS, like).jacobian(*low), BankMLP(WIDTHS, like.double()).jacobian(flat, h, tangents)
    check(ColumnMLP(WIDTHS, like).jacobian(*low), *plain)


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5), (7, 5, 6), (7, 5, 6, 4)])
def test_traces(hidden, dtype):
    widths = [4, *hidden, 2]
    flat, h, _, _ = make(17, widths)
    tangents = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(1)).double()
    found, low, exact = (
        kind(widths, h.to(t)).trace(flat.to(t), h.to(t), tangents.to(t))
        for kind, t in ((ColumnMLP, dtype), (BankMLP, dtype), (BankMLP, F64))
    )
    check(found, low, exact)
