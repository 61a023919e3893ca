"""Available memory, and the check before a run that may not fit."""

import os

import pytest

from psmlib.machine import memory


def test_the_free_memory_is_a_plausible_number_of_bytes():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**24 < memory.available("cpu") <= total


def test_the_limit_is_nine_tenths(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "available", lambda device: asked.append(device) or 1000 * 2**30)
    memory.check_memory(900 * 2**30, "cpu", "a run")
    with pytest.raises(MemoryError) as caught:
        memory.check_memory(901 * 2**30, "cpu", "training 3 networks")
    text = str(caught.value)
    assert text.startswith("training 3 networks needs about 901.0 GiB but cpu has 1000.0 GiB free: use a smaller")
    assert "\n" not in text and ". " not in text and asked == ["cpu", "cpu"]
