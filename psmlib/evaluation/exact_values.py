"""The cross-entropies that the chapters quote, the command that computes them for the file, and checks of closed forms.

``python -m psmlib.evaluation.exact_values`` writes ``data/exact_values.json``, in a quarter of an hour on one core.
Each value is found again by the fingerprint of its mixture and the signal and noise at t0; names and times stand beside
them for readers.
"""

from __future__ import annotations

import json
from pathlib import Path

from psmlib.data.toys import TOYS, Mixture, load_toy, two_gaussians
from psmlib.exact.cross_entropy import compute, fingerprint, with_digest
from psmlib.machine import paths
from psmlib.machine.files import write_atomic
from psmlib.process import EDM, VP, OTFlow, Process


def standard() -> list[tuple[Mixture, Process, float]]:
    """Mixture, process and t0 of each value; no noise, t0 = 0, is for entropies.

    Example:
        >>> mixture, process, t0 = standard()[0]
        >>> mixture.name, process.sigma(t0).item()
        ('line', 0.0)
    """
    no_noise, psm = EDM(), VP(0.0, 10.0)
    protocols = [(no_noise, 0.0), (psm, 1e-3), (OTFlow(), 1e-3), (psm, 1e-4), (VP(0.0, 12.0), 0.01)]
    toys = [load_toy(name) for name in TOYS]
    return [(two_gaussians(), no_noise, 0.0)] + [(toy, *protocol) for toy in toys for protocol in protocols]


def row(mixture: Mixture, process: Process, t0: float) -> dict:
    """One value of the file, computed anew."""
    value, error = compute(mixture, process, t0)
    alpha, sigma = float(process.alpha(t0)), float(process.sigma(t0))
    protocol = "entropy" if sigma == 0 else f"{process}, t0 = {t0:g}"
    where = dict(name=mixture.name, protocol=protocol, mixture=fingerprint(mixture, alpha), alpha=alpha, sigma=sigma)
    return where | dict(value=value, error=float(f"{error:.1e}"))


def main() -> None:
    """Computes all values and writes the file."""
    rows = []
    for each in standard():
        rows.append(row(*each))
        print(json.dumps(rows[-1]), flush=True)
    print("wrote", write(rows))


def write(rows: list[dict]) -> Path:
    """Writes the file."""
    made = dict(made_by="python -m psmlib.evaluation.exact_values", unit="nats", **with_digest(rows))
    return write_atomic(paths.EXACT_VALUES, json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
