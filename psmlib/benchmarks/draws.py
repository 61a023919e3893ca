"""Training batches: a generator for each network against words that have an address.

Inputs and targets of SA-DPM's kind for K networks, from TY, with all random numbers; "torch" draws network by network
on the CPU and sends what it has drawn, "addressed" makes all of it where the networks are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.timing import Row, clock_of, interleave, rows
from psmlib.data.toys import load_toy
from psmlib.kernels.philox import words
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training.mlp_steps import CHUNK, BankSteps
from psmlib.training.objectives import Denoising


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Args:
        networks: K.
        batch: Rows of a batch.
        rounds: Timed turns.
        device: Where.
    """

    networks: int = 20
    batch: int = 512
    rounds: int = 7
    device: str = "cpu"


SCALES = {"smoke": Settings(networks=2, batch=16, rounds=2), "quick": Settings(), "full": Settings(200, rounds=5)}


def run(settings: Settings) -> Iterator[Row]:
    """Measures a chunk of batches of all networks."""
    K, B, device = settings.networks, settings.batch, settings.device
    bank, blocks = Bank(Plain(), K, device=device), Partition.equal(K)
    given = bank, load_toy("TY"), VP(0.0, 10.0), blocks, Denoising(), B, 0, lambda i: 1e-3, 0.0, 1e-5, None
    made = {streams: BankSteps(*given, streams=streams) for streams in ("torch", "addressed")}
    calls = {name: lambda i, each=each: each.batches(slice(0, K), i * CHUNK, CHUNK) for name, each in made.items()}
    keys = torch.arange(K, device=device)
    calls["words alone"] = lambda i: words(keys, i * CHUNK, CHUNK, B, 2)
    taken = interleave(calls, settings.rounds, clock=clock_of(device))
    notes = {
        "torch": "psmlib.training.batches, a torch.Generator for each network",
        "addressed": "psmlib.training.counter_batches, Philox-4x32-10",
        "words alone": "psmlib.kernels.philox, the eight words of a row",
    }
    case = f"{K} networks, batch {B}, {CHUNK} updates of TY, {device}"
    yield from rows(case, taken, "torch", notes, work=K * B * CHUNK, measure="rows a second")
