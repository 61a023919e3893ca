"""Benchmarks, one file each, run by `python -m psmlib.bench`; and the flow that the chapter on costs compares with.

A benchmark module has ``SCALES``, settings by name, and ``run(settings)``, which yields
:class:`~psmlib.benchmarks.timing.Row` objects as they are measured.
"""
