"""The networks of a bank that a shorter diffusion keeps: those of the blocks up to T."""

from __future__ import annotations

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.partition import Partition, blocks_up_to


def kept(bank: Bank | ImageBank, partition: Partition, T: float) -> Bank | ImageBank:
    """The networks of the blocks up to T, copied: a whole bank for ``cut(partition, T)``.

    A network's course depends on its seed, its number and its block alone, so these are the networks that training on
    the blocks kept would have made.

    Args:
        bank: As many networks as the partition has blocks.
        partition: The blocks that it was trained on.
        T: One of their edges.

    Raises:
        ValueError: when the two do not fit, or T is no edge.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.process import VP
        >>> blocks = Partition([0, .1, .4, 1])
        >>> short = kept(Bank(Plain(), 3), blocks, .4).score(cut(blocks, .4), Shortened(VP(), .4))
        >>> len(short.bank), short.process.T
        (2, 0.4)
    """
    if bank.whole != len(bank) or len(bank) != len(partition):
        raise ValueError(
            f"the bank holds {len(bank)} of {bank.whole} networks but {partition!r} has {len(partition)} blocks: "
            "give the whole bank and the blocks that it was trained on"
        )
    count = blocks_up_to(partition, T)
    part = bank.copy(**{name: rows[:count] for name, rows in bank.tensors.items()})
    part.whole = count
    return part
