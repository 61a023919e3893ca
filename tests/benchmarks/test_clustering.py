"""The benchmark's baseline is the optimal denoiser, and a wrong border is an error."""

import pytest
import torch

from psmlib.benchmarks import clustering
from psmlib.benchmarks.clustering import SCALES, FullSoftmax, cases
from psmlib.exact.finite_set import DiffusedData
from psmlib.process import VP

F64 = torch.float64
PROCESS = VP(0.1, 20.0)


def test_the_baseline_is_the_optimal_denoiser():
    data = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    naive, ours = FullSoftmax(data, PROCESS), DiffusedData(data, PROCESS)
    t = torch.linspace(0.05, 1, 40, dtype=F64)
    x = PROCESS.perturb(data, t, torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=F64))
    for time in (t, 0.4):
        torch.testing.assert_close(naive.eps(x, time), ours.eps(x, time), rtol=1e-8, atol=1e-8)
    assert naive.tensor_options == ours.tensor_options


def test_the_data():
    (one, digits, many), (two, patches, few) = cases(SCALES["quick"])
    assert (one, *digits.shape, many) == ("digits", 1797, 64, 20_000)
    assert (two, *patches.shape, few) == ("photos32", 5000, 3072, 2000)
    for data in (digits, patches):
        assert data.dtype == torch.float32 and float(data.min()) == 0 and float(data.max()) == 1


def test_borders_that_differ_end_the_run_after_all_rows(monkeypatch):
    data = torch.rand(30, 8, generator=torch.Generator().manual_seed(0))
    names = [row.measure for row in clustering.measure("noise", data, 300, 2)]
    honest = clustering.split

    def wrong(score, **settings):
        return tuple(border + 0.01 * isinstance(score, FullSoftmax) for border in honest(score=score, **settings))

    monkeypatch.setattr(clustering, "split", wrong)
    rows = []
    with pytest.raises(RuntimeError, match="borders of .* differ by .* in noise, 30 x 8, Algorithm 1 with 300 triples"):
        for row in clustering.measure("noise", data, 300, 2):
            rows.append(row)
    assert [row.measure for row in rows] == names and rows[-1].values[1] > clustering.TOLERANCE
    assert {row.method for row in rows} == {"full softmax", "psmlib"}
