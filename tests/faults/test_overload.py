"""Producers faster than a disk that fills up and breaks, a short one of what `make faults` does for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import overload
from faults.overload.campaign import NO_ROOM
from faults.overload.disk import Disk
from faults.report import Assignment
from tests.support.broker_process import BrokerProcess


@pytest.mark.timeout(120)
def test_publishers_wait_for_a_bad_disk_and_nothing_confirmed_is_lost(tmp_path: Path) -> None:
    said: list[str] = []
    report = overload.run(Assignment(1, 3.0, tmp_path, said.append))
    assert not report.failures, "\n".join([*said, *(failure.what for failure in report.failures)])
    assert report.done["messages drained"] >= report.done["messages confirmed"] > 0
    assert report.done["kills"] == 3


def test_a_start_without_room_says_so_and_succeeds_when_there_is_some(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", tmp_path / "data")
    with BrokerProcess(tmp_path, environment=disk.environment) as broker:
        broker.kill()
        disk.fill()
        with pytest.raises(AssertionError, match=NO_ROOM):
            broker.start()
        disk.heal()
        broker.start()
