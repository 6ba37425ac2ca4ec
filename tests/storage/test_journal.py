"""The journal while it runs: group commit, what is durable when, full and broken disks."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.filesystem import OsFilesystem
from millpond.storage.frames import MARK_BYTES
from millpond.storage.journal_recovery import Damage
from tests.storage.journal_harness import FOLDER, JournalHarness, recover, wait_for


@pytest.fixture
def disk() -> FaultyFilesystem:
    return FaultyFilesystem()


@pytest.fixture
def harness(disk: FaultyFilesystem) -> Iterator[JournalHarness]:
    harness = JournalHarness(disk).started()
    yield harness
    disk.heal()
    disk.capacity_bytes = None
    disk.release_syncs()
    harness.close()


def test_frames_are_read_back_in_order(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.journal.append(7, b"head", b"body")
    harness.commit(b"", b"x" * 100_000)
    harness.commit(b"last")
    harness.close()
    payloads, report = recover(disk)
    assert payloads == [b"headbody", b"", b"x" * 100_000, b"last"]
    assert (report.frames, report.files, report.next_file, report.reason) == (4, 1, 1, "")


def test_nothing_is_written_before_the_turn_ends(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    writes = disk.counts["write"]
    harness.journal.append(1, b"abc")
    assert harness.journal.pending_bytes > 0
    harness.pump()
    assert disk.counts["write"] == writes
    assert recover(disk.copy())[0] == []


def test_a_turn_without_sync_is_written_but_not_reported_durable(
    disk: FaultyFilesystem, harness: JournalHarness
) -> None:
    syncs = disk.counts["sync"]
    sequence = harness.submit(b"abc", sync=False)
    harness.pump_until(lambda: harness.journal.written_sequence >= sequence)
    assert harness.journal.pending_bytes == 0
    assert harness.journal.durable_sequence < sequence
    assert disk.counts["sync"] == syncs
    harness.journal.submit(True)
    harness.pump_until(lambda: harness.recorder.durable_sequence >= sequence)
    assert disk.counts["sync"] == syncs + 1


def test_a_sync_with_nothing_to_make_durable_costs_nothing(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.commit(b"abc")
    counts = disk.counts.copy()
    sequence = harness.journal.sequence
    harness.journal.submit(True)
    harness.journal.submit(False)
    assert harness.journal.sequence == sequence
    harness.commit(b"def")
    assert disk.counts["sync"] == counts["sync"] + 1
    assert disk.counts["write"] == counts["write"] + 1


def test_turns_during_a_sync_share_the_next_one(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    counts = disk.counts.copy()
    started = disk.syncs_started
    disk.hold_syncs()
    first = harness.submit(b"first", sync=True)
    wait_for(lambda: disk.syncs_started > started)
    for number in range(100):
        last = harness.submit(b"%d" % number, sync=True)
    harness.pump()
    assert harness.recorder.durable_sequence < first, "nothing is durable before its sync is over"
    disk.release_syncs()
    harness.pump_until(lambda: harness.recorder.durable_sequence >= last)
    assert disk.counts["sync"] == counts["sync"] + 2
    assert disk.counts["write"] == counts["write"] + 2
    harness.close()
    assert recover(disk)[0] == [b"first", *(b"%d" % number for number in range(100))]


def test_what_is_written_during_a_sync_is_not_reported_with_it(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    started = disk.syncs_started
    disk.hold_syncs()
    first = harness.submit(b"first", sync=True)
    wait_for(lambda: disk.syncs_started > started)
    second = harness.submit(b"second", sync=False)
    disk.release_syncs()
    harness.pump_until(lambda: harness.journal.written_sequence >= second)
    assert harness.recorder.durable_sequence == first


def test_the_hook_runs_before_each_sync(disk: FaultyFilesystem) -> None:
    calls: list[int] = []
    harness = JournalHarness(disk, before_sync=lambda: calls.append(disk.counts["sync"])).started()
    harness.commit(b"a")
    harness.commit(b"b")
    assert calls == [1, 2]
    harness.close()


def test_an_error_of_the_hook_is_a_failure(disk: FaultyFilesystem) -> None:
    def broken() -> None:
        raise RuntimeError("the catalog is gone")

    harness = JournalHarness(disk, before_sync=broken).started()
    sequence = harness.submit(b"a", sync=True)
    harness.pump_until(lambda: bool(harness.recorder.failures))
    assert "the catalog is gone" in str(harness.recorder.failures[0])
    assert harness.recorder.durable_sequence < sequence
    harness.close()


def test_frames_after_a_roll_go_to_the_new_file(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.journal.append(1, b"old")
    number = harness.journal.roll()
    rolled = harness.journal.sequence - 1
    assert number == 1
    used = harness.journal.file_used_bytes
    harness.journal.append(1, b"new")
    assert harness.journal.file_used_bytes > used
    # The roll makes all before it durable, without being asked.
    harness.journal.submit(False)
    harness.pump_until(lambda: harness.recorder.durable_sequence >= rolled)
    assert recover(disk.copy(), 0)[0][:1] == [b"old"]
    harness.commit(b"newer")
    assert recover(disk.copy(), number)[0] == [b"new", b"newer"]
    harness.journal.drop_before(number)
    harness.close()
    assert disk.list(FOLDER) == [f"{number:020d}.journal"]
    assert recover(disk, number)[0] == [b"new", b"newer"]


def test_a_rolled_journal_survives_a_power_cut_at_once(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.submit(b"old", sync=False)
    harness.journal.roll()
    harness.commit(b"new")
    harness.close()
    disk.crash()
    assert recover(disk)[0] == [b"old", b"new"]


def test_a_full_file_grows_until_it_is_rolled(disk: FaultyFilesystem) -> None:
    harness = JournalHarness(disk, file_bytes=4096).started()
    payloads = [b"%d" % number * 700 for number in range(30)]
    for payload in payloads:
        harness.commit(payload)
    assert harness.journal.file_used_bytes > 4096
    harness.close()
    assert recover(disk)[0] == payloads


def test_closing_makes_all_durable(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.submit(b"submitted", sync=False)
    harness.journal.append(1, b"only appended")
    sequence = harness.journal.sequence
    harness.journal.close()
    assert harness.recorder.durable_sequence == sequence
    disk.crash()
    assert recover(disk)[0] == [b"submitted", b"only appended"]


def test_a_closed_journal_takes_no_more_room_than_it_needs(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.commit(b"a")
    used = harness.journal.file_used_bytes
    harness.close()
    assert len(disk.read_bytes(f"{FOLDER}/{0:020d}.journal")) == used + MARK_BYTES


def test_a_journal_is_kept_on_the_machines_file_system(tmp_path: Path) -> None:
    filesystem = OsFilesystem()
    folder = str(tmp_path / "data" / "journal")
    harness = JournalHarness(filesystem, folder=folder).started()
    harness.commit(b"a", b"b")
    harness.journal.roll()
    harness.commit(b"c")
    harness.close()
    payloads, report = recover(filesystem, folder=folder)
    assert (payloads, report.damage, report.next_file) == ([b"a", b"b", b"c"], Damage.NONE, 2)


def test_a_frame_that_recovery_would_not_believe_is_refused(harness: JournalHarness) -> None:
    with pytest.raises(ValueError, match="kind"):
        harness.journal.append(0, b"")
    with pytest.raises(ValueError, match="longer"):
        harness.journal.append(1, b"", bytes(64 * 1024 * 1024))


def test_an_existing_file_is_never_overwritten(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.commit(b"precious")
    harness.close()
    other = JournalHarness(disk, file_number=0)
    other.pump_until(lambda: bool(other.recorder.failures))
    other.close()
    assert recover(disk)[0] == [b"precious"]


# --- Full disks ----------------------------------------------------------------------------------------------------


def test_a_full_disk_blocks_and_loses_nothing(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.commit(b"before")
    # Beyond what is preallocated, so that the disk's limit is felt.
    disk.capacity_bytes = 70_000
    payloads = [bytes([65 + number]) * 20_000 for number in range(5)]
    for payload in payloads:
        last = harness.submit(payload, sync=True)
    harness.pump_until(lambda: harness.recorder.blocks == [True])
    assert harness.recorder.durable_sequence < last
    assert harness.journal.pending_bytes > 0
    disk.capacity_bytes = None
    harness.pump_until(lambda: harness.recorder.durable_sequence >= last)
    assert harness.recorder.blocks == [True, False]
    assert not harness.recorder.failures
    harness.close()
    assert recover(disk)[0] == [b"before", *payloads]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_without_room_is_repeated_at_the_same_place(
    disk: FaultyFilesystem, harness: JournalHarness, code: int
) -> None:
    disk.fail("write", code, times=5)
    harness.commit(b"a" * 3000, b"b")
    assert harness.recorder.blocks == [True, False]
    harness.close()
    assert recover(disk)[0] == [b"a" * 3000, b"b"]


@pytest.mark.parametrize("operation", ["mkdirs", "open", "write"])
def test_a_disk_that_is_full_from_the_start_blocks(disk: FaultyFilesystem, operation: str) -> None:
    disk.fail(operation, errno.ENOSPC, times=3)
    harness = JournalHarness(disk)
    harness.commit(b"a")
    assert harness.recorder.blocks == [True, False]
    harness.close()
    assert recover(disk)[0] == [b"a"]


def test_a_file_is_used_although_its_room_cannot_be_reserved(disk: FaultyFilesystem) -> None:
    disk.fail("allocate", errno.ENOSPC, times=1 << 30)
    harness = JournalHarness(disk)
    harness.commit(b"a")
    harness.journal.roll()
    harness.commit(b"b")
    assert harness.recorder.blocks == []
    harness.close()
    assert recover(disk)[0] == [b"a", b"b"]


def test_a_roll_waits_for_room(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    disk.capacity_bytes = 64 * 1024
    harness.journal.roll()
    harness.submit(b"new", sync=True)
    harness.pump_until(lambda: harness.recorder.blocks == [True])
    disk.capacity_bytes = None
    harness.commit(b"newer")
    harness.close()
    assert recover(disk, 1)[0] == [b"new", b"newer"]


def test_closing_on_a_full_disk_ends_with_a_failure(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.commit(b"a")
    disk.fail("write", errno.ENOSPC, times=1 << 30)
    lost = harness.submit(b"b", sync=True)
    harness.journal.close()
    assert harness.recorder.failures == [harness.journal.failure]
    assert harness.recorder.durable_sequence < lost
    disk.heal()
    # What was not promised may be there or not.
    assert recover(disk)[0][:1] == [b"a"]


# --- Broken disks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "code"), [("write", errno.EIO), ("sync", errno.EIO), ("sync", errno.ENOSPC), ("sync", errno.EDQUOT)]
)
def test_after_a_failure_nothing_is_ever_reported_durable(
    disk: FaultyFilesystem, harness: JournalHarness, operation: str, code: int
) -> None:
    harness.commit(b"good")
    good = harness.recorder.durable_sequence
    disk.fail(operation, code, times=1)
    harness.submit(b"lost", sync=True)
    harness.pump_until(lambda: bool(harness.recorder.failures))
    syncs = disk.counts["sync"]
    # The disk would say yes again by now. That must not be believed.
    for _ in range(3):
        harness.submit(b"dropped", sync=True)
    harness.journal.roll()
    harness.journal.drop_before(5)
    harness.journal.close()
    harness.pump()
    assert harness.recorder.durable_sequence == good
    assert len(harness.recorder.failures) == 1
    assert disk.counts["sync"] == syncs
    assert harness.journal.pending_bytes >= 0
    disk.crash()
    assert recover(disk)[0][:1] == [b"good"]


def test_a_failed_sync_of_a_rolled_file_is_a_failure(disk: FaultyFilesystem, harness: JournalHarness) -> None:
    harness.submit(b"old", sync=False)
    disk.fail("sync", errno.EIO)
    harness.journal.roll()
    sequence = harness.submit(b"new", sync=True)
    harness.pump_until(lambda: bool(harness.recorder.failures))
    assert harness.recorder.durable_sequence < sequence - 1
    assert disk.list(FOLDER) == [f"{0:020d}.journal"]


@pytest.mark.parametrize("operation", ["open", "allocate", "write", "sync", "sync_folder"])
def test_a_new_file_that_cannot_be_made_is_a_failure(disk: FaultyFilesystem, operation: str) -> None:
    disk.fail(operation, errno.EIO)
    harness = JournalHarness(disk)
    harness.submit(b"a", sync=True)
    harness.pump_until(lambda: bool(harness.recorder.failures))
    assert harness.recorder.durable_sequence == 0
    harness.close()
