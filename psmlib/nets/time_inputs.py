"""Which scalar a network is told for a time."""

from __future__ import annotations

from torch import Tensor

from psmlib.process import Process, as_time

CLOCKS = ("log_snr", "t", "integral")


def embedded_time(clock: str, t: float | Tensor, process: Process) -> Tensor:
    r"""The scalar that a network is told for the time t. Shape: that of t.

    ``"log_snr"`` is :math:`-\log(\alpha^2/\sigma^2)`, held within 40 of 0: noise levels that differ by a factor differ
    by an amount, whatever the process. ``"integral"`` is :math:`B(t)=\int_0^t\beta`; for :math:`\beta = 10 t` that is
    the :math:`c t^2` which Parallel Score Matching's image scripts feed. ``"t"`` is what its paper says.

    Args:
        clock: One of "log_snr", "t", "integral".
        t: Times. Shape: () or (n,).
        process: The Gaussian path.

    Raises:
        ValueError: for an unknown clock, or "integral" where the process has no beta.

    Example:
        >>> from psmlib.process import VP
        >>> float(embedded_time("integral", 0.5, VP(0., 10.)))
        1.25
    """
    t = as_time(t)
    if clock == "t":
        return t
    if clock == "log_snr":
        return -process.log_snr(t).clamp(-40, 40)
    if clock == "integral":
        if not hasattr(process, "integral"):
            raise ValueError(f"{process!r} has no integral of beta to embed: use clock='log_snr' or clock='t'")
        return process.integral(t)
    raise ValueError(f"unknown clock {clock!r}: use one of {', '.join(CLOCKS)}")
