"""The probability flow of small networks in one kernel: the Triton kernel three ways, and what it refuses."""

import pytest
import torch

from psmlib.kernels.mlp_flow import fits, mlp_flow

F64 = torch.float64


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
