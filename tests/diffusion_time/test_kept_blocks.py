"""The networks that a shorter diffusion keeps: those that training on its blocks alone would have made."""

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG
from psmlib.diffusion_time.kept_blocks import bank_up_to
from psmlib.nets import unet
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition, cut
from psmlib.process import VP, Shortened
from psmlib.training import fit


def test_what_is_kept_is_what_short_training_makes():
    toy, blocks = HG().centred(), Partition([0, 0.1, 0.4, 1])
    arch = Plain(hidden=(16,))
    full, short = Bank(arch, 3, seed=5), Bank(arch, 2, seed=5)
    budget = dict(updates=20, batch_size=16, seed=3)
    list(fit(full, toy, VP(), blocks, **budget))
    list(fit(short, toy, Shortened(VP(), 0.4), cut(blocks, 0.4), **budget))
    part = bank_up_to(full, blocks, 0.4)
    assert torch.equal(part.params, short.params) and not torch.equal(full.params[0], Bank(arch, 1, seed=5).params[0])
    part.params.zero_()
    assert full.params.abs().max() > 0  # a copy
    x = torch.ones(3, 2)
    one = bank_up_to(full, blocks, 0.4).score(cut(blocks, 0.4), Shortened(VP(), 0.4))
    assert torch.equal(one.eps(x, 0.3), full.score(blocks, VP()).eps(x, 0.3))
    with pytest.raises(ValueError, match="ends at 0.4 but VP"):
        bank_up_to(full, blocks, 0.4).score(cut(blocks, 0.4), VP())


def test_image_banks_are_kept_too():
    blocks = Partition([0, 0.1, 0.4, 1])
    bank = ImageBank(unet.small(dim=8), 3, seed=0)
    part = bank_up_to(bank, blocks, 0.4)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    short = part.score(cut(blocks, 0.4), Shortened(VP(), 0.4))
    assert torch.equal(short.eps(x, 0.2), bank.score(blocks, VP()).eps(x, 0.2))
    assert part.whole == len(part) == 2 and bank.whole == 3
    with pytest.raises(ValueError, match="holds 2 of 2 networks"):
        bank_up_to(part, blocks, 0.4)
