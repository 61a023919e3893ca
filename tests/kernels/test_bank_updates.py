"""Adam updates of a whole bank: against torch's own optimiser, and the Triton kernels by the three-way rule."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from psmlib.kernels.bank_mlp import BankMLP, bank_mlp_ref, layers, parameter_count
from psmlib.kernels.bank_updates import BankUpdates, adam_rates
from psmlib.kernels.fused_updates import TILE, fits, tiles
from psmlib.training.optim import Adam

F64 = torch.float64
WIDTHS = [4, 9, 11, 8, 2]


def problem(K: int, B: int, n: int, widths=WIDTHS, dtype=F64) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters, inputs and targets."""
    g = torch.Generator().manual_seed(0)
    params = torch.randn(K, parameter_count(widths), generator=g, dtype=dtype) * 0.3
    return params, *(torch.randn(n, K, B, w, generator=g, dtype=dtype) for w in (widths[0], widths[-1]))


def torch_course(flat: Tensor, h: Tensor, y: Tensor, rate, ema: float) -> tuple[Tensor, Tensor, Tensor]:
    """One network by automatic differentiation and torch.optim.Adam: parameters, average and mean loss."""
    p = nn.Parameter(flat.clone())
    optimiser, average, losses = torch.optim.Adam([p], lr=1.0), flat.clone(), []
    for i in range(len(h)):
        loss = (bank_mlp_ref(p[None], WIDTHS, h[i][None])[0] - y[i]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = rate(i)
        optimiser.step()
        average = ema * average + (1 - ema) * p.detach()
        losses.append(loss.detach())
    return p.detach(), average, torch.stack(losses).mean()


def test_products_follow_torch():
    rate = lambda i: 1e-2 / (1 + i)  # noqa: E731
    params, h, y = problem(3, 7, 12)
    average, start = params.clone(), params.clone()
    step = BankUpdates(WIDTHS, params, *torch.zeros(2, *params.shape, dtype=F64), batch=7, average=average, ema=0.9)
    losses = [step.run(h[i:j], y[i:j], adam_rates(rate, i, j - i)) for i, j in ((0, 5), (5, 10), (10, 12))]
    loss = sum(part * n for part, n in zip(losses, (5, 5, 2), strict=True)) / 12
    for k in range(3):
        expected = torch_course(start[k], h[:, k], y[:, k], rate, 0.9)
        for found, wanted in zip((params[k], average[k], loss[k]), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_rates_make_the_step_of_the_plain_optimiser():
    params, h, y = problem(2, 5, 4)
    other, moments = params.clone(), Adam(params)
    step = BankUpdates(WIDTHS, params, *torch.zeros(2, *params.shape, dtype=F64), batch=5)
    step.run(h, y, adam_rates(lambda i: 1e-3 * (i + 1), 0, 4))
    work, grad = BankMLP(WIDTHS, h[0]), torch.empty_like(other)
    for i in range(4):
        work.gradient(other, h[i], y[i], grad)
        moments.step(other, grad, lr=1e-3 * (i + 1), count=i + 1)
    torch.testing.assert_close(params, other, rtol=1e-12, atol=1e-14)


def test_batches_of_another_shape_are_refused():
    params, h, y = problem(2, 5, 1)
    step = BankUpdates(WIDTHS, params, *torch.zeros(2, *params.shape, dtype=F64), batch=6)
    with pytest.raises(ValueError, match=r"batches must be of shape \(n, 2, 6, ...\), got \(1, 2, 5, 4\)"):
        step.run(h, y, adam_rates(lambda i: 1e-3, 0, 1))


@pytest.mark.parametrize("widths", [[4, 100, 150, 100, 2], [37, 96, 136, 96, 2], [3, 17, 33, 9, 3]])
def test_tiles_cover_every_parameter_once(widths):
    seen = torch.zeros(parameter_count(widths), dtype=torch.int64)
    inputs = [0, *itertools.accumulate(widths[:-1])]
    deltas = [0, *itertools.accumulate(widths[1:])]
    flat = torch.arange(len(seen))
    starts = [int(weight[0, 0, 0]) for weight, _ in layers(flat[None], widths)]
    for source, a, sink, b, at, row, column, *copies in tiles(widths).tolist():
        layer = starts.index(at)
        # each layer's inputs are followed by a row of ones
        assert (source, sink, a, b) == (inputs[layer] + layer, deltas[layer], widths[layer], widths[layer + 1])
        assert bool(copies[1]) == bool(copies[3]) == (layer in (1, 2))
        r, c = torch.arange(row, min(row + TILE[0], a + 1)), torch.arange(column, min(column + TILE[1], b))
        seen[at + r[:, None] * b + c] += 1
    assert bool((seen == 1).all())


def test_what_the_kernels_hold():
    assert fits([4, 100, 150, 100, 2], torch.float32)
    assert not fits([4, 100, 150, 100, 2], F64) and not fits([4, 100, 100, 2], torch.float32)
    assert not fits([4, 300, 150, 100, 2], torch.float32)


THREE_WAY = """
    import json, torch
    from psmlib.kernels.bank_mlp import BankMLP, parameter_count
    from psmlib.kernels.bank_updates import adam_rates, BankUpdates
    from psmlib.kernels.fused_updates import FusedUpdates
    g, out = torch.Generator().manual_seed(0), []
    for widths, K, B in {cases}:
        P = parameter_count(widths)
        wide = torch.randn(K, P + 3, generator=g) * .2
        params = wide[:, :P] if {strided} else wide[:, :P].contiguous()    # rows of a larger stack, as in a part
        h, y = (torch.randn(2, K, B, w, generator=g) for w in (widths[0], widths[-1]))
        made = lambda kind, **kw: kind(widths, params.clone(), *torch.zeros(2, K, P), batch=B, average=params.clone(),
                                       ema=.9, **kw)
        fused, plain = made(FusedUpdates, precision="ieee"), made(BankUpdates)
        fused.params = params if {strided} else fused.params
        exact, grads = torch.empty(K, P, dtype=torch.float64), [torch.full((K, P), 9e9), torch.empty(K, P)]
        loss = BankMLP(widths, h[0].double()).gradient(params.double(), h[0].double(), y[0].double(), exact)
        losses = [fused.gradient(h[0], y[0], grads[0]), BankMLP(widths, h[0]).gradient(params, h[0], y[0], grads[1])]
        errors = [float((a.double() - b).abs().max()) for a, b in zip(grads + losses, [exact, exact, loss, loss])]
        scale = [float(exact.abs().max()), float(loss.max())]
        rates = adam_rates(lambda i: 1e-3, 0, 2)
        if K == 200:  # a crowd takes the interpreter long enough
            out.append([errors, scale, [0.]])
            continue
        first = [float((fused.run(h, y, rates) - plain.run(h, y, rates)).abs().max())]
        first += [float((a - b).abs().max()) for a, b in ((fused.params, plain.params), (fused.average, plain.average),
                                                         (fused.mean, plain.mean), (fused.square, plain.square))]
        out.append([errors, scale, first])
    print(json.dumps(out))
"""


def test_products_of_ten_bits_are_those_of_rounded_operands(interpreted):
    """The interpreter multiplies all bits: what is left of tf32 is the rounding that the kernels do themselves."""
    fused, rounded, plain = interpreted("""
        import json, torch
        from psmlib.kernels.bank_mlp import BankMLP, parameter_count
        from psmlib.kernels.fused_updates import FusedUpdates
        from psmlib.benchmarks.tf32 import RoundedMLP
        g, widths = torch.Generator().manual_seed(0), [4, 40, 50, 36, 2]
        params = torch.randn(2, parameter_count(widths), generator=g) * .2
        h, y = (torch.randn(2, 70, w, generator=g) for w in (4, 2))
        exact, *found = (torch.empty_like(params, dtype=d) for d in (torch.float64, *3 * [torch.float32]))
        BankMLP(widths, h.double()).gradient(params.double(), h.double(), y.double(), exact)
        FusedUpdates(widths, params, *torch.zeros(2, *params.shape), batch=70).gradient(h, y, found[0])
        RoundedMLP(widths, h).gradient(params, h, y, found[1])
        BankMLP(widths, h).gradient(params, h, y, found[2])
        print(json.dumps([float((f.double() - exact).square().mean().sqrt()) for f in found]))
    """)
    assert 0.5 * rounded < fused < 1.5 * rounded and rounded > 100 * plain


@pytest.mark.parametrize(
    "cases, strided",
    [
        ("(([4, 100, 150, 100, 2], 1, 17), ([4, 100, 150, 100, 2], 2, 70), ([37, 96, 136, 96, 2], 1, 33))", False),
        ("(([3, 17, 33, 9, 3], 3, 1), ([4, 20, 40, 16, 2], 2, 130))", True),
        ("(([2, 5, 7, 5, 1], 200, 2), ([2, 5, 7, 5, 2], 1, 1023))", False),
    ],
    ids=["paper", "strided", "crowd"],
)
def test_three_way(interpreted, cases, strided):
    """err(kernel) <= 2 err(torch in the same dtype) + atol, against float64; then two steps with all they change."""
    for (fused, plain, fused_loss, plain_loss), (grad, loss), steps in interpreted(
        THREE_WAY.format(cases=cases, strided=strided)
    ):
        assert fused <= 2 * plain + 1e-6 * grad
        assert fused_loss <= 2 * plain_loss + 1e-6 * loss
        assert max(steps) < 1e-4  # a step of Adam is as large as the learning rate, whatever the gradient's error
