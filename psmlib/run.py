"""The command line of the book: run notebooks at a profile, build the book, report failures.

In a terminal::

    python -m psmlib.run book --profile quick
    python -m psmlib.run notebook psm_toys --profile quick -p dataset TY
    python -m psmlib.run check-parameters psm_toys -p seeds 3
    python -m psmlib.run batch --profile gpu --minutes 9
    python -m psmlib.run night
    python -m psmlib.run lease --minutes 9
    python -m psmlib.run pages
"""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from psmlib.book.notebooks import Outcome, OutOfTime, Run, execute, run_within, staleness_key, toc_notebooks
from psmlib.book.parameters import PROFILES, ParameterError, resolve, template_of
from psmlib.machine import paths
from psmlib.machine.files import FileError


class Progress:
    """One line per notebook, with a running clock if the output is a terminal."""

    def __init__(self, label: str, last: float | None) -> None:
        self.label = label
        self.last = f" (last time {clock(last)})" if last else ""
        self.live = sys.stdout.isatty()
        if not self.live:
            print(f"{label} ...{self.last}", flush=True)

    def tick(self, seconds: float) -> None:
        """Show the time since the start, in a terminal only."""
        if self.live:
            print(f"\r\x1b[K{self.label} ... {clock(seconds)}{self.last}", end="", flush=True)

    def end(self, text: str) -> None:
        """End the line with the outcome."""
        print(("\r\x1b[K" if self.live else "") + f"{self.label} {text}", flush=True)


def clock(seconds: float) -> str:
    """Write a time as hours, minutes and seconds.

    Example:
        >>> clock(5), clock(75), clock(3675)
        ('0:05', '1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def run_notebook(
    name: str, values: dict[str, Any], *, force: bool, label: str = "",
    tick: Callable[[float], None] = lambda seconds: None,
) -> Outcome:  # fmt: skip
    """Run one notebook into the book, unless its last run is up to date.

    Args:
        name: The notebook's name without its suffix.
        values: Every parameter with its value.
        force: Run even if nothing has changed.
        label: What its progress line starts with, such as `"[1/3] "`.
        tick: Called a few times a second with the seconds since the start; an exception from it ends the run.

    Returns:
        The outcome; for an unchanged notebook it has the time of the last run.
    """
    template, output = template_of(name), paths.EXECUTED / f"{name}.ipynb"
    key, record = staleness_key(template, values), Run.load(name)
    progress = Progress(f"{label}{name}", record.seconds if record else None)
    if record and not force and record.fresh(name, key):
        progress.end(f"unchanged: its run of {clock(record.seconds)} still stands")
        return Outcome(record.seconds)
    Run.path(name).unlink(missing_ok=True)  # from here on the files of the old run are overwritten

    def both(seconds: float) -> None:
        progress.tick(seconds)
        tick(seconds)

    try:
        outcome = execute(template, output, values, both)
    except OutOfTime:
        progress.end("cut off by the time limit")
        raise
    if outcome.reason:
        progress.end(f"FAILED after {clock(outcome.seconds)}: {outcome.reason}")
    else:
        Run.of(name, key, outcome).save(name)
        progress.end(f"done in {clock(outcome.seconds)}")
    return outcome


def with_device(profile: str, given: dict[str, str]) -> dict[str, str]:
    """Add the device that a profile needs, unless one is given.

    Args:
        profile: The budget.
        given: Parameters from the command line.

    Returns:
        The parameters with `profile` and, for the budgets of an accelerator, `device`.

    Raises:
        ParameterError: If such a budget is chosen where there is no CUDA device.
    """
    profile = given.get("profile", profile)
    if profile in ("gpu", "paper") and "device" not in given:
        import torch  # takes two seconds, and other profiles do not need it

        if not torch.cuda.is_available():
            raise ParameterError(
                f"Profile {profile} wants a CUDA device and torch sees none: take --profile quick, "
                "or add -p device cpu to run the large budget on the CPU."
            )
        given = given | {"device": "cuda"}
    return given | {"profile": profile}


def _resolved(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the checked parameters of each notebook; any error is raised before a notebook runs."""
    given = with_device(options.profile, dict(options.p))
    return {name: resolve(template_of(name), given) for name in names}


def notebook(options: argparse.Namespace) -> int:
    """Run one notebook."""
    (values,) = _resolved([options.name], options).values()
    return _report({options.name: run_notebook(options.name, values, force=options.force)})


def check_parameters(options: argparse.Namespace) -> int:
    """Check parameters against a notebook and print what it would run with."""
    for name, value in resolve(template_of(options.name), dict(options.p)).items():
        print(f"{name} = {value!r}")
    return 0


def pages(options: argparse.Namespace) -> int:
    """Write the generated pages only."""
    from psmlib.book.pages import write

    print("\n".join(f"wrote {_shown(paths.GENERATED / name)}" for name in write()))
    return 0


