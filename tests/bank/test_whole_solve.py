"""Likelihood solves that one kernel carries out: its table of steps against the solvers, and when it is used."""

import pytest
import torch
from torch import Tensor

from psmlib.bank import mlp_bank
from psmlib.bank.mlp_bank import Bank
from psmlib.kernels.mlp_flow import mlp_flow
from psmlib.likelihood import log_likelihood, time_grid
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow

F64 = torch.float64
SMALL = Plain(hidden=(9, 11, 8))


def points(n: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.mark.parametrize(
    "arch, native, process, partition, method, grid",
    [
        (SMALL, "eps", VP(0.0, 10.0), Partition([0, 0.02, 0.1, 0.3, 1]), "rk4", "warped"),
        (SMALL, "velocity", OTFlow(), Partition.equal(3), "rk4", "uniform"),
        (Plain(hidden=(9, 11, 8), times=0), "eps", VP(0.0, 10.0), Partition.points(5), "euler", "blocks"),
    ],
    ids=["blocks", "flow matching", "points"],
)
def test_the_table_says_what_the_solver_does(arch, native, process, partition, method, grid):
    score, x = Bank(arch, len(partition), native=native, dtype=F64).score(partition, process), points(6)
    times = time_grid(score, process, 0.01, 1.0, 25, grid)
    expected = log_likelihood(score, process, x, t0=0.01, method=method, grid=times)
    blocks, table = score.steps_table(times)
    end, change = mlp_flow(score.bank.params, arch.widths, x, blocks, table, method)
    torch.testing.assert_close(end, expected.x_T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(change, expected.change, rtol=1e-9, atol=1e-11)
    assert len(table) == len(blocks) == len(times) - 1 and blocks.dtype == torch.int32


def test_which_solves_are_given_to_the_kernel(monkeypatch):
    """On an accelerator (stood for by the meta device, where nothing is computed), and in its own setting alone."""
    monkeypatch.setattr(mlp_bank, "mlp_flow", lambda params, widths, x, blocks, table, method: (x, x[:, 0]))
    partition, vp, times = Partition([0, 0.1, 1]), VP(0.0, 10.0), torch.tensor([0.01, 0.1, 0.5, 1.0])
    score, x = Bank(Plain(), 2).score(partition, vp), torch.zeros(3, 2, device="meta")
    assert [score.whole_solve(x, times, method, "exact")[2] for method in ("rk4", "euler")] == [12, 3]
    for other, y, method, divergence in (
        (score, torch.zeros(3, 2), "rk4", "exact"),
        (score, x, "heun", "exact"),
        (score, x, "rk4", "hutchinson"),
        (score, x.double(), "rk4", "exact"),
        (score.on_block(0.05), x, "rk4", "exact"),
        (Bank(Conditioned(), 2).score(partition, vp), x, "rk4", "exact"),
        (Bank(Plain(hidden=(8, 8)), 2).score(partition, vp), x, "rk4", "exact"),
    ):
        assert other.whole_solve(y, times, method, divergence) is None


def test_a_likelihood_takes_the_kernels_solve(monkeypatch):
    score, x = Bank(SMALL, 2).score(Partition([0, 0.1, 1]), VP(0.0, 10.0)), torch.ones(3, 2)
    monkeypatch.setattr(mlp_bank.BankScore, "whole_solve", lambda self, x, *how: (2 * x, x[:, 0] - 4, 7))
    found = log_likelihood(score, score.process, x, t0=0.01, steps=5)
    assert torch.equal(found.x_T, 2 * x) and bool((found.change == -3).all()) and found.nfe == 7
