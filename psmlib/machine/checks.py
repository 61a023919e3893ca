"""Checks of arguments that many functions share: one of several names, and positive whole numbers."""

from collections.abc import Iterable


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
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
