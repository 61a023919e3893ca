"""The online softmax step against a whole softmax, and the Triton kernel against it."""

import importlib.util
import logging
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from psmlib.kernels import optimal_denoiser
from psmlib.kernels.dispatch import choose
from psmlib.kernels.softmax_step import softmax_step_ref, softmax_step_triton

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_what_does_the_work_is_said_once(caplog):
    choose.cache_clear()
    with caplog.at_level(logging.INFO, logger="psmlib"):
        for _ in range(2):
            optimal_denoiser(draw(4, 3), draw(5, 3), 1.0, 1.0)
    assert caplog.messages == ["online softmax in torch.float64 on cpu: torch operations"]


def test_steps_add_up_to_a_softmax():
    D, rate = 5 * torch.rand(9, 60, dtype=F64, generator=torch.Generator().manual_seed(0)) + 1, draw(9).abs() * 3
    low, total, energy = torch.full((9,), torch.finfo(F64).max, dtype=F64), draw(9) * 0, draw(9) * 0
    weights, nearest = draw(9, 0), torch.full((9,), -1)
    for i in (0, 20, 40):
        part = D[:, i : i + 20].clone()
        scale, best = softmax_step_ref(part, low, total, energy, rate)
        weights = torch.cat([weights * scale[:, None], part], 1)
        nearest = torch.where(best >= 0, best + i, nearest)
    above = D - D.amin(1, keepdim=True)
    exact = torch.exp2(-rate[:, None] * above)
    assert torch.equal(nearest, D.argmin(1)) and torch.equal(low, D.amin(1))
    torch.testing.assert_close(weights, exact)
    torch.testing.assert_close(total, exact.sum(1))
    torch.testing.assert_close(energy, (exact * above).sum(1))


def test_the_triton_step_in_the_interpreter():
    """In a process of its own, because Triton decides when it is imported."""
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(ImportError, match="the Triton softmax step needs triton: install it"):
            softmax_step_triton(torch.ones(1, 1), *torch.ones(4, 1))
        return
    script = """
        import importlib, torch
        from psmlib.kernels.softmax_step import softmax_step_ref
        from psmlib.kernels.softmax_step import softmax_step_triton
        g = torch.Generator().manual_seed(0)
        for b, n in ((1, 1), (3, 17), (5, 1023), (2, 1024), (3, 2049)):
            for energy in (True, False):
                start = [torch.full((b,), torch.finfo(torch.float32).max), torch.zeros(b), torch.zeros(b)]
                ours, plain = ([t.clone() for t in start[: 2 + energy]] + [None] * (not energy) for _ in range(2))
                rate = 3 * torch.rand(b, generator=g)
                rate[1:2] = 3e38
                for i in range(3):
                    D = 5 * torch.rand(b, n, generator=g) + 1 - .3 * i * torch.rand(b, 1, generator=g)
                    wide = torch.full((b, 2 * n), torch.nan)
                    wide[:, :n] = D
                    found = softmax_step_triton(wide[:, :n], *ours, rate)
                    expected = softmax_step_ref(D, *plain, rate)
                    assert wide[:, n:].isnan().all()
                    for p, q in zip([wide[:, :n], *ours, *found], [D, *plain, *expected]):
                        if q is not None:
                            torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)
        try:
            softmax_step_triton(D.double(), *ours, rate)
        except ValueError as error:
            assert "float32 with contiguous rows" in str(error)
        module = importlib.import_module("psmlib.kernels.online_posterior")
        from psmlib.kernels.optimal_denoiser import posterior
        data = torch.randn(1500, 20, generator=g)
        sigma = torch.logspace(-4, 2, 7)
        x = data[:7] + sigma[:, None] * torch.randn(7, 20, generator=g)
        before = posterior(x, data, 1., sigma, tangent=x)
        module.softmax_step = softmax_step_triton
        for p, q in zip(posterior(x, data, 1., sigma, tangent=x), before):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
        print("the same")
    """
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "the same\n", done.stderr
