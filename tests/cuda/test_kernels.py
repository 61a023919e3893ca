"""Triton kernels as the compiler makes them: bits of the generator, and the three-way rule for everything else.

err(kernel) <= 2 err(torch in the same dtype) + atol, both against float64; products in tf32 are held against torch
operations whose operands are rounded alike.
"""

import pytest
import torch

from psmlib.benchmarks.tf32 import RoundedMLP
from psmlib.kernels.bank_mlp import BankMLP, parameter_count
from psmlib.kernels.bank_updates import BankUpdates, adam_rates
from psmlib.kernels.fused_updates import FusedUpdates
from psmlib.kernels.mlp_flow import mlp_flow_ref, mlp_flow_triton
from psmlib.kernels.optimal_denoiser import optimal_denoiser, optimal_denoiser_ref
from psmlib.kernels.philox import words, words_ref
from psmlib.machine.cuda_graph import Captured

PAPER = [4, 100, 150, 100, 2]


def normal(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).cuda()


def network(widths, K, strided):
    """Parameters of trained networks' size; strided rows are those of a larger stack."""
    P = parameter_count(widths)
    wide = normal(K, P + 3, scale=0.2)
    return wide[:, :P] if strided else wide[:, :P].contiguous()


def worst(a, b):
    return float((a.double() - b.double()).abs().max())


@pytest.mark.parametrize("case", [(0, 1, 1, 1), (7, 3, 17, 2), (2**31 + 5, 2, 1023, 3), (1, 50, 512, 2), (1, 1, 0, 1)])
def test_words_are_the_same_bits(case):
    keys = torch.tensor([3, 2**62 + 12345, 77])
    assert torch.equal(words(keys.cuda(), *case).cpu(), words_ref(keys, *case))


SIZES = [
    (PAPER, 1, 17, False), (PAPER, 5, 1023, True), (PAPER, 200, 512, False), ([2, 100, 150, 100, 2], 200, 1, True),
    ([37, 96, 136, 96, 2], 3, 130, False), ([3, 17, 33, 9, 3], 3, 64, True),
]  # fmt: skip


@pytest.mark.parametrize("widths, K, B, strided", SIZES)
@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_gradients_three_ways(widths, K, B, strided, precision):
    params = network(widths, K, strided)
    h, y = normal(K, B, widths[0], seed=1), normal(K, B, widths[-1], seed=2)
    moments = torch.zeros(2, *params.shape).cuda()
    fused = FusedUpdates(widths, params, *moments, batch=B, precision=precision)
    found, plain = torch.full_like(moments[0], 9e9), torch.empty_like(moments[0])
    exact = torch.empty(params.shape, dtype=torch.float64, device="cuda")
    loss = BankMLP(widths, h.double()).gradient(params.double(), h.double(), y.double(), exact)
    other = (RoundedMLP if precision == "tf32" else BankMLP)(widths, h)
    plain_loss, fused_loss = other.gradient(params, h, y, plain), fused.gradient(h, y, found)
    assert worst(found, exact) <= 2 * worst(plain, exact) + 1e-6 * float(exact.abs().max())
    assert worst(fused_loss, loss) <= 2 * worst(plain_loss, loss) + 1e-6 * float(loss.max())


@pytest.mark.parametrize("widths, K, B, strided", SIZES[:3])
@pytest.mark.parametrize("kind", [BankUpdates, FusedUpdates])
def test_recorded_steps_are_those_of_float64(widths, K, B, strided, kind):
    params, rates = network(widths, K, strided), adam_rates(lambda i: 1e-3 / (1 + i), 0, 6)
    h, y = normal(6, K, B, widths[0], seed=1), normal(6, K, B, widths[-1], seed=2)
    states = []
    for made, dtype in ((kind, torch.float32), (BankUpdates, torch.float64)):
        p = params.to(dtype, copy=True)
        mean, square, average = *torch.zeros(2, *p.shape, dtype=dtype, device="cuda"), p.clone()
        more = dict(precision="ieee") if made is FusedUpdates else {}
        step = made(widths, p, mean, square, batch=B, average=average, ema=0.9, **more)
        losses = [step.run(h[i:j].to(dtype), y[i:j].to(dtype), rates[i:j]) for i, j in ((0, 3), (3, 6))]
        states.append([p, average, mean, square, *losses])
    for name, a, b in zip(("params", "average", "mean", "square", "first", "second"), *states, strict=True):
        # a gradient near 0 has a sign of its own in single precision, and Adam's step is as large as its rate
        typical = float((a - b).abs().double().mean() / b.abs().mean())
        assert typical < 1e-4, name
        assert name not in ("params", "average") or worst(a, b) < 6 * 2e-3


def test_runs_of_other_lengths_share_a_state():
    """Graphs of 3 and of 5 updates work on the same tensors, and what the recording does is undone."""
    params = network(PAPER, 2, False)
    h, y, rates = normal(8, 2, 64, 4, seed=1), normal(8, 2, 64, 2, seed=2), adam_rates(lambda i: 1e-3, 0, 8)
    made = []
    for cuts in (((0, 8),), ((0, 3), (3, 8))):
        p = params.clone()
        step = FusedUpdates(PAPER, p, *torch.zeros(2, *p.shape).cuda(), batch=64)
        for i, j in cuts:
            step.run(h[i:j], y[i:j], rates[i:j])
        made.append(p)
    assert torch.equal(*made)


def test_captured_work_is_replayed_and_its_rehearsals_undone():
    x = torch.zeros(3).cuda()
    step = Captured(lambda: x.add_(1), "cuda", [x])
    assert x.tolist() == [0, 0, 0]
    for _ in range(3):
        step()
    assert x.tolist() == [3, 3, 3]


@pytest.mark.parametrize("widths, n, method", [(PAPER, 1000, "rk4"), ([2, 17, 33, 9, 2], 1, "rk4"),
                                               ([3, 40, 40, 16, 2], 129, "euler"), (PAPER, 0, "rk4")])  # fmt: skip
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_flows_three_ways(widths, n, method, precision):
    params, x = network(widths, 3, True) * 0.75, normal(n, 2, seed=1)
    blocks = torch.tensor([0, 2, 1, 1], dtype=torch.int32).cuda()
    table = normal(4, 10, seed=2, scale=0.3)
    exact = mlp_flow_ref(params.double(), widths, x.double(), blocks, table.double(), method)
    plain = mlp_flow_ref(params, widths, x, blocks, table, method)
    kernel = mlp_flow_triton(params, widths, x, blocks, table, method, precision)
    for a, b, e in zip(kernel, plain, exact, strict=True):
        assert a.shape == e.shape
        assert not n or worst(a, e) <= 2 * worst(b, e) + 2e-6 * (1 + float(e.abs().max()))


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1e-2, 1.0, 1e3])
def test_optimal_denoiser_three_ways(sigma):
    data, x = normal(3000, 48), normal(33, 48, seed=1)
    x = data[:33] + sigma * x
    exact = optimal_denoiser_ref(x.double(), data.double(), 1.0, max(sigma, 1e-12))
    plain = optimal_denoiser_ref(x, data, 1.0, max(sigma, 1e-12))
    found = optimal_denoiser(x, data, 1.0, max(sigma, 1e-12))
    assert bool(found.isfinite().all())
    assert worst(found, exact) <= 2 * worst(plain, exact) + 1e-5
