"""The Triton kernels of this package as the papers' sizes call them, for the compiler to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psmlib.kernels import bank_updates_triton as bank
from psmlib.kernels import mlp_flow_triton as flow
from psmlib.kernels import philox_triton as philox
from psmlib.kernels import softmax_step_triton as softmax
from psmlib.kernels.resources import Resources, compile_for

_PAPER = dict(F=4, a=100, b=150, c=100, A=128, C=128)


@dataclass(frozen=True)
class Profile:
    """One kernel and what it is compiled with.

    Attributes:
        kernel: The function.
        pointers: Names of its float32 pointers.
        others: Types of the other run-time arguments.
        constants: Values of the rest.
        warps: Warps a program.
        stages: Depth of software pipelines, or None for Triton's own.
        does: What it does, in a few words.
    """

    kernel: Any
    pointers: str
    others: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int | None
    does: str
    signature: Mapping[str, str] = field(init=False)

    def __post_init__(self):
        types = dict.fromkeys(self.pointers.split(), "*fp32") | dict(self.others)
        object.__setattr__(self, "signature", types)


def _ints(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "i32")


PROFILES: dict[str, Profile] = {}
"""By name; empty where Triton is not installed."""

if bank.triton is not None:
    PROFILES = {
        "sweep": Profile(
            bank.sweep, "flat h target inputs deltas losses", _ints("stride batch") | {"factor": "fp32"},
            _PAPER | dict(D=2, STRIP=bank.STRIP, ROWS=bank.ROWS, PRECISION="tf32"), 8, 1,
            "training: forward and back through one tile of rows",
        ),
        "update": Profile(
            bank.update, "flat mean square average grad inputs deltas rates",
            _ints("stride batch wide_in wide_out moment_stride average_stride") | {"places": "*i32", "share": "fp32"},
            dict(ADAM=True, AVERAGE=False, R=bank.TILE[0], C=bank.TILE[1], DEPTH=bank.DEPTH, BETA1=bank.BETA1,
                 BETA2=bank.BETA2, EPS=bank.EPS, PRECISION="tf32"), 4, None,
            "training: a tile of a weight gradient, and Adam's step",
        ),
        "flow": Profile(
            flow.flow, "flat x end change table", _ints("stride n steps") | {"blocks": "*i32"},
            _PAPER | dict(STRIP=flow.STRIP, ROWS=flow.ROWS, COLUMNS=flow.COLUMNS, STAGES=4, PRECISION="tf32x3"), 8, 1,
            "likelihood: field, divergence and all RK4 steps",
        ),
        "philox": Profile(
            philox.words_kernel, "", {"out": "*i64", "keys": "*i64", "plane": "i64"} | _ints("first updates rows"),
            dict(ROWS=philox.ROWS), 4, None, "random words",
        ),
        "softmax_step": Profile(
            softmax._kernel, "D low total energy rate scale", _ints("stride n") | {"best": "*i64"},
            dict(ENERGY=True, COLUMNS=softmax.COLUMNS), 4, None, "optimal denoiser: a row of the online softmax",
        ),
    }  # fmt: skip


def profile(name: str) -> Resources:
    """What a kernel takes on an H100 or H200; takes some seconds the first time.

    Args:
        name: One of :data:`PROFILES`.

    Raises:
        ValueError: for an unknown name, or where Triton is not installed.
    """
    if name not in PROFILES:
        known = ", ".join(PROFILES) or "none, because Triton is not installed"
        raise ValueError(f"no kernel {name!r}: there are {known}")
    chosen = PROFILES[name]
    return compile_for(chosen.kernel, chosen.signature, chosen.constants, warps=chosen.warps, stages=chosen.stages)
