"""The probability flow of small networks: against the likelihood's own solvers, and the Triton kernel three ways."""

import pytest
import torch

from psmlib.bank import mlp_bank
from psmlib.bank.mlp_bank import Bank
from psmlib.kernels.mlp_flow import fits, mlp_flow
from psmlib.likelihood import log_likelihood
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow

F64 = torch.float64
SMALL = (9, 11, 8)


def points(n: int, dtype=F64) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    "arch, native, process, partition, method, grid",
    [
        (Plain(hidden=SMALL), "eps", VP(0.0, 10.0), Partition([0, 0.02, 0.1, 0.3, 1]), "rk4", "warped"),
        (Plain(hidden=SMALL), "velocity", OTFlow(), Partition.equal(3), "rk4", "uniform"),
        (Plain(hidden=SMALL, times=0), "eps", VP(0.0, 10.0), Partition.points(5), "euler", "blocks"),
    ],
    ids=["blocks", "flow matching", "points"],
)
def test_the_table_says_what_the_solver_does(arch, native, process, partition, method, grid):
    bank = Bank(arch, len(partition), native=native, dtype=F64)
    score, x = bank.score(partition, process), points(6)
    times = dict(t0=0.01, steps=25, method=method, grid=grid)
    expected = log_likelihood(score, process, x, **times)
    from psmlib.likelihood import time_grid

    steps = time_grid(score, process, 0.01, 1.0, 25, grid)
    end, change, nfe = mlp_bank.solve(score, x, steps, method)
    torch.testing.assert_close(end, expected.x_T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(change, expected.change, rtol=1e-9, atol=1e-11)
    assert nfe == expected.nfe


def test_who_is_served():
    partition, vp = Partition([0, 0.1, 1]), VP(0.0, 10.0)
    score, x = Bank(Plain(), 2).score(partition, vp), torch.zeros(3, 2)
    on_device = torch.zeros(3, 2, device="meta")  # any accelerator: nothing is computed
    assert not mlp_bank.serves(score, x, "rk4", "exact")
    assert mlp_bank.serves(score, on_device, "rk4", "exact")
    assert not mlp_bank.serves(score, on_device, "heun", "exact")
    assert not mlp_bank.serves(score, on_device, "rk4", "hutchinson")
    assert not mlp_bank.serves(score, on_device.double(), "rk4", "exact")
    assert not mlp_bank.serves(score.on_block(0.05), on_device, "rk4", "exact")
    assert not mlp_bank.serves(Bank(Conditioned(), 2).score(partition, vp), on_device, "rk4", "exact")
    assert not mlp_bank.serves(Bank(Plain(hidden=(8, 8)), 2).score(partition, vp), on_device, "rk4", "exact")


@pytest.mark.parametrize(
    "x, method, message",
    [
        (torch.zeros(3, 2), "heun", "has steps of euler and rk4, not 'heun'"),
        (torch.zeros(3, 3), "rk4", r"points must be of shape \(n, 2\), got \(3, 3\)"),
    ],
)
def test_refusals(x, method, message):
    with pytest.raises(ValueError, match=message):
        mlp_flow(torch.zeros(1, 10), [4, 1, 1, 1, 2], x, torch.zeros(1), torch.zeros(1, 10), method)


def test_what_the_kernel_holds():
    assert fits([4, 100, 150, 100, 2], torch.float32) and fits([2, 9, 300, 9, 2], torch.float32)
    assert not fits([4, 100, 150, 100, 2], F64) and not fits([5, 9, 9, 9, 3], torch.float32)


def test_three_way(interpreted):
    """err(kernel) <= 2 err(torch in the same dtype) + atol, against float64: ends and integrated divergences."""
    found = interpreted("""
        import json, torch
        from psmlib.kernels.bank_mlp import parameter_count
        from psmlib.kernels.mlp_flow import mlp_flow_ref
        from psmlib.kernels.mlp_flow import mlp_flow_triton
        g, out = torch.Generator().manual_seed(0), []
        for widths, n, method in (([4, 100, 150, 100, 2], 70, "rk4"), ([2, 17, 33, 9, 2], 1, "rk4"),
                                  ([3, 40, 40, 16, 2], 129, "euler"), ([4, 100, 150, 100, 2], 0, "rk4")):
            params, x = torch.randn(3, parameter_count(widths) + 1, generator=g)[:, :-1] * .15, torch.randn(n, 2)
            blocks, table = torch.tensor([0, 2, 1], dtype=torch.int32), torch.randn(3, 10, generator=g) * .3
            exact = mlp_flow_ref(params.double(), widths, x.double(), blocks, table.double(), method)
            plain = mlp_flow_ref(params, widths, x, blocks, table, method)
            kernel = mlp_flow_triton(params, widths, x, blocks, table, method, "ieee")
            err = lambda a: [float((v.double() - e).abs().max()) if n else 0. for v, e in zip(a, exact)]
            out.append([err(kernel), err(plain)])
        print(json.dumps(out))
    """)
    assert len(found) == 4
    for kernel, plain in found:
        assert all(a <= 2 * b + 1e-6 for a, b in zip(kernel, plain, strict=True))
