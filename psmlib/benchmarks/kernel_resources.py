"""Registers, spills and shared memory of a compiled Triton kernel, for a GPU that need not be present.

Triton contains its whole tool chain, so a kernel can be compiled for an H200 on a laptop. This shows without a GPU
whether registers were spilled and whether products became tensor-core instructions.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from psmlib.kernels.dispatch import triton


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel.

    Attributes:
        registers: Per thread.
        stack: Bytes of local memory per thread; not 0 when registers were spilled.
        shared: Bytes of shared memory per program.
        warps: Per program; a warp is 32 threads.
        tensor_core: Tensor-core instructions in the program text.
        fused_add: Scalar multiply-add instructions in the program text.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    tensor_core: int
    fused_add: int

    @property
    def programs(self) -> int:
        """How many programs fit one multiprocessor of an H100 or H200: 65,536 registers, 227 KiB, 64 warps, 32 blocks.

        Example:
            >>> Resources(registers=128, stack=0, shared=100_000, warps=8, tensor_core=1, fused_add=1).programs
            2
        """
        by_registers = 65_536 // (-(-self.registers // 8) * 8 * 32 * self.warps)
        by_memory = 232_448 // (self.shared + 1024)  # a kilobyte of each block's is the system's
        return min(by_registers, by_memory, 64 // self.warps, 32)


def compile_for(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], *,
    options: Mapping[str, Any] = {}, capability: int = 90, multiples: Iterable[str] = (),
) -> Resources:  # fmt: skip
    """Compiles a kernel for a compute capability and reads its resources.

    Args:
        kernel: A function made by ``triton.jit``.
        signature: Types of the arguments that are given at run time, as Triton writes them: "*fp32", "i32", "fp32".
            Pointers count as aligned to 16 bytes.
        constants: Values of the ``constexpr`` arguments.
        options: "num_warps", "num_stages" and other options of a launch.
        capability: Ten times the target's compute capability: 90 is an H100 or H200.
        multiples: Names of integers that are multiples of 16, which Triton detects at a launch.

    Raises:
        ImportError: when Triton is not installed.
        RuntimeError: when Triton was imported with TRITON_INTERPRET=1, which replaces its compiler.
    """
    if triton is None:
        raise ImportError("compiling a kernel needs triton: install it")
    if not hasattr(kernel, "src"):
        raise RuntimeError("Triton interprets its kernels in this process: unset TRITON_INTERPRET and start again")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    places = {name: i for i, name in enumerate(kernel.arg_names)}
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    whole = {*multiples, *(name for name, kind in signature.items() if kind.startswith("*"))}
    aligned = {(places[n],): [["tt.divisibility", 16]] for n in whole}
    source = ASTSource(kernel, types, {(places[n],): value for n, value in constants.items()}, aligned)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION", category=UserWarning)
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, **options})
    usage, text = _read(made.asm["cubin"])
    return Resources(
        registers=int(re.search(r"REG:(\d+)", usage)[1]), stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared=made.metadata.shared, warps=made.metadata.num_warps, tensor_core=len(re.findall(r"\b[HQ]G?MMA\b", text)),
        fused_add=len(re.findall(r"\bFFMA2?\b", text)),
    )  # fmt: skip


def _read(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code of a compiled kernel, read by the tools that come with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        read = partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = read([tools / "cuobjdump", "--dump-resource-usage", file.name]).stdout
        return usage, read([tools / "nvdisasm", file.name]).stdout
