"""Time inputs: the scalar function of t that a network receives, such as log SNR."""

from torch import Tensor

from psmlib.machine.checks import check_choice
from psmlib.process import Process, as_time

TIME_INPUTS = ("log_snr", "t", "integral")


def embedded_time(time_input: str, t: float | Tensor, process: Process) -> Tensor:
    r"""The scalar that a network receives in place of the time t. Shape: that of t.

    ``"log_snr"`` is :math:`-\log(\alpha^2/\sigma^2)`, clamped to [-40, 40]: equal ratios of noise levels are equal
    differences of the input, for any process. ``"integral"`` is :math:`B(t)=\int_0^t\beta`; for :math:`\beta = 10 t`
    it is the :math:`c t^2` of Parallel Score Matching's image scripts. ``"t"`` is the input named in its paper.

    Args:
        time_input: One of "log_snr", "t", "integral".
        t: Times. Shape: () or (n,).
        process: The Gaussian path.

    Raises:
        ValueError: for an unknown time input, or "integral" where the process has no beta.

    Example:
        >>> from psmlib.process import VP
        >>> float(embedded_time("integral", 0.5, VP(0., 10.)))
        1.25
    """
    check_choice("time_input", time_input, TIME_INPUTS)
    t = as_time(t)
    if time_input == "log_snr":
        return -process.log_snr(t).clamp(-40, 40)
    if time_input == "integral" and not hasattr(process, "integral"):
        raise ValueError(f"{process!r} has no integral of beta: use time_input='log_snr' or time_input='t'")
    return process.integral(t) if time_input == "integral" else t
