"""A bank of K multilayer perceptrons, held as one stack of parameters, and its reading as a Score."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
from torch import Tensor

from psmlib.bank.block_score import BlockScore
from psmlib.bank.stack import NetworkStack
from psmlib.kernels.bank_mlp import BankMLP, bank_mlp_ref, layers
from psmlib.kernels.column_mlp import ColumnMLP, network_for
from psmlib.kernels.mlp_flow import COLUMNS, fits, mlp_flow
from psmlib.kernels.products import one_thread
from psmlib.nets.mlp import ARCHITECTURES, Plain
from psmlib.partition import Partition
from psmlib.process import Process, expand
from psmlib.solvers import TABLEAUS

_ROWS = 1024
"""Points per call when a field is evaluated on a CPU: enough to hide the cost of a call, few enough for the cache."""


class Bank(NetworkStack):
    """K multilayer perceptrons of one architecture.

    Args:
        arch: The architecture, such as ``Plain()`` or ``Conditioned()``.
        size: K.
        native: What the output is read as: "eps" or "velocity".
        seed: Network k starts from the stream (seed, k), whatever K is.
        dtype: Of the parameters.
        device: Of the parameters.
        only: Make only these networks, a part of the bank; :meth:`joined` puts the parts together.

    Attributes:
        params: Parameters, one row per network. Shape: (K, P), fewer rows in a part.

    Raises:
        ValueError: as :class:`~psmlib.bank.stack.NetworkStack` does.
        MemoryError: likewise.

    Example:
        >>> bank = Bank(Plain(), 4, seed=0)
        >>> bank.params.shape
        torch.Size([4, 30952])
    """

    architectures = ARCHITECTURES

    def __init__(
        self, arch: Plain, size: int, *, native: str = "eps", seed: int = 0,
        dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", only: range | None = None,
    ):  # fmt: skip
        options = {"dtype": dtype, "device": device}
        super().__init__(type(arch), asdict(arch), size, native=native, seed=seed, only=only, **options)

    def _build(self, kind: type[Plain], settings: dict) -> None:
        super()._build(kind, settings)
        self.arch = kind(**settings)
        self.widths, self.parameter_count = self.arch.widths, self.arch.parameters
        self.row_sizes = {"params": self.arch.parameters}

    def _initialise(self, row: int, generator: torch.Generator) -> None:
        # drawn in float64 on the CPU: the same network in any dtype, on any device
        params = torch.empty(self.arch.parameters, dtype=torch.float64)
        for weight, bias in layers(params, self.widths):
            bound = 1 / math.sqrt(len(weight))  # torch.nn.Linear's own default
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        self.params[row] = params

    @property
    def description(self) -> str:
        return repr(self.arch)

    def score(self, partition: Partition, process: Process) -> BankScore:
        """The Score of this bank, network k answering for block k."""
        return BankScore(self, partition, process)


class BankScore(BlockScore):
    """A trained bank joined with its partition and process; see :class:`psmlib.bank.block_score.BlockScore`.

    Example:
        >>> from psmlib.process import VP
        >>> score = Bank(Plain(), 2).score(Partition([0, .1, 1]), VP(0., 10.))
        >>> score.eps(torch.zeros(3, 2), torch.tensor([.05, .5, 1.])).shape
        torch.Size([3, 2])
    """

    def __init__(self, bank: Bank, partition: Partition, process: Process, block: int | None = None):
        super().__init__(bank, partition, process, block)
        self._work: dict[tuple, BankMLP | ColumnMLP] = {}  # shared by all blocks: 200 sets would fill the memory
        self._flat: dict[int, tuple[Tensor, Tensor]] = {}

    def _rows(self, x: Tensor) -> int:
        return _ROWS if x.device.type == "cpu" else 1 << 16

    def _each_block(self, f, x: Tensor, t: float | Tensor) -> tuple[Tensor, ...]:
        with one_thread():
            return super()._each_block(f, x, t)

    def _run(self, k: int, x: Tensor, t: Tensor, directions: list[Tensor]) -> tuple[Tensor, ...]:
        """Network k: value (n, d) and derivatives along each direction, (n, d) each."""
        arch, s, x32 = self.bank.arch, self._time(t, k), x.to(self.bank.params.dtype)
        h, flat = arch.features(x32, s, self.process)[None], self._row(k)
        work = self._buffers(h, 1 + len(directions))
        if directions:
            tangents = torch.stack([arch.tangent(x32, s, self.process, u.to(x32)) for u in directions])[None]
            value, slopes = work.jacobian(flat, h, tangents)
            outs = [value[0], *slopes[0]]
        else:
            outs = [work.forward(flat, h)[0]]
        skip = arch.skip(s, self.process, self.native)
        if skip is None:
            return tuple(o.to(x.dtype, copy=True) for o in outs)
        skip = expand(skip, x)
        return tuple(o.to(x.dtype) + skip * y for o, y in zip(outs, [x, *directions], strict=True))

    def _row(self, k: int) -> Tensor:
        """The parameters of network k, (1, P), as one object, for the work space keeps views of it."""
        if k not in self._flat or self._flat[k][0] is not self.bank.params:
            self._flat[k] = self.bank.params, self.bank.params[k : k + 1]
        return self._flat[k][1]

    def _buffers(self, h: Tensor, rows: int) -> BankMLP | ColumnMLP:
        """Work space with ``rows`` rows per point, reused from call to call."""
        key = (rows, h.shape[1])
        if key not in self._work:
            if len(self._work) > 4:
                self._work.clear()
            self._work[key] = network_for(self.bank.arch.widths, h.new_empty(1, rows * h.shape[1], h.shape[2]))
        return self._work[key]

    def _trace(self, k: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Network k: value (n, d) and trace of its Jacobian (n,)."""
        arch, s, x32 = self.bank.arch, self._time(t, k), x.to(self.bank.params.dtype)
        h = arch.features(x32, s, self.process)[None]
        basis = torch.eye(x.shape[1], dtype=x32.dtype, device=x.device)
        tangents = arch.tangent(basis, s.flatten()[:1], self.process, basis)[None]  # the same at every point
        value, trace = (o[0].to(x.dtype) for o in self._buffers(h, 1).trace(self._row(k), h, tangents))
        skip = arch.skip(s, self.process, self.native)
        if skip is None:
            return value.clone(), trace
        return value + expand(skip, x) * x, trace + x.shape[1] * expand(skip, trace)

    def predict_trace(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self._each_block(self._trace, x, t) if self.bank.arch.shared_tangents else super().predict_trace(x, t)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._each_block(lambda k, y, s: self._run(k, y, s, []), x, t)[0]

    def predict_jacobian(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        def f(k, y, s):
            basis = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
            value, *columns = self._run(k, y, s, [b.expand_as(y) for b in basis])
            return value, torch.stack(columns, -1)

        return self._each_block(f, x, t)

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        d = x.shape[1]
        return self._each_block(lambda k, y, s: self._run(k, y[:, :d], s, [y[:, d:]]), torch.cat([x, u], 1), t)

    def differentiable(self, x: Tensor, t: Tensor) -> Tensor:
        if self.block is None:
            raise ValueError("only one network of a bank can be differentiated at a time: choose it by on_block(t)")
        arch, s = self.bank.arch, self._time(t, self.block)
        h = arch.features(x, s, self.process)[None]
        value = bank_mlp_ref(self.bank.params[self.block][None].to(x.dtype), arch.widths, h)[0]
        skip = arch.skip(s, self.process, self.native)
        return value if skip is None else value + expand(skip, x) * x

    def whole_solve(self, x: Tensor, times: Tensor, method: str, divergence: str) -> tuple[Tensor, Tensor, int] | None:
        """All steps in one kernel, for plain networks in the plane on an accelerator, with the exact divergence."""
        arch = self.bank.arch
        supported = method in ("euler", "rk4") and divergence == "exact" and self.block is None and type(arch) is Plain
        if x.device.type == "cpu" or not supported or not fits(arch.widths, x.dtype):
            return None
        blocks, table = self.steps_table(times)
        end, change = mlp_flow(self.bank.params, arch.widths, x, blocks, table.to(x), method)
        return end, change, len(table) * len(TABLEAUS[method].c)

    def steps_table(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """A grid of times as :func:`~psmlib.kernels.mlp_flow.mlp_flow` takes it.

        Args:
            times: Shape: (steps + 1,).

        Returns:
            Which network answers in each step, int32, (steps,), and the table of the steps, float64, (steps, 10).
        """
        times = times.double().cpu()
        start, end = times[:-1], times[1:]
        middle = (start + end) / 2
        blocks, parts = self.partition.block_of(middle), [end - start]
        for t in (start, middle, end):
            s = torch.tensor(self.partition.times, dtype=torch.float64)[blocks] if self.partition.discrete else t
            a, b = (0.0, 1.0) if self.native == "velocity" else self.process.conversion(s, self.native, "velocity")
            parts += [s, torch.as_tensor(a, dtype=torch.float64).expand_as(s), torch.as_tensor(b).expand_as(s)]
        return blocks.int(), torch.stack(parts, 1).reshape(-1, COLUMNS)
