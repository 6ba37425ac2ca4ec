"""Attacks on a running broker, each a small one: what is lost, refused, given back. How long anybody waits is measured
by `make faults`, which has the machine for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import hostile
from faults.report import Assignment

SCALE = 0.02
# What says how long something took, or how much memory: not here, where other tests run at the same time.
MEASURED = (" waited ", "p99 of ", "MiB were not given back", "memory has grown")
ATTACKS = [
    "slowloris: handshakes, frames, requests, headers and bodies byte by byte",
    "requests one after the other, whose answers are never read",
    "garbage from very many peers, each refused",
    "AMQP: huge lengths of frames, bodies, tables, arrays and strings",
    "AMQP: tables and arrays inside each other, and very wide ones",
    "Kafka: huge lengths of requests, arrays, strings and batches",
    "patterns of policies, permissions and subscriptions that would never end",
    "very many consumers and channels, all lost at once",
    "transactions of AMQP's left open, and messages never finished",
    "very many records in the hands of share members, all lost at once",
    "share sessions of very many groups, all lost at once",
    "very many transactions with very many partitions each, left open",
]


@pytest.mark.timeout(120)
def test_small_attacks_harm_nobody(tmp_path: Path) -> None:
    said: list[str] = []
    report = hostile.attack(Assignment(1, 10.0, tmp_path, said.append), ATTACKS, SCALE)
    wrongs = [failure for failure in report.failures if not any(words in failure.what for words in MEASURED)]
    assert not wrongs, wrongs
    assert report.done["attacks"] == len(ATTACKS)
