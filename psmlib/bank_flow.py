"""Handing a whole likelihood solve of small networks to one kernel, where that is what is being asked."""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.kernels.mlp_flow import COLUMNS, fits, mlp_flow
from psmlib.nets.bank import BankScore
from psmlib.nets.mlp import Plain
from psmlib.score import Score
from psmlib.solvers import TABLEAUS

METHODS = ("euler", "rk4")


def steps_table(score: BankScore, times: Tensor) -> tuple[Tensor, Tensor]:
    """Which network answers in each step, and what the step multiplies by.

    Args:
        score: A bank's.
        times: The grid, ascending or descending. Shape: (steps + 1,).

    Returns:
        Networks, int32, (steps,), and the table of :func:`psmlib.kernels.mlp_flow.mlp_flow`, float64, (steps, 10).

    Example:
        >>> from psmlib.nets.bank import Bank
        >>> from psmlib.partition import Partition
        >>> from psmlib.process import VP
        >>> score = Bank(Plain(), 2).score(Partition([0, .1, 1]), VP(0., 10.))
        >>> blocks, table = steps_table(score, torch.tensor([.05, .1, .2]))
        >>> blocks.tolist(), table.shape
        ([0, 1], torch.Size([2, 10]))
    """
    times = times.double().cpu()
    start, end = times[:-1], times[1:]
    middle = (start + end) / 2
    blocks = score.partition.block_of(middle)
    parts = [end - start]
    for t in (start, middle, end):
        s = torch.tensor(score.partition.times, dtype=torch.float64)[blocks] if score.partition.discrete else t
        a, b = (0.0, 1.0) if score.native == "velocity" else score.process.conversion(s, score.native, "velocity")
        parts += [s, torch.as_tensor(a, dtype=torch.float64).expand_as(s), torch.as_tensor(b).expand_as(s)]
    return blocks.int(), torch.stack(parts, 1).reshape(-1, COLUMNS)


def serves(score: Score, x: Tensor, method: str, divergence: str) -> bool:
    """Whether the kernel answers this question, and the device makes it worth asking: it is an accelerator's."""
    if x.device.type == "cpu" or method not in METHODS or divergence != "exact" or type(score) is not BankScore:
        return False
    arch = score.bank.arch
    return type(arch) is Plain and score.block is None and fits(arch.widths, x.dtype)


def solve(score: BankScore, x: Tensor, times: Tensor, method: str) -> tuple[Tensor, Tensor, int]:
    """Carries points through the grid: where they end, the integrated divergence, and the evaluations it took."""
    blocks, table = steps_table(score, times)
    end, change = mlp_flow(score.bank.params, score.bank.arch.widths, x, blocks, table.to(x), method)
    return end, change, len(table) * len(TABLEAUS[method].c)
