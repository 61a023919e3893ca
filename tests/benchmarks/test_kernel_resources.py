"""The kernels as a compiler for an H200 sees them, on a machine that has none."""

import pytest

from psmlib.benchmarks.kernel_profiles import PROFILES, profile
from psmlib.benchmarks.kernel_resources import Resources, compile_for
from psmlib.kernels import fused_updates, mlp_flow, philox, softmax_step

pytest.importorskip("triton")


def test_programs_a_multiprocessor():
    small = Resources(registers=32, stack=0, shared=0, warps=4, tensor_core=0, fused_add=0)
    assert small.programs == 16
    assert Resources(255, 0, 0, 8, 0, 0).programs == 1
    assert Resources(64, 0, 120_000, 4, 0, 0).programs == 1


def test_every_kernel_has_a_profile():
    modules = (fused_updates, mlp_flow, philox, softmax_step)
    kernels = {
        value.fn.__name__
        for m in modules
        for value in vars(m).values()
        if hasattr(value, "fn") and hasattr(value, "src")
    }
    inlined = {"_elu", "_slope", "_rounded", "_field"}
    assert {p.kernel.fn.__name__ for p in PROFILES.values()} == kernels - inlined - {"cdiv", "next_power_of_2"}


@pytest.mark.parametrize("name", ["philox", "softmax_step", "update"])
def test_kernels_compile(name):
    made = profile(name)
    assert 0 < made.registers <= 255 and made.stack <= 256 and made.programs >= 1


def test_training_uses_the_tensor_cores():
    made = profile("sweep")
    assert made.tensor_core > 0 and made.programs >= 1
    assert made.programs >= 2 and made.stack <= 512  # what is spilled must not outweigh a second program


def test_a_broken_kernel_is_found():
    chosen = PROFILES["philox"]
    with pytest.raises(Exception, match="rows"):
        compile_for(
            chosen.kernel, {"out": "*i64"}, {"ROWS": 512, "keys": 1, "first": 1, "updates": 1, "plane": 1, "rows": ()}
        )


@pytest.mark.parametrize("name", list(PROFILES))
def test_no_argument_hides_a_variable_of_the_launcher(name):
    """Triton writes a launcher for each kernel whose own variables would replace arguments of these names."""
    assert not {"params", "specialization", "options"} & set(PROFILES[name].kernel.arg_names)


def test_a_wide_first_layer_spills_no_more_than_a_narrow_one():
    conditioned = dict(F=37, a=96, b=136, c=96, D=2, A=128, W=160, C=128)
    chosen = PROFILES["sweep"]
    how = dict(options=chosen.options, multiples=chosen.multiples)
    made = compile_for(chosen.kernel, chosen.signature, {**chosen.constants, **conditioned}, **how)
    assert made.stack <= 512 and made.programs >= 2
