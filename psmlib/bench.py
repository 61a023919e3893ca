"""Benchmarks: `python -m psmlib.bench [names] [--scale smoke|quick|full] [--device cuda] [--no-write] [--list]`.

Each row is printed when it is measured and, at the end of its benchmark, added to `data/bench/<name>.csv` with the
date, the commit, the machine and the versions. Files are append-only, so that they record speed over time. Ratios are
taken within one run, from alternating measurements; rates of different machines or scales must not be compared.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import torch

from psmlib.benchmarks import bank, clustering, device, draws, likelihood, optimal_denoiser, steps, training, unets
from psmlib.benchmarks.records import append, check, path_of, record, stamp
from psmlib.benchmarks.timing import Row, number, one_thread

BENCHMARKS = {
    "device": device, "bank": bank, "draws": draws, "unets": unets, "training": training, "likelihood": likelihood,
    "steps": steps, "denoiser": optimal_denoiser, "clustering": clustering,
}  # fmt: skip
SCALE_NAMES = ("smoke", "quick", "full")

_TABLE = "  {:<22} {:<38} {:<29} {:<21} {}"


def line(row: Row) -> str:
    """A row as text, for the printed table.

    Example:
        >>> print(line(Row("TY", "ours", "rate", "1/s", 9, (90., 100., 110.), (1.9, 2., 2.1))))
          ours                   rate                                   100 [90, 110] 1/s             x 2 [1.9, 2.1]
    """
    q20, value, q80 = (number(v) for v in row.values)
    unit = "" if row.unit == "1" else f" {row.unit}"
    figure = (value or "-") + (f" [{q20}, {q80}]" if q20 else "") + unit
    r20, ratio, r80 = (number(r, 3) for r in row.ratios)
    ratio = f"x {ratio}" + (f" [{r20}, {r80}]" if r20 else "") if ratio else ""
    return _TABLE.format(row.method, row.measure, figure, ratio, row.note).rstrip()


def show(rows: Iterable[Row]) -> Iterator[Row]:
    """Prints each row below its case and yields it."""
    case = None
    for row in rows:
        if row.case != case:
            case = row.case
            print(f"{case}\n{_TABLE.format('method', 'measure', '50 % [20 %, 80 %]', 'to the baseline', '').rstrip()}")
        print(line(row), flush=True)
        yield row


def able(device: str) -> list[str]:
    """The benchmarks that can run on a device."""
    return [n for n, module in BENCHMARKS.items() if device == "cpu" or hasattr(module.SCALES["quick"], "device")]


def settings_of(name: str, scale: str, device: str):
    """The settings of a benchmark at a scale, on a device.

    Raises:
        ValueError: when the benchmark runs on processors only.
    """
    if name not in able(device):
        raise ValueError(f"{name} is measured on a CPU only: give --device to one of {', '.join(able(device))}")
    settings = BENCHMARKS[name].SCALES[scale]
    return settings if device == "cpu" else replace(settings, device=device)


def run(name: str, scale: str, write: bool = True, device: str = "cpu") -> list[Row]:
    """Runs one benchmark on one thread; rows measured before a failure are kept.

    Raises:
        ValueError: before anything is run, when its file has other columns than we write, or it cannot run on the
            device.
    """
    module, measured, settings = BENCHMARKS[name], [], settings_of(name, scale, device)
    if write:
        check(path_of(name))
    with one_thread():
        about = stamp(scale, device)
        try:
            for row in show(module.run(settings)):
                measured.append(row)
        finally:
            if write and measured:
                append(path_of(name), [record(name, row, about) for row in measured])
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    about = "Run the benchmarks on one CPU thread, or a GPU."
    parser = argparse.ArgumentParser(prog="python -m psmlib.bench", description=about)
    which = f"which: {', '.join(BENCHMARKS)} (default: all that run on the device)"
    parser.add_argument("names", nargs="*", help=which)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--scale", choices=SCALE_NAMES, default="quick", help="how much to run (default: quick)")
    parser.add_argument("--no-write", action="store_true", help="print only, add nothing to data/bench")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        print(f"unknown benchmark {unknown[0]!r}: use one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    if options.device != "cpu" and not torch.cuda.is_available():
        print(f"torch sees no CUDA device: leave out --device {options.device}", file=sys.stderr)
        return 2
    if options.list:
        for name, module in BENCHMARKS.items():
            print(f"{name:<11} {module.__doc__.splitlines()[0]}")
            print(f"{'':<11} {options.scale}: {module.SCALES[options.scale]}")
        return 0
    failed = False
    for name in dict.fromkeys(options.names or able(options.device)):
        began = perf_counter()
        print(f"== {name} ({options.scale}) ==")
        try:
            run(name, options.scale, write=not options.no_write, device=options.device)
        except (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed = True
        print(f"{name} took {perf_counter() - began:.0f} s.\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
