"""What a start finds: after a clean stop, a kill, a power cut at any operation of a checkpoint, and damage."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import crc32c
import pytest

from millpond.base.errors import CorruptData
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.limits import LEDGER_FRAME_BYTES
from millpond.broker import checkpoint, ledger
from millpond.broker.commits import ALARM_DISK, ALARM_STORAGE
from millpond.broker.message import Address, Message
from millpond.broker.snapshot import SnapshotReader
from millpond.storage.journal_recovery import Damage
from tests.broker.life import DATA, KIB, MIB, Inbox, Life, PlainProperties, copy_catalog, number_of, small_pages


class Lives:
    """Begins one life after another on the same disk."""

    def __init__(self, folder: Path) -> None:
        self.disk = FaultyFilesystem(7)
        self.life: Life | None = None
        self._folder = folder
        self._count = 0
        self.budget = 64 * MIB
        self.file_bytes = 4 * MIB

    def first(self) -> Life:
        return self._begin(self.disk, None)

    def after_stop(self) -> Life:
        """Stop in order, and start again."""
        assert self.life is not None
        self.life.stop()
        return self._begin(self.disk, self.life.catalog_folder)

    def after_kill(self) -> Life:
        """What was handed to the system survives; what was in memory does not."""
        assert self.life is not None
        source = self.life.catalog_folder
        with self.disk.guard:
            disk = self.disk.copy()
        # Copied before its journal is closed, which would write what is still pending.
        self._count += 1
        copy_catalog(source, self._folder / f"killed-{self._count}")
        self.life.abandon()
        return self._begin(disk, self._folder / f"killed-{self._count}")

    def after_power_cut(self) -> Life:
        """Only what was synced survives."""
        assert self.life is not None
        disk = self.disk.copy_for_crash()
        self._count += 1
        self.life.copy_durable_catalog(self._folder / f"killed-{self._count}")
        self.life.abandon()
        disk.crash()
        return self._begin(disk, self._folder / f"killed-{self._count}")

    def _begin(self, disk: FaultyFilesystem, catalog: Path | None) -> Life:
        self._count += 1
        folder = self._folder / f"catalog-{self._count}"
        if catalog is not None:
            copy_catalog(catalog, folder)
        self.disk = disk
        self.life = Life(disk, folder, budget=self.budget, file_bytes=self.file_bytes)
        self.life.check_counts()
        return self.life


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    small_pages(monkeypatch, 64)
    lives = Lives(tmp_path)
    yield lives
    if lives.life is not None:
        lives.life.abandon()


def numbers_in(life: Life, name: str) -> list[int]:
    return [number for _, number, _ in life.contents(life.queue(name))]


def redelivered(life: Life, name: str) -> dict[int, bool]:
    """Consume everything; the redelivered flag by number."""
    queue = life.queue(name)
    inbox = Inbox(queue)
    queue.add_consumer(inbox)
    life.pump_until(lambda: queue.ready == 0)
    queue.remove_consumer(inbox)
    return {number_of(entry.message): entry.redelivered for entry in inbox.take()}


class TestRedeliveredFlag:
    """Set for what may have been delivered before."""

    @pytest.mark.parametrize("count", [10, 1000])
    def test_not_set_after_a_clean_stop_for_what_was_never_delivered(self, lives: Lives, count: int) -> None:
        life = lives.first()
        queue = life.declare("work")
        life.fill("work", range(count), size=100)
        inbox = Inbox(queue, 6)
        queue.add_consumer(inbox)
        life.settle_down()
        entries = inbox.take()
        queue.remove_consumer(inbox)
        for entry in entries[::2]:
            queue.settle(entry)
        queue.give_back(entries[1::2], False)
        flags = redelivered(lives.after_stop(), "work")
        assert flags == {1: True, 3: True, 5: True, **dict.fromkeys(range(6, count), False)}

    def test_kept_over_a_second_clean_stop(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        life.fill("work", range(10))
        entries = [life.queue("work").get() for _ in range(4)]
        life.queue("work").give_back([entry for entry in entries if entry is not None], False)
        lives.after_stop()
        flags = redelivered(lives.after_stop(), "work")
        assert flags == {number: number < 4 for number in range(10)}

    def test_set_after_a_kill(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        life.fill("work", range(10))
        life.settle_down()
        assert set(redelivered(lives.after_kill(), "work").values()) == {True}

    @pytest.mark.parametrize("count", [10, 1000])
    def test_set_after_a_kill_of_a_life_that_began_with_a_clean_stop(self, lives: Lives, count: int) -> None:
        """A delivery leaves no trace on the disk, and so the end of a clean stop's word is that a new life began."""
        life = lives.first()
        life.declare("work")
        life.fill("work", range(count), size=100)
        life = lives.after_stop()
        inbox = Inbox(life.queue("work"), 5)
        life.queue("work").add_consumer(inbox)
        life.pump_until(lambda: len(inbox.entries) == 5)
        life.pump_until(lambda: life.told.durable > 0)
        flags = redelivered(lives.after_power_cut(), "work")
        assert all(flags[number] for number in range(5))

    def test_not_set_for_what_is_published_after_a_restart(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        life.fill("work", range(5))
        life.settle_down()
        life = lives.after_kill()
        life.fill("work", range(5, 10))
        assert redelivered(life, "work") == {number: number < 5 for number in range(10)}


# What `TestCheckpoint.prepare` leaves in each queue.
EXPECTED = {
    "paged": list(range(100, 640)),
    "carried": list(range(3, 10)),
    "both": list(range(5, 70)),
    "emptied": [],
}


class TestCheckpoint:
    """What it leaves on the disk is enough, whenever the power fails."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint, "CARRY_FORWARD_BYTES", 2000)

    def prepare(self, lives: Lives) -> Life:
        """A queue whose messages are in pages, one whose messages are carried forward, one that has both."""
        lives.file_bytes = 512 * KIB
        life = lives.first()
        for name in ("paged", "carried", "both", "emptied"):
            life.declare(name)
        life.fill("paged", range(640), size=300)
        life.fill("carried", range(10), size=30)
        life.fill("both", range(64), size=300)
        life.fill("both", range(64, 70), size=30)
        life.fill("emptied", range(200), size=300)
        for name, count in (("paged", 100), ("carried", 3), ("both", 5), ("emptied", 200)):
            for _ in range(count):
                entry = life.queue(name).get()
                assert entry is not None
                life.queue(name).settle(entry)
        life.settle_down()
        return life

    @pytest.mark.parametrize("later", [False, True])
    def test_nothing_is_lost_when_the_power_fails_at_any_operation(
        self, lives: Lives, tmp_path: Path, later: bool
    ) -> None:
        life = self.prepare(lives)
        if later:
            # Not the first one: there is a snapshot to replace, and there are files to drop.
            life.checkpoint()
            life.fill("carried", range(10, 12))
            life.settle_down()
        expected = {**EXPECTED, "carried": [*range(3, 12)] if later else [*range(3, 10)]}
        copies: list[FaultyFilesystem] = []
        enter = lives.disk.enter

        def remember(operation: str, path: str) -> None:
            if operation != "read":
                copies.append(lives.disk.copy_for_crash())
            enter(operation, path)

        life.copy_durable_catalog(tmp_path / "copied")
        lives.disk.enter = remember  # type: ignore[method-assign]
        life.checkpoint()
        with lives.disk.guard:
            lives.disk.enter = enter  # type: ignore[method-assign]
            copies.append(lives.disk.copy_for_crash())
        assert len(copies) > 12
        for number, copied in enumerate(copies):
            # Thrice: nothing of what was on its way is on the disk, or any choice of it is.
            for keeps_some in (False, True, True):
                crashed = copied.copy_for_crash()
                crashed.crash(keeps_some)
                catalog = tmp_path / f"cut-{number}"
                copy_catalog(tmp_path / "copied", catalog)
                again = Life(crashed, catalog)
                again.check_counts()
                assert {name: numbers_in(again, name) for name in expected} == expected, f"cut at operation {number}"
                again.abandon()

    def test_the_snapshot_waits_for_what_was_carried_forward(self, lives: Lives) -> None:
        """The old journal files have it until then."""
        life = self.prepare(lives)
        # The new file's header is written, and then nothing more.
        lives.disk.fail("write", errno.ENOSPC, nth=2, times=1 << 30, path="/journal/00000000000000000001")
        life.checkpointer.begin()
        life.pump_until(lambda: ALARM_DISK in life.alarms.reasons)
        life.pump_until(lambda: life.store.writes_under_way == 0)
        idle: list[None] = []
        life.store.run_on_writer(lambda: None, lambda _: idle.append(None))
        life.pump_until(lambda: bool(idle))
        assert life.checkpointer.running
        assert not lives.disk.list(f"{DATA}/checkpoints")
        again = lives.after_power_cut()
        assert {name: numbers_in(again, name) for name in EXPECTED} == EXPECTED

    def test_a_journal_that_fails_meanwhile_ends_it(self, lives: Lives) -> None:
        life = self.prepare(lives)
        lives.disk.fail("sync", errno.EIO, path="/journal/00000000000000000001")
        life.checkpointer.begin()
        life.pump_until(lambda: not life.checkpointer.running)
        assert life.checkpointer.completed_total == 0
        assert life.told.has_failed
        again = lives.after_power_cut()
        assert {name: numbers_in(again, name) for name in EXPECTED} == EXPECTED

    def test_another_one_is_made_when_the_journal_fills_its_file(self, lives: Lives) -> None:
        lives.file_bytes = 256 * KIB
        life = lives.first()
        life.declare("work")
        queue = life.queue("work")
        for start in range(0, 20_000, 100):
            life.fill("work", range(start, start + 100), size=200)
            for number in range(start, start + 100):
                entry = queue.get()
                assert entry is not None
                if number % 10:
                    queue.settle(entry)
            life.settle_down()
        assert life.checkpointer.completed_total > 3
        assert len(lives.disk.list(f"{DATA}/journal")) < 6
        assert len(lives.disk.list(f"{DATA}/checkpoints")) == 1
        assert numbers_in(lives.after_kill(), "work") == list(range(0, 20_000, 10))

    def test_a_disk_that_is_full_while_pages_are_written_loses_nothing(self, lives: Lives) -> None:
        life = self.prepare(lives)
        lives.disk.fail("write", errno.ENOSPC, times=1 << 30, path="/queues/")
        life.checkpointer.begin()
        life.pump_until(lambda: not life.checkpointer.running)
        assert life.checkpointer.completed_total == 0
        life.check_counts()
        lives.disk.heal()
        life.store.resume()
        life.checkpoint()
        again = lives.after_power_cut()
        assert {name: numbers_in(again, name) for name in EXPECTED} == EXPECTED

    def test_a_disk_that_is_full_while_the_snapshot_is_written_loses_nothing(self, lives: Lives) -> None:
        life = self.prepare(lives)
        lives.disk.fail("write", errno.ENOSPC, path="/checkpoints/")
        life.checkpointer.begin()
        life.pump_until(lambda: not life.checkpointer.running)
        assert life.checkpointer.completed_total == 0
        again = lives.after_power_cut()
        assert {name: numbers_in(again, name) for name in EXPECTED} == EXPECTED

    def test_a_log_that_cannot_be_synced_raises_the_storage_alarm_and_loses_nothing(self, lives: Lives) -> None:
        life = self.prepare(lives)
        lives.disk.fail("sync", errno.EIO, path="/queues/")
        life.checkpointer.begin()
        life.pump_until(lambda: not life.checkpointer.running)
        assert ALARM_STORAGE in life.alarms.reasons
        # A second attempt does not take the failed sync for one that succeeded.
        life.checkpointer.begin()
        life.pump_until(lambda: not life.checkpointer.running)
        assert life.checkpointer.completed_total == 0
        again = lives.after_power_cut()
        assert {name: numbers_in(again, name) for name in EXPECTED} == EXPECTED


class TestDamage:
    """What does not verify is told and not served; what does, is."""

    def prepare(self, lives: Lives) -> Life:
        life = lives.first()
        life.declare("work")
        life.fill("work", range(1000), size=2000)
        life.checkpoint()
        life.fill("work", range(1000, 1100), size=2000)
        for _ in range(10):
            entry = life.queue("work").get()
            assert entry is not None
            life.queue("work").settle(entry)
        life.settle_down()
        return life

    def test_a_page_is_lost_and_the_rest_goes_on(self, lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
        self.prepare(lives)
        life = lives.after_kill()
        queue = life.queue("work")
        page = queue.backlog.pages[1]
        assert page.place is not None
        path = f"{life.store.log_folder(queue.log_id, True)}/{page.place.segment_base:020d}.log"
        lives.disk.flip_bit(path, (page.place.position + page.place.length // 2) * 8)
        lost = range(int(page.start), int(page.end))
        assert life.drain(queue) == [number for number in range(10, 1100) if number not in lost]
        assert any("are lost" in record.message for record in caplog.records)
        life.settle_down()
        assert life.memory.used == 0

    @pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "removed"])
    def test_without_its_checkpoint_the_queue_is_rebuilt_from_its_log(self, lives: Lives, damage: str) -> None:
        self.prepare(lives)
        disk = lives.disk
        [name] = disk.list(f"{DATA}/checkpoints")
        path = f"{DATA}/checkpoints/{name}"
        content = disk.read_bytes(path)
        if damage == "flipped":
            disk.flip_bit(path, len(content) * 4)
        elif damage == "removed":
            disk.remove(path)
        else:
            disk.put(path, content[:-1] if damage == "cut" else b"")
        life = lives.after_kill()
        assert numbers_in(life, "work") == list(range(10, 1100))
        assert life.checkpoint_wanted
        # It is the same after a second start, before any checkpoint was made.
        life = lives.after_kill()
        assert numbers_in(life, "work") == list(range(10, 1100))
        life.checkpoint()
        if damage != "removed":
            assert f"{name}.corrupt" in lives.disk.list(f"{DATA}/checkpoints")
        life = lives.after_kill()
        assert life.drain(life.queue("work")) == list(range(10, 1100))
        life.settle_down()
        life.check_counts()
        assert life.memory.used == 0

    def test_every_flipped_bit_of_a_checkpoint_is_detected(self, lives: Lives) -> None:
        self.prepare(lives)
        [name] = lives.disk.list(f"{DATA}/checkpoints")
        path = f"{DATA}/checkpoints/{name}"
        content = lives.disk.read_bytes(path)
        for bit in range(0, len(content) * 8, 3):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptData):
                SnapshotReader(bytes(damaged))
        for size in range(len(content)):
            with pytest.raises(CorruptData):
                SnapshotReader(content[:size])

    def test_a_damaged_journal_gives_what_there_was_before_the_damage(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        positions: list[int] = []
        for number in range(50):
            life.publish("", "work", number)
            life.settle_down()
            positions.append(int(life.journal.file_used_bytes))
        [name] = lives.disk.list(f"{DATA}/journal")
        lives.disk.flip_bit(f"{DATA}/journal/{name}", (positions[30] - 1) * 8)
        life = lives.after_kill()
        assert life.report.damage is Damage.CORRUPTION
        assert numbers_in(life, "work") == list(range(30))
        life.fill("work", range(100, 105))
        life.settle_down()
        assert numbers_in(lives.after_power_cut(), "work") == [*range(30), *range(100, 105)]

    def test_ids_of_queues_that_the_catalog_forgot_are_not_used_again(self, lives: Lives, tmp_path: Path) -> None:
        """A snapshot, a journal or a log may still speak of them."""
        life = lives.first()
        life.declare("kept")
        life.settle_down()
        life.sync_catalog()
        life.copy_durable_catalog(tmp_path / "before")
        life.declare("forgotten")
        life.fill("forgotten", range(1000), size=300)
        life.checkpoint()
        forgotten = int(life.queue("forgotten").log_id)
        with lives.disk.guard:
            disk = lives.disk.copy()
        life.abandon()
        life = lives._begin(disk, tmp_path / "before")
        assert life.declare("new").log_id > forgotten
        assert numbers_in(life, "new") == []
        life.settle_down()


class TestDisk:
    """A full disk and a broken one, seen by publishers."""

    def test_a_full_disk_holds_publishers_back_and_loses_nothing(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        life.settle_down()
        lives.disk.fail("write", errno.ENOSPC, times=1 << 30, path="/journal/")
        life.publish("", "work", 1)
        life.ledger.sync_wanted = True
        told = life.told.durable
        life.pump_until(lambda: ALARM_DISK in life.alarms.reasons)
        assert life.told.durable == told
        lives.disk.heal()
        life.pump_until(lambda: life.told.durable > told)
        assert not life.alarms.reasons
        life.fill("work", range(2, 5))
        life.settle_down()
        assert numbers_in(lives.after_power_cut(), "work") == [1, 2, 3, 4]

    def test_nothing_is_confirmed_after_a_failed_sync(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        life.fill("work", range(3))
        life.settle_down()
        lives.disk.fail("sync", errno.EIO, path="/journal/")
        life.publish("", "work", 3)
        life.ledger.sync_wanted = True
        life.pump_until(lambda: life.told.has_failed)
        assert ALARM_STORAGE in life.alarms.reasons
        told = life.told.durable
        for number in range(4, 8):
            life.publish("", "work", number)
            life.ledger.sync_wanted = True
            life.end_turn()
        life.settle_down()
        assert life.told.durable == told
        # What is there can still be consumed.
        assert life.drain(life.queue("work")) == list(range(8))
        assert numbers_in(lives.after_power_cut(), "work") == list(range(3))

    def test_a_clean_stop_on_a_broken_disk_still_ends(self, lives: Lives) -> None:
        life = lives.first()
        life.declare("work")
        life.fill("work", range(1000), size=300)
        life.settle_down()
        lives.disk.fail("sync", errno.EIO, times=1 << 30, path="/queues/")
        life.stop()
        lives.disk.heal()
        again = lives._begin(lives.disk, life.catalog_folder)
        assert numbers_in(again, "work") == list(range(1000))


class TestOneTurn:
    """What happens in one turn is recovered as a whole or not at all, however large it is."""

    def huge_turn(self, life: Life) -> None:
        """Dead-letter, publish and settle in one turn more than one journal frame holds."""
        source = life.queue("source")
        entries = [source.get() for _ in range(150)]
        for number in range(1000, 1100):
            life.publish("", "other", number, size=100 * KIB)
        for entry in entries:
            assert entry is not None
            source.reject(entry)

    def prepare(self, lives: Lives) -> Life:
        lives.file_bytes = 100 * MIB
        lives.budget = 512 * MIB
        life = lives.first()
        life.declare("source", dead_letter_exchange="", dead_letter_routing_key="dead")
        life.declare("dead")
        life.declare("other")
        life.fill("source", range(150), size=100 * KIB)
        life.settle_down()
        return life

    @pytest.fixture(autouse=True)
    def large_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert 250 * 100 * KIB > LEDGER_FRAME_BYTES, "this is to be more than one frame"

    def test_a_turn_of_several_frames_is_recovered(self, lives: Lives) -> None:
        life = self.prepare(lives)
        self.huge_turn(life)
        life.settle_down()
        life = lives.after_kill()
        assert numbers_in(life, "source") == []
        assert numbers_in(life, "dead") == list(range(150))
        assert numbers_in(life, "other") == list(range(1000, 1100))

    def test_a_turn_whose_last_frame_is_missing_has_not_happened(self, lives: Lives) -> None:
        life = self.prepare(lives)
        self.huge_turn(life)
        life.settle_down()
        [name] = lives.disk.list(f"{DATA}/journal")
        lives.disk.flip_bit(f"{DATA}/journal/{name}", (int(life.journal.file_used_bytes) - 1) * 8)
        life = lives.after_kill()
        assert numbers_in(life, "source") == list(range(150))
        assert numbers_in(life, "dead") == []
        assert numbers_in(life, "other") == []
        # Nor do its first frames become part of what happens later.
        life.publish("", "other", 5)
        life.settle_down()
        life = lives.after_kill()
        assert numbers_in(life, "other") == [5]
        assert numbers_in(life, "dead") == []

    def test_what_is_published_and_settled_in_such_a_turn_does_not_come_back(
        self, lives: Lives, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Where the source runs uncompiled this many settlements are more than one frame.
        monkeypatch.setattr(ledger, "LEDGER_FRAME_BYTES", 500)
        life = lives.first()
        queue = life.declare("source")
        vhost = life.vhost
        route = vhost.route(vhost.exchange(""), Address("", "source"), None)
        for number in range(100):
            vhost.publish(route, Message(route.address, PlainProperties(True, -1, {}), b"%d " % number, 1))
        for entry in [queue.get() for _ in range(100)]:
            assert entry is not None
            if entry.offset % 2 == 0:
                queue.settle(entry)
            else:
                queue.give_back([entry], False)
        life.settle_down()
        life = lives.after_kill()
        assert numbers_in(life, "source") == list(range(1, 100, 2))

    def test_a_message_for_more_queues_than_a_batch_has_targets_is_recovered(
        self, lives: Lives, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger, "TARGETS_PER_BATCH_MAX", 7)
        life = lives.first()
        fanout = life.vhost.exchange("amq.fanout")
        names = [f"queue-{number}" for number in range(30)]
        for name in names:
            life.vhost.bind(fanout, life.declare(name), "", {})
        for number in range(3):
            life.publish("amq.fanout", "", number)
        life.settle_down()
        life = lives.after_kill()
        assert {name: numbers_in(life, name) for name in names} == {name: [0, 1, 2] for name in names}


def test_transient_messages_of_a_durable_queue_end_with_the_process(lives: Lives) -> None:
    life = lives.first()
    life.declare("work")
    for number in range(20):
        life.publish("", "work", number, persistent=number % 2 == 0)
    life.settle_down()
    life = lives.after_kill()
    assert numbers_in(life, "work") == list(range(0, 20, 2))


def test_counts_of_returns_go_with_a_purge_of_what_is_on_disk_only(lives: Lives) -> None:
    life = lives.first()
    queue = life.declare("work", delivery_limit=5)
    life.fill("work", range(200), size=10 * KIB)
    entries = [entry for entry in [queue.get() for _ in range(200)] if entry is not None]
    queue.give_back(entries, False)
    life.checkpoint(clean=True)
    life = lives.after_kill()
    queue = life.queue("work")
    assert len(queue.backlog.attempts) == 200
    assert queue.backlog.pages_out > 0
    assert queue.purge() == 200
    assert not queue.backlog.attempts


def test_a_queue_of_the_same_name_has_nothing_of_the_one_before(lives: Lives) -> None:
    life = lives.first()
    life.declare("work")
    life.fill("work", range(1000), size=300)
    life.checkpoint()
    life.vhost.delete_queue(life.queue("work"), False, False)
    life.declare("work")
    life.fill("work", range(5000, 5010))
    life.settle_down()
    life = lives.after_kill()
    assert numbers_in(life, "work") == list(range(5000, 5010))
    life = lives.after_stop()
    assert life.drain(life.queue("work")) == list(range(5000, 5010))


def test_logs_of_queues_that_are_gone_are_deleted(lives: Lives) -> None:
    life = lives.first()
    life.declare("work")
    life.declare("passing", durable=False)
    for name in ("work", "passing"):
        life.fill(name, range(1000), size=300)
        life.queue(name).backlog.seal_tail()
        life.store.page_out(life.queue(name).backlog, MIB, 0, 100)
    life.settle_down()
    disk = lives.disk
    assert disk.list(f"{DATA}/queues")
    assert disk.list(f"{DATA}/transient")
    life.vhost.delete_queue(life.queue("work"), False, False)
    life.settle_down()
    life.store.delete_logs()
    life.settle_down()
    assert disk.list(f"{DATA}/queues"), "the catalog may not be durable yet"
    life.store.delete_logs()
    life.pump_until(lambda: not disk.list(f"{DATA}/queues"))
    life = lives.after_kill()
    life.pump_until(lambda: not lives.disk.list(f"{DATA}/transient"))


def test_a_checkpoint_of_version_1_is_read(lives: Lives) -> None:
    life = lives.first()
    life.declare("work")
    life.fill("work", range(1000), size=300)
    life.queue("work").backlog.seal_tail()
    life.store.page_out(life.queue("work").backlog, MIB, 0, 100)
    life.checkpoint()
    life.fill("work", range(1000, 1010))
    life.settle_down()
    folder = f"{DATA}/checkpoints"
    [name] = lives.disk.list(folder)
    lives.disk.write_bytes_atomically(f"{folder}/{name}", as_version_1(lives.disk.read_bytes(f"{folder}/{name}")))
    assert numbers_in(lives.after_kill(), "work") == list(range(1010))


def as_version_1(snapshot: bytes) -> bytes:
    """The same checkpoint as it was written before pages had a due and queues had attempts."""
    header, position = snapshot[16:29], 29
    content = header
    [queues] = struct.unpack(">i", header[-4:])
    for _ in range(queues):
        [pages, attempts] = struct.unpack_from(">ii", snapshot, position + 33)
        assert attempts == 0
        content += snapshot[position : position + 37]
        position += 41
        for _ in range(pages):
            [ranges] = struct.unpack_from(">i", snapshot, position + 64)
            end = position + 68 + 16 * ranges
            content += snapshot[position : position + 32] + snapshot[position + 40 : end]
            position = end
    version = struct.pack(">i", 1)
    return snapshot[:8] + version + struct.pack(">I", crc32c.crc32c(content, crc32c.crc32c(version))) + content
