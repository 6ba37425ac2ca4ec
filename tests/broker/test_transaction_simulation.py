"""Random producers, random ends of their transactions, and a broker that is killed or loses its power at any moment.

A failure prints its seed; `simulate(folder, seed)` runs it again. `faults.power` has the same with threads whose order
can be had again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broker.test_group_recovery import Lives
from tests.broker.transaction_simulation import STEPS, TransactionSimulation


def simulate(folder: Path, seed: int) -> None:
    simulation = TransactionSimulation(Lives(folder), seed)
    try:
        simulation.run()
    finally:
        simulation.lives.life.abandon()


@pytest.mark.parametrize("seed", range(25))
def test_a_transaction_is_there_as_a_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    simulate(tmp_path, seed)


def simulate_torn(folder: Path, seed: int) -> None:
    # A checkpoint relies on what it has written to the journal before.
    simulation = TransactionSimulation(Lives(folder), seed, has_checkpoints=False)
    try:
        for _ in range(STEPS):
            simulation.step()
        simulation.tear()
    finally:
        simulation.lives.life.abandon()


@pytest.mark.parametrize("seed", range(25))
def test_wherever_the_journal_ends_no_transaction_is_there_in_part(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    simulate_torn(tmp_path, seed)