def book(options: argparse.Namespace) -> int:
    """Run every notebook of the book and build it; a failed notebook stops the build, not the others."""
    from psmlib.book.build import build, missing, prepare
    from psmlib.book.pages import write

    parameters = _resolved(toc_notebooks(), options)
    prepare()
    outcomes = {}
    for number, (name, values) in enumerate(parameters.items(), 1):
        label = f"[{number}/{len(parameters)}] "
        outcomes[name] = run_notebook(name, values, force=options.force, label=label)
    if status := _report(outcomes):
        return status
    write()
    progress = Progress("building the book", None)
    if complaints := build() or "\n".join(missing()):
        progress.end(f"FAILED:\n{complaints}")
        print(f"The book is not complete: mend the above (all of the log: {_shown(paths.BUILD / 'book.log')}).")
        return 1
    progress.end("done: every page, table and figure is there")
    for name, outcome in outcomes.items():
        print(f"  {name:<32}{clock(outcome.seconds):>8}")
    print(f"The book ({options.profile}): {paths.HTML / 'index.html'}")
    return 0


def batch(options: argparse.Namespace) -> int:
    """Run notebooks until all are done or the time is up; run it again to go on."""
    parameters = _resolved(options.names or toc_notebooks(), options)
    jobs = {name: partial(run_notebook, name, values, force=options.force) for name, values in parameters.items()}
    outcomes, left = run_within(jobs, 60 * options.minutes)
    status = _report(outcomes, "the others were run")
    if left:
        print(f"The time is up; left to do: {', '.join(left)}. Give the same command again to go on.")
        return 3
    return status


def night(options: argparse.Namespace) -> int:
    """Run what is left of profile night at low priority; stop and start it at will."""
    from psmlib.book.night import run

    if hasattr(os, "nice"):  # not step_back, which would last as long as this terminal
        os.nice(19 - os.nice(0))
    status = run(options.names, options.slice, time.time() + 60 * options.minutes, partial(print, flush=True))
    print({0: "Nothing is left.", 3: "The time is up; give the same command again to go on."}.get(status, ""))
    return status


def lease(options: argparse.Namespace) -> int:
    """Do what needs an accelerator on one that is lent for minutes; run it again to go on."""
    from psmlib.book.lease import run, steps

    device = dict(options.p).get("device", with_device("gpu", {})["device"] if options.profile == "gpu" else "cpu")
    undone = run(steps(options.profile, device), options.minutes, partial(print, flush=True))
    print(f"Left to do: {', '.join(undone)}." if undone else "Everything is done.")
    print(f"Keep {_shown(paths.RESULTS)} and {_shown(paths.DATA / 'bench')}.")
    return 3 if undone else 0


def _report(outcomes: dict[str, Outcome], then: str = "the book was not built") -> int:
    """Name the failed notebooks and their partial outputs in one sentence; return the exit status."""
    failed = [name for name, outcome in outcomes.items() if outcome.reason]
    if not failed:
        return 0
    kept = ", ".join(f"{name} (partial output: {_shown(paths.EXECUTED / name)}.ipynb)" for name in failed)
    print(f"{len(failed)} of {len(outcomes)} notebooks failed and {then}: {kept}.", flush=True)
    return 1


def _shown(path: os.PathLike[str]) -> str:
    """Return a path relative to the working directory, where it lies below it."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown


def minutes(text: str) -> float:
    """A positive time limit from the command line."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time: give a positive number of minutes")
    return value


def _stop(number: int, frame: Any) -> None:
    """Ends the program as Ctrl-C does, so that the notebook that it runs ends with it."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Its words; by default those of the process.

    Returns:
        The exit status: 0; 1 if anything failed; 2 if nothing was started because the input is wrong; 3 if the time
        of a batch was up before all was done.
    """
    parser = argparse.ArgumentParser(prog="python -m psmlib.run", description="Run the notebooks, build the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (book, notebook, check_parameters, batch, night, lease, pages):
        command = commands.add_parser(function.__name__.replace("_", "-"), help=function.__doc__)
        command.set_defaults(function=function)
        if function in (notebook, check_parameters):
            command.add_argument("name", help="a notebook's name without .ipynb")
        if function in (book, notebook, batch):
            command.add_argument("--profile", choices=PROFILES, default="quick", help="the budget")
            command.add_argument("--force", action="store_true", help="run even if nothing has changed")
        if function is batch:
            command.add_argument("names", nargs="*", help="notebooks, in order; by default all of the book")
            command.add_argument("--minutes", type=minutes, default=9.0, help="the time limit (default: 9)")
        if function is lease:
            command.add_argument("--profile", choices=("gpu", "smoke"), default="gpu", help="smoke tries the path")
            command.add_argument("--minutes", type=minutes, default=9.0, help="the time limit (default: 9)")
        if function is night:
            command.add_argument("names", nargs="*", help="notebooks; by default all of the book")
            command.add_argument("--slice", type=minutes, default=60.0, help="minutes between records (default: 60)")
            command.add_argument("--minutes", type=minutes, default=1e4, help="the time limit (default: a week)")
        if function not in (pages, night):
            pair = ("NAME", "VALUE")
            command.add_argument("-p", nargs=2, action="append", default=[], metavar=pair, help="a parameter")
    options = parser.parse_args(arguments)
    try:
        signal.signal(signal.SIGTERM, _stop)
        paths.check_output()
        return options.function(options)
    except (ParameterError, FileError, OSError, paths.OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; what had been run is kept.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
