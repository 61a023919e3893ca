"""The bank kernel against float64 references: plain torch, automatic differentiation and torch.nn layers."""

import pytest
import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP, bank_mlp_ref, layers, parameter_count

F64 = torch.float64
SHAPES = [(K, B) for K in (1, 3, 200) for B in (1, 17, 1023)]
ATOL = {torch.float32: 3e-6, F64: 1e-13}
"""Rounding of a handful of float operations on numbers of order one: the fast ELU is exact to that, not more."""


def widths_of(K: int) -> list[int]:
    return [3, 5, 4, 2] if K == 200 else [4, 33, 17, 2]


def make(K: int, B: int, m: int = 2, seed: int = 0) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor]:
    """Widths, parameters, inputs, targets and directions, float64 but exact in float32."""
    widths, g = widths_of(K), torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).double()

    flat = 0.5 * draw(K, parameter_count(widths))
    return widths, flat, draw(K, B, widths[0]), draw(K, B, widths[-1]), draw(K, m, B, widths[0])


def plain_gradient(flat: Tensor, widths: list[int], h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and gradients by automatic differentiation, in the dtype of the arguments."""
    leaf = flat.detach().clone().requires_grad_()
    loss = (bank_mlp_ref(leaf, widths, h) - target).square().mean((1, 2))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def plain_jacobian(flat: Tensor, widths: list[int], h: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and directional derivatives by automatic differentiation, one direction at a time."""
    pairs = [
        torch.func.jvp(lambda y: bank_mlp_ref(flat, widths, y), (h,), (tangents[:, i],))
        for i in range(tangents.shape[1])
    ]
    return pairs[0][0], torch.stack([p[1] for p in pairs], 1)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def check(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The three-way tolerance: the kernel may err twice as much as plain torch in its own dtype."""
    assert found.shape == exact.shape and found.dtype == plain.dtype
    atol = ATOL[plain.dtype] * max(1.0, float(exact.abs().max()))
    assert error(found, exact) <= 2 * error(plain, exact) + atol


def cast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [x.to(dtype) for x in tensors]


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("K, B", SHAPES)
def test_forward_errs_no_more_than_plain_torch(K, B, dtype):
    widths, flat, h, _, _ = make(K, B)
    low_flat, low_h = cast(dtype, flat, h)
    found = BankMLP(widths, low_h).forward(low_flat, low_h)
    check(found, bank_mlp_ref(low_flat, widths, low_h), bank_mlp_ref(flat, widths, h))


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("K, B", SHAPES)
def test_loss_and_gradient_err_no_more_than_plain_torch(K, B, dtype):
    widths, flat, h, target, _ = make(K, B)
    low = cast(dtype, flat, h, target)
    grad = torch.full_like(low[0], torch.nan)  # what is not written stays visible
    loss = BankMLP(widths, low[1]).gradient(*low, grad)
    plain, exact = plain_gradient(low[0], widths, *low[1:]), plain_gradient(flat, widths, h, target)
    check(loss, plain[0], exact[0])
    check(grad, plain[1], exact[1])


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("K, B", SHAPES)
def test_jacobian_errs_no_more_than_plain_torch(K, B, m, dtype):
    widths, flat, h, _, tangents = make(K, B, m)
    low = cast(dtype, flat, h, tangents)
    work = BankMLP(widths, low[1].new_empty(K, (1 + m) * B, widths[0]))
    found, plain = work.jacobian(*low), plain_jacobian(low[0], widths, *low[1:])
    for f, p, e in zip(found, plain, plain_jacobian(flat, widths, h, tangents), strict=True):
        check(f, p, e)


def strided(x: Tensor) -> Tensor:
    """The same numbers with the last two axes swapped in memory."""
    out = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not out.is_contiguous()
    return out


@pytest.mark.parametrize("K, B", [(3, 17), (200, 17), (3, 1023)])
def test_inputs_and_outputs_need_not_be_contiguous(K, B):
    widths, flat, h, target, tangents = make(K, B)
    work, grad = BankMLP(widths, h), torch.empty_like(flat)
    loss = work.gradient(flat, h, target, grad)
    every_other = torch.full((2 * K, flat.shape[1]), torch.nan, dtype=F64)
    spread, rows = every_other[::2], torch.zeros(2 * K, flat.shape[1], dtype=F64)
    rows[::2] = flat
    for params in (strided(flat), rows[::2]):
        found = BankMLP(widths, h).gradient(params, strided(h), strided(target), spread)
        torch.testing.assert_close(found, loss, rtol=1e-13, atol=0)
        torch.testing.assert_close(spread, grad, rtol=1e-12, atol=1e-14)
        assert bool(every_other[1::2].isnan().all()), "wrote between the rows of the gradient"
        both = BankMLP(widths, h.new_empty(K, 3 * B, widths[0])).jacobian(params, strided(h), strided(tangents))
        torch.testing.assert_close(both, plain_jacobian(flat, widths, h, tangents), rtol=1e-12, atol=1e-13)


def test_one_direction_for_all_points_may_be_an_expanded_view():
    widths, flat, h, _, _ = make(3, 17)
    basis = torch.eye(widths[0], dtype=F64)[None, :, None, :].expand(3, -1, 17, -1)
    work = BankMLP(widths, h.new_empty(3, (1 + widths[0]) * 17, widths[0]))
    value, slopes = work.jacobian(flat, h, basis)
    assert torch.allclose(value, bank_mlp_ref(flat, widths, h), rtol=1e-13)
    for k in range(3):
        for b in range(17):
            full = torch.autograd.functional.jacobian(
                lambda y, k=k: bank_mlp_ref(flat[k : k + 1], widths, y[None, None])[0, 0], h[k, b]
            )
            assert torch.allclose(slopes[k, :, b].T, full, rtol=1e-12, atol=1e-14)


def test_the_flat_vector_is_the_layers_of_a_torch_network_in_order():
    widths, flat, h, target, _ = make(1, 17)
    net, at = [], 0
    for a, b in zip(widths, widths[1:], strict=False):
        linear = torch.nn.Linear(a, b, dtype=F64)
        linear.weight.data = flat[0, at : at + a * b].reshape(a, b).T.clone()
        linear.bias.data = flat[0, at + a * b : at + a * b + b].clone()
        at += a * b + b
        net += [linear, torch.nn.ELU()]
    net, grad = torch.nn.Sequential(*net[:-1]), torch.empty_like(flat)
    work = BankMLP(widths, h)
    assert at == flat.shape[1] == parameter_count(widths) == sum(p.numel() for p in net.parameters())
    assert torch.allclose(work.forward(flat, h)[0], net(h[0]), rtol=1e-13, atol=1e-14)
    loss = torch.nn.functional.mse_loss(net(h[0]), target[0])
    loss.backward()
    assert torch.allclose(work.gradient(flat, h, target, grad)[0], loss, rtol=1e-13)
    for (weight, bias), linear in zip(layers(grad, widths), net[::2], strict=True):
        assert torch.allclose(weight[0].T, linear.weight.grad, rtol=1e-12, atol=1e-15)
        assert torch.allclose(bias[0, 0], linear.bias.grad, rtol=1e-12, atol=1e-15)


def test_networks_of_a_bank_do_not_mix():
    widths, flat, h, target, _ = make(3, 17)
    before, grad = BankMLP(widths, h).forward(flat, h).clone(), torch.empty_like(flat)
    BankMLP(widths, h).gradient(flat, h, target, grad)
    other_flat, other_h, other_grad = flat.clone(), h.clone(), torch.empty_like(flat)
    other_flat[1] *= -2
    other_h[1] += 1
    after = BankMLP(widths, h).forward(other_flat, other_h)
    BankMLP(widths, h).gradient(other_flat, other_h, target, other_grad)
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.allclose(after[1], before[1])
    assert torch.equal(other_grad[[0, 2]], grad[[0, 2]]) and not torch.allclose(other_grad[1], grad[1])


def test_buffers_and_views_are_reused_without_remembering():
    """The object keeps views by the identity of the tensor, so changes in place and new tensors must be seen."""
    widths, flat, h, target, _ = make(3, 17)
    work, grad = BankMLP(widths, h), torch.empty_like(flat)
    for step in range(12):
        if step % 3 == 2:
            flat = flat.clone()  # a new tensor, often where an old one was
        flat -= 0.05 * step
        loss = work.gradient(flat, h + step, target, grad)
        exact = plain_gradient(flat, widths, h + step, target)
        assert torch.allclose(loss, exact[0], rtol=1e-12) and torch.allclose(grad, exact[1], rtol=1e-10, atol=1e-13)


def test_large_inputs_neither_overflow_nor_lose_the_slope():
    widths = [1, 1, 1]
    flat = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    z = torch.tensor([[[-1e4], [-80.0], [0.0], [80.0], [1e4]]])
    value, slope = BankMLP(widths, z.new_empty(1, 10, 1)).jacobian(flat, z, torch.ones(1, 1, 5, 1))
    assert torch.allclose(value.flatten(), torch.tensor([-1.0, -1.0, 0.0, 80.0, 1e4]))
    assert torch.allclose(slope.flatten(), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]))


def test_a_wrong_input_shape_is_named():
    for shape in [(3, 17, 5), (17, 4)]:
        with pytest.raises(ValueError, match=r"inputs of shape \(K, B, 4\), got \(") as caught:
            BankMLP([4, 8, 2], torch.empty(*shape))
        assert "\n" not in str(caught.value)


def test_parameter_count_of_the_papers_network():
    assert parameter_count([4, 100, 150, 100, 2]) == 4 * 100 + 100 + 100 * 150 + 150 + 150 * 100 + 100 + 200 + 2


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5), (7, 5, 6), (7, 5, 6, 4)])
def test_trace_is_that_of_the_jacobian(hidden):
    g = torch.Generator().manual_seed(0)
    K, B, m, width = 3, 17, 2, 9
    widths = [width, *hidden, m]
    h = torch.randn(K, B, width, generator=g, dtype=torch.float64)
    flat = torch.randn(K, parameter_count(widths), generator=g, dtype=torch.float64)
    tangents = torch.randn(K, m, width, generator=g, dtype=torch.float64)
    value, trace = BankMLP(widths, h).trace(flat, h, tangents)
    wide = BankMLP(widths, h.new_empty(K, (1 + m) * B, width))
    expected, slopes = wide.jacobian(flat, h, tangents[:, :, None].expand(K, m, B, width))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trace, slopes.diagonal(dim1=1, dim2=3).sum(-1), rtol=1e-11, atol=1e-11)
