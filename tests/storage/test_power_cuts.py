"""Power cuts at random points: everything that was reported durable is read back, in order. Seeds are printed."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Callable

import pytest

from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.storage.frames import read_file_header
from millpond.storage.journal_recovery import Damage, file_path, journal_files
from millpond.storage.log import BatchPlace, Log
from millpond.storage.record_batch import BatchBuilder
from tests.storage.journal_harness import FOLDER, JournalHarness, recover

SEED_BASE = 20_000


@pytest.mark.parametrize("seed", range(SEED_BASE, SEED_BASE + 120))
def test_a_journal_keeps_its_promises(seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed)
    disk = FaultyFilesystem(seed)
    expected: list[bytes] = []
    first_file, next_file = 0, 0
    for _ in range(4):
        harness = JournalHarness(disk, next_file, file_bytes=choose.choice([600, 5000, 60_000]))
        covered: dict[bytes, int] = {}
        for number in range(choose.randrange(1, 40)):
            payloads = [b"%d.%d " % (next_file, number) * choose.randrange(1, 200) for _ in range(choose.randrange(3))]
            sequence = harness.submit(*payloads, sync=choose.random() < 0.4)
            for index, payload in enumerate(payloads):
                covered[payload + b"#%d.%d" % (sequence, index)] = sequence
            if choose.random() < 0.08:
                harness.journal.roll()
            if choose.random() < 0.1:
                disk.fail("write", errno.ENOSPC, times=2)
            if choose.random() < 0.3:
                harness.pump()
        # The machine stops between two operations of the commit thread, and what is posted by then has been told.
        with disk.guard:
            harness.pump()
            durable = harness.recorder.durable_sequence
            crashed = disk.copy_for_crash()
        harness.close()
        crashed.crash(keeps_some=True)
        payloads_found, report = recover(crashed, first_file)
        written = [name.rpartition(b"#")[0] for name in covered]
        promised = [name.rpartition(b"#")[0] for name, sequence in covered.items() if sequence <= durable]
        assert payloads_found[: len(expected)] == expected, "an earlier life's frames are as recovered then"
        found = payloads_found[len(expected) :]
        assert found[: len(promised)] == promised, "what was promised is there"
        assert found == written[: len(found)], "in order, and nothing else"
        assert report.damage is not Damage.CORRUPTION, "a power cut is not corruption"
        expected = payloads_found
        next_file = report.next_file
        disk = crashed
        # A second power cut right after recovery takes nothing of what was applied.
        disk.crash(keeps_some=True)
        assert recover(disk, first_file)[0] == expected


class SnapshotDisk(FaultyFilesystem):
    """Takes a copy of itself before each thing that the commit thread does."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.look: Callable[[FaultyFilesystem], None] | None = None

    def enter(self, operation: str, path: str) -> None:
        if self.look is not None and threading.current_thread().name == "millpond-commit":
            self.look(self.copy_for_crash())
        super().enter(operation, path)


@pytest.mark.parametrize("keeps_some", [False, True])
def test_a_power_cut_at_any_step_finds_no_old_frame_in_a_file_that_is_used_again(keeps_some: bool) -> None:
    disk = SnapshotDisk(7)
    harness = JournalHarness(disk, file_bytes=2048).started()
    # Of each file, its frames with their sequence numbers.
    files: list[list[tuple[int, bytes]]] = [[]]
    first_file = 0
    moments: list[tuple[FaultyFilesystem, int, int]] = []
    disk.look = lambda copy: moments.append((copy, first_file, harness.journal._worker.durable_sequence))
    for file in range(6):
        for turn in range(4 + file % 2):
            # All of one size, so that the frames of all files lie at the same places.
            payloads = [b"%d.%d.%d" % (file, turn, number) * 20 for number in range(2)]
            sequence = harness.submit(*payloads, sync=turn != 1)
            files[file].extend((sequence, payload) for payload in payloads)
            if turn != 1:
                harness.pump_until(lambda sequence=sequence: harness.recorder.durable_sequence >= sequence)  # type: ignore[misc]
        files.append([])
        rolled = harness.journal.sequence
        harness.journal.roll()
        harness.pump_until(lambda rolled=rolled: harness.recorder.durable_sequence >= rolled)  # type: ignore[misc]
        if file > 0:
            first_file = file
            harness.journal.drop_before(file)
    harness.close()
    assert disk.counts["rename"] > 6, "files were used again"
    assert len(moments) > 80
    for moment, first, durable in moments:
        moment.crash(keeps_some)
        # No file stands under the name of what it was before, for the case that no checkpoint can be read.
        for number in journal_files(moment, FOLDER)[:-1]:
            read_file_header(moment.read_bytes(file_path(FOLDER, number)), number)
        found, report = recover(moment, first)
        frames = [frame for file in files[first:] for frame in file]
        promised = [payload for sequence, payload in frames if sequence <= durable]
        assert found[: len(promised)] == promised, "what was promised is there"
        assert found == [payload for _, payload in frames[: len(found)]], "in order, and nothing else"
        assert report.damage is not Damage.CORRUPTION, "a power cut is not corruption"
        if not keeps_some:
            assert report.damage is Damage.NONE
        # The next life, and a power cut in it.
        again = JournalHarness(moment, report.next_file, file_bytes=2048).started()
        again.commit(b"later")
        moment.crash(keeps_some)
        assert recover(moment, first)[0] == [*found, b"later"]
        again.close()


@pytest.mark.parametrize("seed", range(SEED_BASE, SEED_BASE + 80))
def test_a_log_keeps_what_was_synced(seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed)
    disk = FaultyFilesystem(seed)
    log = Log(disk, "/data/log", segment_bytes=choose.choice([200, 2000, 100_000]))
    log.open(0)
    builder = BatchBuilder()
    appended: list[tuple[int, BatchPlace, bytes]] = []
    synced, synced_end = 0, 0
    for number in range(choose.randrange(1, 60)):
        base = log.end_offset + choose.choice([0, 0, 0, 1, 1000, 1 << 33])
        for delta in range(choose.randrange(0, 5)):
            builder.append(delta, number, b"", b"%d " % number * choose.randrange(100), b"")
        batch = builder.finish(base, 5)
        if choose.random() < 0.1:
            disk.fail("write", errno.ENOSPC)
        with contextlib.suppress(OSError):
            appended.append((base, log.append(batch, base, base + 5, number), batch))
        disk.heal()
        if choose.random() < 0.2:
            log.sync()
            synced, synced_end = len(appended), log.end_offset
    disk.crash(keeps_some=True)
    log = Log(disk, "/data/log", segment_bytes=2000)
    knows_end = choose.random() < 0.5
    report = log.open(synced_end if knows_end else None, checked_from=0)
    by_place = {(base, place): batch for base, place, batch in appended}
    found = {(entry[0], entry[3]) for entry in log.places_from(0) if (entry[0], entry[3]) in by_place}
    for base, place in found:
        assert log.read(place, base) == by_place[base, place]
    assert {(base, place) for base, place, _ in appended[:synced]} <= found, "what was synced is there"
    if knows_end:
        assert (log.end_offset, report.lost) == (synced_end, [])
        assert len(found) == synced, "what came after the checkpoint is gone"
    log.append(builder.finish(log.end_offset, 0), log.end_offset, log.end_offset, 0)
    log.sync()
