"""Matrix products on a processor: numpy's or torch's, whichever is faster there.

Torch's wheels multiply by MKL, numpy's by OpenBLAS. On an AMD core with AVX2 MKL makes 62 GFLOP/s at the shapes of the
book's networks, oneDNN (torch's other library, behind a private operator) 50 to 74, OpenBLAS 82 to 88; where numpy was
built without a fast library it is the other way round.

Sums are rounded in another order by the other library, so the choice is part of what makes a run repeatable. It is
made once in a process, and leaves numpy only for what is faster by far, :data:`MARGIN` times, so that a busy minute
does not change it: on one machine with one environment it is always the same, and a run that is stopped goes on bit
for bit. A snapshot that is resumed under the other choice, on another machine say, goes on just as well, but apart from
the uninterrupted run by rounding, which grows as any change of the last bit does. ``PSMLIB_PRODUCTS=numpy`` or
``torch`` in the environment decides instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from psmlib.machine.checks import check_choice

MARGIN = 1.5
SHAPE = (150, 100, 512)
"""Of the product that is timed: the largest of a training step."""
PRODUCTS: dict[str, tuple[Callable, Callable]] = {
    "numpy": (Tensor.numpy, np.matmul),
    "torch": (lambda tensor: tensor, torch.matmul),
}
"""Pairs of how a product sees a tensor, and ``multiply(a, b, out=c)`` of what it sees."""


@cache
def product() -> tuple[Callable, Callable]:
    """The pair of :data:`PRODUCTS` to be used in this process.

    Raises:
        ValueError: when the environment names another.

    Example:
        >>> see, multiply = product()
        >>> a, out = torch.eye(2), torch.empty(2, 2)
        >>> done = multiply(see(a), see(a), out=see(out))
        >>> torch.equal(out, a)
        True
    """
    if name := os.environ.get("PSMLIB_PRODUCTS"):
        check_choice("PSMLIB_PRODUCTS", name, PRODUCTS)
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with one_thread():
                name = "torch" if MARGIN * _seconds("torch") < _seconds("numpy") else "numpy"
        finally:
            torch.set_num_threads(threads)
    return PRODUCTS[name]


def _seconds(name: str, tries: int = 7) -> float:
    """The shortest time of some products of one kind."""
    rows, inner, columns = SHAPE
    see, multiply = PRODUCTS[name]
    a, b, c = (see(torch.ones(shape)) for shape in ((rows, inner), (inner, columns), (rows, columns)))
    taken = []
    for _ in range(tries):
        began = time.perf_counter()
        multiply(a, b, out=c)
        taken.append(time.perf_counter() - began)
    return min(taken)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it numpy multiplies in one thread and without warnings of numbers that are not finite.

    The networks are so small that a second thread gains nothing, and the number of threads would change the rounding.
    The process stays at one thread: set back to two and to one again, OpenBLAS has been seen to wake both for each
    product, at a hundredth of the speed.
    """
    _limit()
    with np.errstate(all="ignore"):
        yield


@cache
def _limit() -> None:
    """Sets the libraries of products that are loaded to one thread."""
    ThreadpoolController().select(user_api="blas").limit(limits=1)
