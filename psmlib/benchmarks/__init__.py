"""Benchmarks, one file each; `python -m psmlib.bench` runs them.

A benchmark module has ``SCALES``, settings by name, and ``run(settings)``, which yields
:class:`~psmlib.benchmarks.timing.Row` objects as they are measured.
"""
