"""Lives of a broker that end at random points, with the machine's threads; the seed is printed.

`faults.power` has the same lives with threads whose order can be had again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.power.simulation import Simulation, make_small

SEED_BASE = 41_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.mark.parametrize("seed", range(SEED_BASE, SEED_BASE + 60))
def test_what_is_recovered_is_what_there_was_after_some_turn(seed: int, tmp_path: Path) -> None:
    print(f"seed {seed}")
    simulation = Simulation(seed, tmp_path)
    simulation.set_up()
    simulation.note(simulation.life.settle_down)
    for _ in range(5):
        for _ in range(simulation.choose.randrange(5, 60)):
            simulation.step()
        simulation.end()
    simulation.finish()
