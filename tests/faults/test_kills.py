"""The campaign of kills in small: it finds nothing wrong with the broker, and finds a broken one out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from faults import kills
from faults.kills.amqp_work import AmqpWork
from faults.kills.killed_broker import KilledBroker
from faults.report import Assignment

SEED = 6
SECONDS = 10.0


@pytest.mark.timeout(240)
def test_what_was_acknowledged_outlives_kills(tmp_path: Path) -> None:
    report = kills.run(Assignment(SEED, SECONDS, tmp_path, print))
    assert not report.failures, "\n".join([report.failures[0].what, *report.failures[0].history])
    for what in ("AMQP messages confirmed", "Kafka records acknowledged", "share group records settled"):
        assert report.done[what] > 0, what


@pytest.mark.timeout(240)
def test_a_broker_that_forgets_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = KilledBroker.start

    def start_without_a_journal(broker: KilledBroker) -> None:
        shutil.rmtree(broker.process.data / "journal", ignore_errors=True)
        start(broker)

    monkeypatch.setattr(KilledBroker, "start", start_without_a_journal)
    report = kills.campaign(Assignment(SEED, SECONDS / 2, tmp_path, print), [AmqpWork])
    assert any("is lost" in failure.what for failure in report.failures)
