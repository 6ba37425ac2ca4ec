"""A backlog lies on disk: what is in memory stays within the budget, and everything comes out as it went in."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.broker.commits import ALARM_MEMORY
from tests.broker.life import KIB, MIB, Inbox, Life, PlainProperties, number_of, small_pages

MESSAGE_BYTES = 1000


@pytest.fixture
def disk() -> FaultyFilesystem:
    return FaultyFilesystem(1)


@pytest.fixture
def life(disk: FaultyFilesystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    # Pages are only made small where a budget of a megabyte would otherwise be too few of them.
    small_pages(monkeypatch, 64)
    life = Life(disk, tmp_path / "catalog", budget=12 * MIB, file_bytes=64 * MIB)
    yield life
    life.abandon()


def fill_watching(
    life: Life, names: list[str], count: int, *, persistent: bool = True, priorities: Sequence[int] = (0,)
) -> int:
    """Publish `count` messages to each of the queues as a publisher does that is held back by alarms; the most memory
    that messages took."""
    properties = [PlainProperties(persistent, -1, {}, priority) for priority in priorities]
    highest = 0
    for number in range(count):
        for name in names:
            life.publish("", name, number, size=MESSAGE_BYTES, properties=properties[number % len(properties)])
        if number % 20 == 19:
            life.end_turn()
            life.pump()
            highest = max(highest, int(life.memory.used))
            if ALARM_MEMORY in life.alarms.reasons:
                life.pump_until(lambda: ALARM_MEMORY not in life.alarms.reasons, "the end of the memory alarm")
    life.settle_down()
    return max(highest, int(life.memory.used))


@pytest.mark.parametrize("durable", [True, False])
def test_a_backlog_larger_than_the_budget_is_delivered_in_order_exactly_once(life: Life, durable: bool) -> None:
    queue = life.declare("backlog", durable=durable)
    highest = fill_watching(life, ["backlog"], 40_000)
    assert highest < life.memory.budget_bytes * 1.1
    assert queue.backlog.pages_out > 0
    assert queue.ready == 40_000
    highest = 0

    inbox = Inbox(queue, 500)
    queue.add_consumer(inbox)
    numbers: list[int] = []

    def is_empty() -> bool:
        nonlocal highest
        highest = max(highest, int(life.memory.used))
        for entry in inbox.take():
            assert not entry.redelivered
            numbers.append(number_of(entry.message))
            queue.settle(entry)
        life.end_turn()
        return queue.ready == 0 and queue.unsettled == 0

    life.pump_until(is_empty)
    assert numbers == list(range(40_000))
    assert highest < life.memory.budget_bytes * 1.1
    life.settle_down()
    assert life.memory.used == 0
    assert queue.resident_bytes == 0
    assert queue.ready_bytes == 0


@pytest.mark.parametrize("durable", [True, False])
def test_a_backlog_of_several_priorities_is_delivered_highest_first(life: Life, durable: bool) -> None:
    queue = life.declare("urgent", durable=durable, max_priority=5)
    highest = fill_watching(life, ["urgent"], 30_000, priorities=(0, 5, 2))
    assert sum(int(lane.pages_out) for lane in queue.backlogs()) > 0
    life.settle_down()
    life.check_counts()
    expected = [number for place in (1, 2, 0) for number in range(place, 30_000, 3)]
    assert life.drain(queue, prefetch=500) == expected
    assert highest < life.memory.budget_bytes * 1.1
    assert life.memory.used == 0


def test_publishing_to_many_queues_without_consumers_does_not_block_for_ever(life: Life) -> None:
    names = [f"queue-{number}" for number in range(40)]
    for name in names:
        life.declare(name)
    # No queue holds enough for a page beyond those that are kept for consumers.
    highest = fill_watching(life, names, 600)
    assert highest < life.memory.budget_bytes * 1.1
    assert not life.alarms.reasons
    life.check_counts()
    for name in names:
        assert life.drain(life.queue(name)) == list(range(600))
    assert life.memory.used == 0


def test_small_messages_are_paged_out_by_what_they_take_in_memory(life: Life) -> None:
    queue = life.declare("small")
    properties = PlainProperties(True, -1, {})
    for number in range(60_000):
        life.publish("", "small", number, properties=properties)
        if number % 500 == 499:
            life.end_turn()
            life.pump()
    life.settle_down()
    life.check_counts()
    assert life.memory.used < life.memory.budget_bytes
    # It has not given up more than was asked for either.
    assert life.memory.used > life.memory.page_out_bytes // 4
    assert life.drain(queue) == list(range(60_000))


def test_pages_are_full_when_a_slow_publisher_is_paged_out(life: Life) -> None:
    """Memory that is short is no reason to write a page for every turn."""
    queue = life.declare("slow")
    life.declare("other")
    fill_watching(life, ["other"], 20_000)
    pages_before = life.store.pages_started_total
    for number in range(2000):
        life.publish("", "slow", number, size=100)
        life.end_turn()
        life.pump()
    life.settle_down()
    assert life.store.pages_started_total - pages_before < 200
    assert life.drain(queue) == list(range(2000))


def test_transient_and_persistent_messages_of_one_queue_are_paged_together(life: Life) -> None:
    queue = life.declare("mixed")
    transient, persistent = PlainProperties(False, -1, {}), PlainProperties(True, -1, {})
    for number in range(30_000):
        life.publish(
            "", "mixed", number, size=MESSAGE_BYTES, properties=transient if number // 3000 % 2 else persistent
        )
        if number % 20 == 19:
            life.end_turn()
            life.pump()
        if number == 15_000:
            life.checkpoint()
    life.settle_down()
    assert life.memory.used < life.memory.budget_bytes
    life.check_counts()
    assert life.drain(queue) == list(range(30_000))
    assert life.memory.used == 0


class TestNothingIsLeftBehind:
    """`memory.used` is 0 when every message is gone, however it went."""

    @pytest.fixture(autouse=True)
    def backlog(self, life: Life) -> None:
        vhost = life.vhost
        for name in ("one", "two", "three"):
            queue = life.declare(name, durable=name != "three", dead_letter_exchange="", dead_letter_routing_key="dead")
            vhost.bind(vhost.exchange("amq.fanout"), queue, "", {})
        properties = PlainProperties(True, -1, {})
        for number in range(12_000):
            life.publish("amq.fanout", "", number, size=MESSAGE_BYTES, properties=properties)
            if number % 20 == 19:
                life.end_turn()
                life.pump()
        life.settle_down()
        assert all(life.queue(name).backlog.pages_out > 0 for name in ("one", "two", "three"))

    def test_consumed(self, life: Life) -> None:
        life.check_counts()
        for name in ("one", "two", "three"):
            assert life.drain(life.queue(name)) == list(range(12_000))
        assert life.memory.used == 0

    def test_purged(self, life: Life) -> None:
        for name in ("one", "two", "three"):
            queue = life.queue(name)
            entry = queue.get()
            assert entry is not None
            assert queue.purge() == 11_999
            life.end_turn()
            life.check_counts()
            queue.settle(entry)
            life.settle_down()
            life.check_counts()
        assert life.memory.used == 0

    def test_purged_while_pages_are_read_ahead(self, life: Life) -> None:
        queue = life.queue("one")
        inbox = Inbox(queue, 100)
        queue.add_consumer(inbox)
        life.end_turn()
        queue.backlog.read_ahead()
        queue.purge()
        life.settle_down()
        for entry in inbox.take():
            queue.settle(entry)
        life.settle_down()
        life.check_counts()
        assert queue.ready == queue.unsettled == 0

    def test_deleted(self, life: Life) -> None:
        for name in ("one", "two", "three"):
            life.vhost.delete_queue(life.queue(name), False, False)
            life.check_counts()
        life.settle_down()
        assert life.memory.used == 0

    def test_deleted_while_pages_are_written_and_read(self, life: Life) -> None:
        for name in ("one", "two", "three"):
            queue = life.queue(name)
            queue.add_consumer(Inbox(queue))
            queue.backlog.read_ahead()
            queue.backlog.seal_tail()
            life.store.page_out(queue.backlog, MIB, 0, 10)
            life.vhost.delete_queue(queue, False, False)
        life.settle_down()
        assert life.memory.used == 0

    def test_dead_lettered(self, life: Life) -> None:
        dead = life.declare("dead")
        for name in ("one", "two", "three"):
            queue = life.queue(name)
            inbox = Inbox(queue, 500)
            queue.add_consumer(inbox)

            def is_empty(inbox: Inbox = inbox) -> bool:
                for entry in inbox.take():
                    inbox.queue.reject(entry)
                life.end_turn()
                return inbox.queue.ready == 0 and inbox.queue.unsettled == 0

            life.pump_until(is_empty)
            queue.remove_consumer(inbox)
        life.settle_down()
        life.check_counts()
        assert life.memory.used < life.memory.budget_bytes
        assert life.drain(dead) == list(range(12_000)) * 3
        assert life.memory.used == 0

    def test_given_back_and_consumed(self, life: Life) -> None:
        queue = life.queue("one")
        inbox = Inbox(queue, 3000)
        queue.add_consumer(inbox)
        life.pump_until(lambda: len(inbox.entries) == 3000)
        queue.remove_consumer(inbox)
        entries = inbox.take()
        queue.give_back(entries[1::2], False)
        queue.give_back(entries[::2], False)
        life.settle_down()
        life.check_counts()
        assert life.drain(queue) == list(range(12_000))
        life.settle_down()
        life.check_counts()

    def test_lost(self, life: Life, disk: FaultyFilesystem) -> None:
        queue = life.queue("one")
        lost = [page for page in queue.backlog.pages if not page.resident][3:9]
        for page in lost:
            assert page.place is not None
            path = f"{life.store.log_folder(queue.log_id, True)}/{page.place.segment_base:020d}.log"
            disk.flip_bit(path, (page.place.position + 100) * 8 + 3)
        gone = {offset for page in lost for offset in range(page.start, page.end)}
        assert life.drain(queue) == [number for number in range(12_000) if number not in gone]
        life.settle_down()
        life.check_counts()
        assert queue.ready == 0
        assert queue.ready_bytes == 0
        assert queue.resident_bytes == 0

    def test_taken_one_by_one(self, life: Life) -> None:
        queue = life.queue("one")
        for number in range(12_000):
            entry = queue.get()
            assert entry is not None
            assert number_of(entry.message) == number
            queue.settle(entry)
            if number % 500 == 0:
                life.end_turn()
                life.pump()
        assert queue.get() is None
        life.settle_down()
        life.check_counts()


def test_a_page_whose_base_offset_is_damaged_is_not_served(life: Life, disk: FaultyFilesystem) -> None:
    """The checksum of a batch does not cover its base offset, so the page's place in the queue does."""
    queue = life.declare("backlog")
    fill_watching(life, ["backlog"], 20_000)
    page = next(page for page in queue.backlog.pages if not page.resident)
    assert page.place is not None
    path = f"{life.store.log_folder(queue.log_id, True)}/{page.place.segment_base:020d}.log"
    disk.flip_bit(path, page.place.position * 8 + 61)
    gone = range(int(page.start), int(page.end))
    assert life.drain(queue) == [number for number in range(20_000) if number not in gone]


