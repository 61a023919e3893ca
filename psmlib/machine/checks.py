"""Checks of arguments that many functions share: choices, whole numbers, NumPy's numbers, and points."""

from collections.abc import Iterable

from torch import Tensor


def check_choice(what: str, value, known: Iterable, of: str = "") -> None:
    """Raises ValueError unless the value is one of the known ones.

    Args:
        what: What the argument is, such as "method".
        value: The argument.
        known: The values that are allowed.
        of: What it belongs to, for the message.

    Example:
        >>> check_choice("method", "rk5", ("euler", "rk4"), of="the solver")
        Traceback (most recent call last):
        ...
        ValueError: unknown method 'rk5' of the solver: use one of euler, rk4
    """
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}{of and f' of {of}'}: use one of {', '.join(map(str, known))}")


def check_count(name: str, value) -> None:
    """Raises ValueError unless the value is a positive whole number.

    Example:
        >>> check_count("updates", 0)
        Traceback (most recent call last):
        ...
        ValueError: updates must be a positive whole number, got 0
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def plain(value):
    """A Python number instead of one of NumPy or a tensor of one element without axes; anything else as it is.

    Numbers of other kinds overflow where Python's do not, and neither JSON nor the text of a setting knows them.

    Example:
        >>> import numpy as np
        >>> plain(np.float32(.5)), plain(np.int64(3)), plain("cpu")
        (0.5, 3, 'cpu')
    """
    return value.item() if getattr(value, "shape", None) == () else value


def check_points(x: Tensor) -> None:
    """Raises ValueError unless all numbers of all points are finite, naming the first point that is not.

    Example:
        >>> import torch
        >>> check_points(torch.tensor([[0.], [torch.nan]]))
        Traceback (most recent call last):
        ...
        ValueError: point 1 of 2 is not finite (nan): drop it, or look at what made it
    """
    wrong = ~floating(x).isfinite()
    if bool(wrong.any()):
        at = int(wrong.flatten(1).any(1).nonzero()[0])
        found = float(x[at][wrong[at]].flatten()[0])
        raise ValueError(f"point {at} of {len(x)} is not finite ({found:g}): drop it, or look at what made it")


def floating(x: Tensor) -> Tensor:
    """Points or images with whole numbers as floats, others as they are: answers are given in the dtype of the points.

    Raises:
        ValueError: for complex numbers, or what is no tensor.

    Example:
        >>> import torch
        >>> floating(torch.tensor([[0, 1]])).dtype, floating(torch.zeros(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    if not isinstance(x, Tensor) or x.is_complex():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"points must be a tensor of real numbers, got {what}: make one with torch.tensor")
    return x if x.is_floating_point() else x.float()
