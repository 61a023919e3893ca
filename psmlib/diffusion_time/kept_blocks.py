"""The networks of a bank that remain when the diffusion is stopped at T: those of the blocks up to T."""

from __future__ import annotations

from psmlib.bank.stack import NetworkStack
from psmlib.partition import Partition, blocks_up_to


def bank_up_to(bank: NetworkStack, partition: Partition, T: float) -> NetworkStack:
    """Copies the networks of the blocks up to T into a bank for ``cut(partition, T)``.

    Each network's training depends only on (seed, index) and its block, so training on the remaining blocks alone gives
    the same networks.

    Args:
        bank: As many networks as the partition has blocks.
        partition: The blocks that it was trained on.
        T: One of their edges.

    Raises:
        ValueError: when bank and partition do not match, or T is no edge.

    Example:
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.partition import cut
        >>> from psmlib.process import VP, Shortened
        >>> blocks = Partition([0, .1, .4, 1])
        >>> short = bank_up_to(Bank(Plain(), 3), blocks, .4).score(cut(blocks, .4), Shortened(VP(), .4))
        >>> len(short.bank), short.process.T
        (2, 0.4)
    """
    if bank.whole != len(bank) or len(bank) != len(partition):
        raise ValueError(
            f"the bank holds {len(bank)} of {bank.whole} networks but {partition!r} has {len(partition)} blocks: "
            "give the whole bank and the blocks that it was trained on"
        )
    count = blocks_up_to(partition, T)
    return bank.copy(**{name: rows[:count] for name, rows in bank.tensors.items()})