@pytest.mark.parametrize("by_get", [True, False])
def test_a_page_that_cannot_be_read_for_want_of_descriptors_is_read_later(
    life: Life, disk: FaultyFilesystem, by_get: bool
) -> None:
    queue = life.declare("backlog", durable=False)
    fill_watching(life, ["backlog"], 20_000, persistent=False)
    life.store.page_out(queue.backlog, 1 << 30, 0, 0)
    assert not queue.backlog.pages[0].resident
    disk.fail("read", errno.EMFILE, times=1 << 30)
    if by_get:
        assert queue.get() is None
        life.settle_down()
        disk.heal()
        life.store.resume()
    else:
        inbox = Inbox(queue, 10)
        queue.add_consumer(inbox)
        life.settle_down()
        assert not inbox.entries
        disk.heal()
        life.store.resume()
        life.pump_until(lambda: len(inbox.entries) == 10)
        queue.remove_consumer(inbox)
        queue.give_back(inbox.take(), False)
    life.settle_down()
    assert life.drain(queue) == list(range(20_000))


def test_pages_that_could_not_be_written_stay_in_memory_and_are_written_later(
    life: Life, disk: FaultyFilesystem
) -> None:
    queue = life.declare("backlog")
    disk.fail("write", errno.ENOSPC, times=1 << 30, path="/queues/")
    properties = PlainProperties(True, -1, {})
    for number in range(8000):
        life.publish("", "backlog", number, size=MESSAGE_BYTES, properties=properties)
        if number % 20 == 19:
            life.end_turn()
            life.pump()
    life.settle_down()
    assert queue.backlog.pages_out == 0
    assert life.store.pages_started_total < 100, "a disk that is full is not asked again every turn"
    life.check_counts()
    disk.heal()
    life.store.resume()
    life.broker.pager.look_again()
    life.turn.touch()
    life.settle_down()
    life.pump_until(lambda: life.memory.used <= life.memory.page_out_bytes or bool(life.turn.touch()))
    life.check_counts()
    assert life.drain(queue) == list(range(8000))
    assert life.memory.used == 0


