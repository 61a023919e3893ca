"""Refusing a run that would not fit, before any work is lost."""

from __future__ import annotations

import os

import torch


def available(device: str | torch.device) -> int:
    """Free bytes on a device; for the CPU, what the system says is available.

    Example:
        >>> available("cpu") > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: float, device: str | torch.device, what: str) -> None:
    """Raises MemoryError when ``needed`` bytes are more than nine tenths of what is free.

    Args:
        needed: Predicted peak, bytes.
        device: Where.
        what: The run, for the message.
    """
    free = available(device)
    if needed > 0.9 * free:
        raise MemoryError(
            f"{what} needs about {needed / 2**30:.1f} GiB but {torch.device(device)} has {free / 2**30:.1f} GiB free: "
            f"use a smaller batch, fewer networks at a time, or another device"
        )
