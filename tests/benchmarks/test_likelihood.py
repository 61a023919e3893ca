"""Both sides of the likelihood benchmark compute the same, by one solve or in stretches."""

import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import likelihood
from psmlib.benchmarks.plain import sequential
from psmlib.data.toys import load_toy
from psmlib.likelihood import log_likelihood
from psmlib.nets.mlp import Plain
from psmlib.partition import SA
from psmlib.process import VP
from psmlib.sampling import grids


def test_both_sides_converge_to_each_other():
    """RK4's classical form and torchdiffeq's 3/8 rule have one limit; nothing but their truncation tells them apart.

    In the points it falls with the fourth power of the step; in the log density only with the square, because the
    divergence of an ELU network has kinks.
    """
    process, bank = VP(0.0, 10.0), Bank(Plain(), 1, dtype=torch.float64)
    score, net = bank.score(SA, process), sequential(bank.params[0], bank.arch.widths)
    x = load_toy("HG").sample(50, torch.Generator().manual_seed(0))
    gaps = []
    for n in (25, 100):
        y, change = likelihood.by_torchdiffeq(net, process, (x, x.new_zeros(50)), grids.uniform(0.1, 1.0, n))
        found = log_likelihood(score, process, x, t0=0.1, steps=n)
        apart = y - found.x_T, process.prior_log_prob(y) + change - found.log_prob
        gaps.append([float(gap.abs().mean()) for gap in apart])
    (x_coarse, p_coarse), (x_fine, p_fine) = gaps
    assert p_coarse < 1e-5 and x_fine < x_coarse / 100 and p_fine < p_coarse / 8, gaps


def test_stretches_put_together_are_one_solve():
    process, bank = VP(0.0, 10.0), Bank(Plain(), 1, dtype=torch.float64)
    score, x = bank.score(SA, process), load_toy("HG").sample(7, torch.Generator().manual_seed(0))
    solve = lambda state, times: likelihood.by_psmlib(score, process, state, times)  # noqa: E731
    contestant = likelihood.Contestant(solve, x, grids.uniform(0.01, 1.0, 12), 4)
    for i in range(4):
        contestant(i)  # round 0 is the warm-up and must leave no trace
    found = log_likelihood(score, process, x, t0=0.01, steps=12)
    torch.testing.assert_close(contestant.state, (found.x_T, found.change), rtol=1e-12, atol=1e-12)
