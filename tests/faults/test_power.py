"""Simulated power loss in small: nothing is lost, runs come again, and storage that breaks its word is found out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from faults import power
from faults.power.lives import Trace, simulate
from faults.report import Assignment
from millpond.base import faulty_filesystem
from tests.broker.life import Told

SEEDS = 20
# One of so many seeds finds out whoever breaks a promise.
SEEDS_UNTIL_FOUND = 20


def run(seed: int, folder: Path) -> str:
    trace = Trace()
    simulate(seed, folder / "run", trace, Counter())
    return trace.digest


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_durable_is_there(seed: int, tmp_path: Path) -> None:
    run(seed, tmp_path)


def test_a_run_comes_again(tmp_path: Path) -> None:
    assert run(7, tmp_path) == run(7, tmp_path)
    assert run(7, tmp_path) != run(8, tmp_path)


def find_out(folder: Path) -> str:
    for seed in range(SEEDS_UNTIL_FOUND):
        try:
            run(seed, folder)
        except AssertionError as error:
            return str(error)
    return ""


def test_a_disk_that_does_not_sync_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_filesystem._FaultyFile, "sync", lambda _: None)
    assert "there is what never was" in find_out(tmp_path)


def test_a_disk_that_forgets_names_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_filesystem.FaultyFilesystem, "sync_folder", lambda *_: None)
    assert find_out(tmp_path)


def test_a_confirm_that_comes_too_early_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Told.committed

    def one_more(told: Told, durable_sequence: int) -> bool:
        return committed(told, durable_sequence + 1)

    monkeypatch.setattr(Told, "committed", one_more)
    assert "there is what never was" in find_out(tmp_path)


def test_the_campaign_counts_what_it_does(tmp_path: Path) -> None:
    report = power.run(Assignment(1, 4.0, tmp_path, print))
    assert report.done["lives"] > 0
    assert all("lives, and not" in failure.what for failure in report.failures)
