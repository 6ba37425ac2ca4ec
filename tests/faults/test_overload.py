"""Producers faster than a disk that fills up and breaks, a short one of what `make faults` does for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import overload
from faults.report import Assignment


@pytest.mark.timeout(120)
def test_publishers_wait_for_a_bad_disk_and_nothing_confirmed_is_lost(tmp_path: Path) -> None:
    said: list[str] = []
    report = overload.run(Assignment(1, 6.0, tmp_path, said.append))
    assert not report.failures, "\n".join([*said, *(failure.what for failure in report.failures)])
    assert report.done["messages drained"] >= report.done["messages confirmed"] > 0
    assert report.done["kills"] == 3
