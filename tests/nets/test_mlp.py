"""Input features and skip connections of the perceptrons: derivatives, counts and damping."""

import itertools
import math

import numpy as np
import pytest
import torch

from psmlib.data.toys import Mixture
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.process import VE, VP, OTFlow, SubVP

F64 = torch.float64
SWITCHES = [
    dict(zip(("damped", "log_time", "use_skip"), on, strict=True)) for on in itertools.product((True, False), repeat=3)
]
ARCHS = [
    Plain(), Plain(times=0), Plain(dim=3, times=1), Conditioned(dim=3, octaves=3, omega0=0.7),
    *(Conditioned(octaves=m, **s) for m in (8, 0) for s in SWITCHES),
]  # fmt: skip
PROCESSES = [VP(0.0, 10.0), VP(), SubVP(), VE(), OTFlow()]


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_the_tangent_is_the_derivative_of_the_features(arch, process):
    x, u = points(7, arch.dim), points(7, arch.dim, 1)
    for t in (0.3, torch.linspace(0.01, 0.99, 7, dtype=F64)):
        value, slope = torch.func.jvp(lambda y, t=t: arch.features(y, t, process), (x,), (u,))
        assert value.shape == (7, arch.widths[0]) and value.dtype == F64
        assert torch.allclose(arch.tangent(x, t, process, u), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_one_time_for_all_and_a_time_each_agree(arch, process):
    x, u = points(5, arch.dim), points(5, arch.dim, 1)
    each = torch.full((5,), 0.37, dtype=F64)
    assert torch.equal(arch.features(x, 0.37, process), arch.features(x, each, process))
    assert torch.equal(arch.tangent(x, 0.37, process, u), arch.tangent(x, each, process, u))
    ascending = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.9], dtype=F64)
    rows = [arch.features(x[i : i + 1], float(t), process) for i, t in enumerate(ascending)]
    assert torch.allclose(arch.features(x, ascending, process), torch.cat(rows), rtol=1e-14, atol=0)
    for native in ("eps", "velocity"):
        skip = arch.skip(ascending, process, native)
        singly = [arch.skip(float(t), process, native) for t in ascending]
        if skip is None:
            assert singly == [None] * 5
        else:
            assert torch.allclose(skip, torch.stack(singly), rtol=1e-14, atol=0)


def test_parameter_counts():
    assert Plain().parameters == 30952, "Parallel Score Matching, Appendix H"
    assert Plain(times=0).widths == (2, 100, 150, 100, 2)
    assert all(Conditioned(**s).parameters <= 30952 for s in SWITCHES)
    for arch in ARCHS:
        net = [torch.nn.Linear(a, b) for a, b in zip(arch.widths, arch.widths[1:], strict=False)]
        assert arch.parameters == sum(p.numel() for layer in net for p in layer.parameters())
        assert arch.features(points(2, arch.dim), 0.5, VP()).shape == (2, arch.widths[0])
        assert arch.widths[-1] == arch.dim


def test_the_plain_network_is_told_the_point_and_twice_the_time():
    x, t = points(3, 2), torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    assert torch.equal(Plain().features(x, t, VP()), torch.stack([x[:, 0], x[:, 1], t, t], 1))
    assert torch.equal(Plain(times=0).features(x, t, VP()), x)


def test_features_keep_the_dtype_of_the_points():
    for arch in ARCHS:
        features = arch.features(points(3, arch.dim).float(), torch.tensor([0.1, 0.5, 1.0], dtype=F64), VP())
        assert features.dtype == torch.float32 and features.isfinite().all()


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_damped_waves_are_the_waves_averaged_over_the_noise(process):
    """E sin(w (x + sigma z)) by Gauss-Hermite quadrature, for every frequency and axis."""
    arch, x, t = Conditioned(octaves=4, omega0=0.5), points(6, 2), 0.02
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    z, weight = torch.tensor(z), torch.tensor(weight / math.sqrt(2 * math.pi))
    omega = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=F64)
    phase = omega[:, None] * (x[..., None, None] + process.sigma(t) * z)
    expected = torch.cat([(f(phase) * weight).sum(-1).flatten(1) for f in (torch.sin, torch.cos)], 1)
    features = arch.features(x, t, process)
    assert torch.allclose(features[:, -16:], expected, rtol=0, atol=1e-12)
    told = torch.stack([-0.1 * process.log_snr(t), torch.tensor(t, dtype=F64), process.sigma(t)])
    assert torch.equal(features[:, :5], torch.cat([x, told.expand(6, 3)], 1))
    undamped = Conditioned(octaves=4, omega0=0.5, damped=False).features(x, t, process)
    assert torch.allclose(undamped[:, -16:-8], (omega * x[..., None]).sin().flatten(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("process", [VP(0.0, 10.0), VP(), SubVP(), OTFlow()], ids=str)
@pytest.mark.parametrize("native", ["eps", "velocity"])
def test_the_skip_is_the_exact_answer_for_standard_gaussian_data(process, native):
    exact = Mixture(gaussians=[(1.0, [0.0, 0.0], 1.0)]).diffused(process)
    x = points(9, 2)
    for t in (0.03, 0.5, 0.97):
        answer = process.convert(x, t, exact.eps(x, t), "eps", native)
        assert torch.allclose(Conditioned().skip(t, process, native) * x, answer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("process", [VP(0.0, 10.0), OTFlow()], ids=str)
@pytest.mark.parametrize("native", ["eps", "velocity"])
def test_the_skip_is_the_regression_of_the_target_on_the_point(process, native):
    """Cov(target, x_t) / Var(x_t), from the definition alone: x_t and the target are linear in (x_0, eps)."""
    for t in (0.2, 0.8):
        h = 1e-6
        if native == "eps":
            target = (0.0, 1.0)
        else:
            target = [float(f(t + h) - f(t - h)) / (2 * h) for f in (process.alpha, process.sigma)]
        point = (float(process.alpha(t)), float(process.sigma(t)))
        slope = np.dot(target, point) / np.dot(point, point)
        assert float(Conditioned().skip(t, process, native)) == pytest.approx(slope, rel=1e-7, abs=1e-8)
    assert Conditioned(use_skip=False).skip(0.5, process, native) is None
    assert Plain().skip(0.5, process, native) is None


def test_time_zero_is_told_as_finite_numbers():
    for process in PROCESSES:
        assert Conditioned().features(points(2, 2), 0.0, process).isfinite().all()
        assert Conditioned().features(points(2, 2), 1.0, process).isfinite().all()
        assert Conditioned().skip(0.0, process, "eps") == 0