def test_segments_of_a_transient_queue_go_when_they_are_settled(life: Life, disk: FaultyFilesystem) -> None:
    queue = life.declare("passing", durable=False)
    fill_watching(life, ["passing"], 20_000, persistent=False)
    folder = life.store.log_folder(queue.log_id, False)
    assert any(name.endswith(".log") for name in disk.list(folder))
    life.drain(queue)
    life.store.trim_transient()
    life.settle_down()
    life.pump_until(lambda: not any(name.endswith(".log") for name in disk.list(folder)), "trimming")


def test_segments_of_a_durable_queue_go_with_the_next_checkpoint(life: Life, disk: FaultyFilesystem) -> None:
    queue = life.declare("backlog")
    fill_watching(life, ["backlog"], 20_000)
    folder = life.store.log_folder(queue.log_id, True)

    def segments() -> list[str]:
        return [name for name in disk.list(folder) if name.endswith(".log")]

    life.checkpoint()
    before = segments()
    assert life.drain(queue) == list(range(20_000))
    life.store.trim_transient()
    life.settle_down()
    # The checkpoint on the disk still speaks of them.
    assert segments() == before
    life.checkpoint()
    life.pump_until(lambda: not segments(), "trimming")


def test_what_is_settled_after_the_snapshot_was_taken_is_not_trimmed_by_it(
    life: Life, disk: FaultyFilesystem, tmp_path: Path
) -> None:
    """The settlements may be lost with the power, and with them the dead-lettering that they came with."""
    queue = life.declare("backlog", dead_letter_exchange="", dead_letter_routing_key="dead")
    life.declare("dead")
    fill_watching(life, ["backlog"], 10_000)
    life.checkpoint()
    for number in range(7000):
        if number == 3000:
            # What was settled before is what this checkpoint trims the log by.
            life.settle_down()
            life.checkpointer.begin()
            life.pump_until(lambda: not life.checkpointer._collecting)
        entry = queue.get()
        assert entry is not None
        if number < 3000:
            queue.settle(entry)
        else:
            queue.reject(entry)
    life.pump_until(lambda: not life.checkpointer.running)
    trimmed: list[None] = []
    life.store.run_on_writer(lambda: None, lambda _: trimmed.append(None))
    life.pump_until(lambda: bool(trimmed))
    disk.sync_folder(life.store.log_folder(queue.log_id, True))
    crashed = disk.copy_for_crash()
    life.copy_durable_catalog(tmp_path / "again")
    crashed.crash()
    again = Life(crashed, tmp_path / "again")
    found = again.contents(again.queue("backlog")) + again.contents(again.queue("dead"))
    assert sorted(number for _, number, _ in found) == list(range(3000, 10_000))
    again.abandon()


