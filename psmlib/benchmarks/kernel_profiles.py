"""Compile-time signatures of the Triton kernels at the papers' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psmlib.benchmarks.kernel_resources import Resources, compile_for
from psmlib.kernels import fused_updates as fused
from psmlib.kernels import mlp_flow as flow
from psmlib.kernels import philox
from psmlib.kernels import softmax_step as softmax
from psmlib.kernels.tf32 import tile_side

_PAPER = dict(F=4, a=100, b=150, c=100, A=tile_side(100), C=tile_side(100))
_WHOLE_STRIPS = fused.blocks((4, 100, 150, 100, 2))[1]


@dataclass(frozen=True)
class Profile:
    """One kernel with its signature and compile options.

    Attributes:
        kernel: The function.
        signature: Types of the arguments that are given at run time.
        constants: Values of the ``constexpr`` arguments.
        options: Options of the launch.
        does: Its purpose, in a few words.
        multiples: Names of integers that are multiples of 16 at the papers' sizes.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    does: str
    multiples: tuple[str, ...] = ()


def _types(pointers: str, integers: str, **others: str) -> dict[str, str]:
    """A signature: names of float32 pointers, names of integers, and the types of other arguments."""
    return dict.fromkeys(pointers.split(), "*fp32") | dict.fromkeys(integers.split(), "i32") | others


PROFILES: dict[str, Profile] = {}
"""By name; empty where Triton is not installed."""

if fused.triton is not None:
    PROFILES = {
        "sweep": Profile(
            fused.sweep, _types("flat h target copies inputs deltas losses", "stride batch padded", factor="fp32"),
            _PAPER | dict(D=2, W=_WHOLE_STRIPS, STRIP=fused.STRIP, ROWS=fused.ROWS, PRECISION="tf32"), fused.SWEEP,
            "training: forward and back through one tile of rows", ("batch", "padded"),
        ),
        "update": Profile(
            fused.update,
            _types("flat mean square average grad copies inputs deltas rates", "stride padded wide_in wide_out "
                   "copies_stride moment_stride average_stride", places="*i32", share="fp32"),
            dict(ADAM=True, AVERAGE=False, R=fused.TILE[0], C=fused.TILE[1], DEPTH=fused.DEPTH, BETA1=fused.BETA1,
                 BETA2=fused.BETA2, EPS=fused.EPS, PRECISION="tf32"), fused.UPDATE,
            "training: a tile of a weight gradient, and Adam's step", ("padded", "copies_stride"),
        ),
        "flow": Profile(
            flow.flow, _types("flat x end change table", "stride n steps", blocks="*i32"),
            _PAPER | dict(STRIP=flow.STRIP, ROWS=flow.ROWS, COLUMNS=flow.COLUMNS, STAGES=4, PRECISION="tf32x3"),
            flow.FLOW, "likelihood: field, divergence and all RK4 steps",
        ),
        "philox": Profile(
            philox.words_kernel, _types("", "first updates rows", out="*i64", keys="*i64", plane="i64"),
            dict(ROWS=philox.ROWS), {}, "random words",
        ),
        "softmax_step": Profile(
            softmax._kernel, _types("D low total energy rate scale", "stride n", best="*i64"),
            dict(ENERGY=True, COLUMNS=softmax.COLUMNS), {}, "optimal denoiser: a row of the online softmax",
        ),
    }  # fmt: skip


def profile(name: str) -> Resources:
    """Resources of a kernel on an H100 or H200; compiling takes some seconds the first time.

    Args:
        name: One of :data:`PROFILES`.

    Raises:
        ValueError: for an unknown name, or where Triton is not installed.
    """
    if name not in PROFILES:
        known = ", ".join(PROFILES) or "none, because Triton is not installed"
        raise ValueError(f"no kernel {name!r}: there are {known}")
    p = PROFILES[name]
    return compile_for(p.kernel, p.signature, p.constants, options=p.options, multiples=p.multiples)
