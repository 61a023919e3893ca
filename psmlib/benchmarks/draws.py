"""Training batches of a bank: a random generator for each network against counter-based random numbers.

Inputs and regression targets of K networks, from TY, with all their random numbers. "torch" draws network by network on
the CPU and copies the batches to the device, "addressed" makes the batches of all networks on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.timing import DeviceSettings, Row, interleave, rows
from psmlib.data.toys import load_toy
from psmlib.kernels.philox import words
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import CHUNK, Recipe
from psmlib.training.mlp_steps import MLPSteps


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """How much to measure.

    Attributes:
        networks: K.
        batch: Rows of a batch.
    """

    networks: int = 20
    batch: int = 512


SCALES = {"smoke": Settings(networks=2, batch=16, rounds=2), "quick": Settings(), "full": Settings(200, rounds=5)}


def run(settings: Settings) -> Iterator[Row]:
    """Measures a chunk of batches of all networks."""
    K, B, device = settings.networks, settings.batch, settings.device
    bank, toy = Bank(Plain(), K, device=device), load_toy("TY")
    recipe = Recipe(VP(0.0, 10.0), Partition.equal(K), updates=CHUNK, batch_size=B)
    data = {"torch": SimpleNamespace(sample=toy.sample), "addressed": toy}  # the first is no toy that words could draw
    made = {name: MLPSteps(bank, each, recipe) for name, each in data.items()}
    calls = {name: lambda i, each=each: each.batches(slice(0, K), i * CHUNK, CHUNK) for name, each in made.items()}
    keys = torch.arange(K, device=device)
    calls["words alone"] = lambda i: words(keys, i * CHUNK, CHUNK, B, 2)
    taken = interleave(calls, settings.rounds, device)
    notes = {
        "torch": "psmlib.training.batches, a torch.Generator for each network",
        "addressed": "psmlib.training.counter_batches, Philox-4x32-10",
        "words alone": "psmlib.kernels.philox, the eight words of a row",
    }
    case = f"{K} networks, batch {B}, {CHUNK} updates of TY, {device}"
    yield from rows(case, taken, "torch", notes, work=K * B * CHUNK, measure="rows a second")