def test_a_backlog_that_is_drained_is_trimmed_without_a_full_journal(
    life: Life, disk: FaultyFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements take little of the journal, so it is what they settle that makes a checkpoint due."""
    monkeypatch.setattr("millpond.broker.checkpoint.CHECKPOINT_SETTLED_BYTES", 4 * MIB)
    queue = life.declare("backlog")
    fill_watching(life, ["backlog"], 20_000)
    life.checkpoint()
    completed = life.checkpointer.completed_total
    life.drain(queue)
    life.settle_down()
    assert life.checkpointer.completed_total > completed


def test_ten_thousand_queues_and_a_long_backlog_cost_little_per_turn(life: Life) -> None:
    """What a turn looks at is bounded, whatever there is."""
    for number in range(2000):
        life.declare(f"queue-{number}", durable=False)
    life.end_turn()
    life.declare("backlog")
    fill_watching(life, ["backlog"], 30_000)
    calls = 0

    def all_queues() -> list[object]:
        nonlocal calls
        calls += 1
        return list(life.vhost.queues.values())

    life.broker.pager._all_queues = all_queues  # type: ignore[assignment]
    for number in range(200):
        life.publish("", "backlog", number, size=KIB)
        life.end_turn()
        life.pump()
    assert calls == 0


def test_looking_for_expired_messages_does_not_read_pages_again_and_again(
    tmp_path: Path, disk: FaultyFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pages(monkeypatch)
    life = Life(disk, tmp_path / "small", budget=40 * KIB)
    queue = life.declare("work", message_ttl=60_000, max_priority=5)
    held = []
    for priority in (0, 5):
        for number in range(8):
            life.publish("", "work", number, size=MESSAGE_BYTES, priority=priority)
        held += [queue.get() for _ in range(8)]
    for number in range(200):
        life.publish("", "work", number, size=MESSAGE_BYTES, priority=5 * (number % 2))
        life.end_turn()
        life.pump()
    # Of both priorities the first page is in somebody's hands, the next is on disk, and memory is short.
    life.turn.touch_queue(queue)
    life.settle_down()
    for entry in held:
        assert entry is not None
        queue.settle(entry)
    assert life.drain(queue) == [*range(1, 200, 2), *range(0, 200, 2)]
    life.settle_down()
    life.check_counts()
    life.abandon()
