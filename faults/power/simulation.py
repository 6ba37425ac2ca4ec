"""Lives of a broker that end at random points, by power cuts and kills, and what must be there afterwards.

After each turn of the event loop the test notes what persistent messages every queue has. One turn is one commit, so
what a recovery brings back must be exactly what there was after some turn: not before the last one that was reported
durable, and the same turn for all queues. That is stronger than looking for each message: it covers order, phantoms,
messages that come back after their settlement, and transactions that are done by half.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.base.clock import ManualClock
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.broker import checkpoint, ledger
from millpond.broker.queues import delayed_backlog
from millpond.broker.queues.backlog import queue_id
from millpond.broker.queues.entry import Entry
from millpond.broker.streams import cleaner, stream_store
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.stream_queue import StreamQueue
from tests.broker.life import KIB, Inbox, Life, PlainProperties, copy_catalog, log_of, small_pages

NAMES = ("plain", "poison", "limited", "short-lived", "left", "right", "urgent", "tried", "retried")
STREAMS = ("history", "recent")
# The delayed exchange.
LATER = "later"
# A stream that is compacted. A message's key is the rest of its number.
TABLE = "table"
TABLE_KEYS = 7

# The number of turns that are never durable.
NEVER = 1 << 60

# Offset and number of each persistent message, and how often it came back where that is counted, by the log's id.
State = dict[int, list[tuple[int, int, int]]]


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have little fill whatever has a limit, where the source runs uncompiled."""
    small_pages(monkeypatch)
    monkeypatch.setattr(checkpoint, "CARRY_FORWARD_BYTES", 600)
    # Where the source runs uncompiled a turn takes several frames, and must be atomic all the same.
    monkeypatch.setattr(ledger, "LEDGER_FRAME_BYTES", 4000)
    monkeypatch.setattr(ledger, "LEDGER_BATCH_BYTES", 2000)
    # So that memory is often too short for what waits for its time.
    monkeypatch.setattr(delayed_backlog, "DELAYED_PAGES_AWAKE_MIN", 3)
    monkeypatch.setattr(delayed_backlog, "DELAYED_PAGES_SORTED", 2)
    monkeypatch.setattr(delayed_backlog, "DELAYED_LOG_WASTE_BYTES", 2000)
    monkeypatch.setattr(delayed_backlog, "DELAYED_LOG_CHECK_MS", 300)
    monkeypatch.setattr(cleaner, "COMPACTION_RETRY_MS", 100)
    monkeypatch.setattr(stream_store, "STREAM_CHECK_INTERVAL_MS", 400)


class Simulation:
    """One broker through several lives."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.choose = random.Random(seed)
        self.folder = folder
        self.disk = self.new_disk(seed)
        self.next_number = 0
        self.may_expire: set[int] = set()
        self.lives = 0
        self.catalog = folder / "catalog-0"
        self.recent = -1
        self.life = self._new_life(set(), 1_700_000_000_000)

    def _new_life(self, deleted: set[int], wall_ms: int) -> Life:
        budget = self.choose.choice([20 * KIB, 40 * KIB, 1 << 30])
        file_bytes = self.choose.choice([8 * KIB, 30 * KIB, 256 * KIB])
        life = self.begin_life(budget, file_bytes, ManualClock(wall_ms))
        self.life = life
        self.deleted: set[int] = set()
        for queue in life.broker.all_queues():
            if int(queue.log_id) in deleted:
                # Nobody waited for the deletion to be durable, and so it may be undone; its messages are gone.
                life.vhost.remove_queue(queue)
                self.deleted.add(int(queue.log_id))
        self.inboxes: dict[str, Inbox] = {}
        self.unsettled: list[Entry] = []
        # (sequence that covers it, what there was after it)
        self.history: list[tuple[int, State]] = []
        self.transients: dict[int, dict[int, int]] = {}
        # Before the ledger hands the turn over: its number is the one that will cover it.
        life.turn.commits.insert(0, self._turn_ending)
        life.turn.commits.append(self._turn_ended)
        self.history.append((0, self.state()))
        return life

    def new_disk(self, seed: int) -> FaultyFilesystem:
        return FaultyFilesystem(seed)

    def begin_life(self, budget: int, file_bytes: int, clock: ManualClock) -> Life:
        return Life(self.disk, self.catalog, budget=budget, file_bytes=file_bytes, clock=clock)

    # --- Acting -----------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Declare what is missing."""
        life = self.life
        vhost = life.vhost
        life.declare("plain")
        life.declare("poison")
        life.declare("urgent", max_priority=4)
        life.declare("tried", delivery_limit=2, dead_letter_exchange="", dead_letter_routing_key="poison")
        life.declare("limited", max_length=12, dead_letter_exchange="", dead_letter_routing_key="poison")
        life.declare("short-lived", message_ttl=1000, dead_letter_exchange="", dead_letter_routing_key="poison")
        for name in ("left", "right"):
            queue = life.declare(name, dead_letter_exchange="", dead_letter_routing_key="poison")
            vhost.bind(vhost.exchange("amq.fanout"), queue, "", {})
        vhost.bind(vhost.exchange("amq.fanout"), life.declare("passing", durable=False), "", {})
        vhost.bind(vhost.exchange("amq.fanout"), life.declare_stream("history"), "", {})
        recent = life.declare_stream("recent", max_length_bytes=6 * KIB, stream_max_segment_size_bytes=2 * KIB)
        self.recent = int(recent.log_id)
        table = life.declare_stream(TABLE, stream_max_segment_size_bytes=KIB)
        vhost.bind(vhost.exchange("amq.topic"), table, f"{TABLE}.*", {})
        compact(log_of(table))
        life.declare("retried", queue_type="quorum", delivery_limit=4, delayed_retry_type="all", delayed_retry_min=700)
        vhost.declare_exchange(LATER, "x-delayed-message", True, False, False, {"x-delayed-type": "direct"})
        for name in ("plain", "retried"):
            vhost.bind(vhost.exchange(LATER), life.queue(name), name, {})

    def publish(self) -> None:
        choose = self.choose
        exchange, key = choose.choice(
            [("", choose.choice(NAMES + STREAMS)), ("", choose.choice(NAMES)), ("amq.fanout", ""), ("amq.topic", TABLE)]
        )
        for _ in range(choose.choice([1, 1, 3, 20])):
            expiration_ms = choose.choice([-1, -1, -1, -1, 500])
            if expiration_ms > 0 or key == "short-lived":
                self.may_expire.add(self.next_number)
            self.life.publish(
                exchange,
                f"{TABLE}.{self.next_number % TABLE_KEYS}" if key == TABLE else key,
                self.next_number,
                size=choose.choice([0, 30, 30, 700]),
                persistent=choose.random() < 0.8,
                expiration_ms=expiration_ms,
                priority=choose.choice([0, 0, 1, 3, 9]),
            )
            self.next_number += 1

    def publish_later(self) -> None:
        choose = self.choose
        for _ in range(choose.choice([1, 3, 20])):
            headers: dict[str, object] = {"x-delay": choose.choice([5, 300, 3000, choose.randrange(10_000)])}
            self.life.publish(
                LATER,
                choose.choice(["plain", "retried", "nowhere"]),
                self.next_number,
                size=choose.choice([0, 30, 700]),
                properties=PlainProperties(choose.random() < 0.8, -1, headers),
            )
            self.next_number += 1

    def consume(self) -> None:
        name = self.choose.choice(NAMES)
        inbox = self.inboxes.pop(name, None)
        queue = self.life.queue(name)
        if inbox is None:
            self.inboxes[name] = inbox = Inbox(queue, self.choose.choice([1, 5, 30]))
            queue.add_consumer(inbox)
        else:
            queue.remove_consumer(inbox)
            self.unsettled += inbox.take()

    def read_along(self) -> None:
        """A stream's consumer comes, from anywhere, or leaves."""
        name = self.choose.choice(STREAMS)
        stream = self.life.stream(name)
        inbox = self.inboxes.pop(name, None)
        if inbox is not None:
            stream.remove_consumer(inbox)
            self.unsettled += inbox.take()
            return
        offset = self.choose.choice(["first", "last", "next", self.choose.randrange(100), "1s"])
        self.inboxes[name] = inbox = Inbox(stream, self.choose.choice([1, 5, 30]), offset=offset)
        stream.add_consumer(inbox)

    def get(self) -> None:
        entry = self.life.queue(self.choose.choice(NAMES)).get()
        if entry is not None:
            self.unsettled.append(entry)

    def settle(self) -> None:
        for inbox in self.inboxes.values():
            self.unsettled += inbox.take()
        self.choose.shuffle(self.unsettled)
        count = self.choose.randrange(len(self.unsettled) + 1)
        chosen, self.unsettled = self.unsettled[:count], self.unsettled[count:]
        if self.choose.random() < 0.5:
            chosen.sort(key=lambda entry: int(entry.offset))
        for entry in chosen:
            queue = entry.queue
            if queue is None:
                continue
            fate = self.choose.random()
            if fate < 0.7:
                queue.settle(entry)
            elif fate < 0.85:
                queue.reject(entry)
            else:
                queue.give_back([entry], False)

    def purge(self) -> None:
        self.life.queue(self.choose.choice(NAMES)).purge()

    def redeclare(self) -> None:
        name = self.choose.choice(NAMES + STREAMS)
        queue = self.life.vhost.queue(name, None)
        self.deleted.add(int(queue.log_id))
        inbox = self.inboxes.pop(name, None)
        if inbox is not None:
            inbox.take()
        self.life.vhost.delete_queue(queue, False, False)
        if self.choose.random() < 0.5:
            self.end_turn()
        self.set_up()

    def transaction(self) -> None:
        self.publish()
        self.settle()
        self.publish()

    def let_time_pass(self) -> None:
        self.life.clock.advance(self.choose.choice([10, 400, 2000, 6000]))
        self.life.store.resume()
        self.life.store.trim_transient()
        self.life.broker.streams.keep_house()

    def checkpoint(self) -> None:
        if not self.life.checkpointer.running:
            self.life.turn.touch()
            self.note(self.life.checkpointer.begin)

    def fill_disk(self) -> None:
        self.disk.fail("write", errno.ENOSPC, nth=self.choose.randrange(1, 4), times=self.choose.randrange(1, 4))

    def step(self) -> None:
        actions = (
            [self.publish] * 8
            + [self.publish_later] * 3
            + [self.consume] * 2
            + [self.read_along]
            + [self.settle] * 5
            + [self.transaction] * 2
        )
        actions += [self.get, self.get, self.purge, self.redeclare, self.let_time_pass, self.let_time_pass]
        actions += [self.checkpoint, self.fill_disk]
        self.act(self.choose.choice(actions))
        if self.choose.random() < 0.3:
            self.life.ledger.sync_wanted = True
        self.end_turn()
        pace = self.choose.random()
        if pace < 0.6:
            self.note(self.life.pump)
        elif pace < 0.65:
            self.note(self.life.settle_down)

    def act(self, action: Callable[[], None]) -> None:
        action()

    # --- Noting -----------------------------------------------------------------------------------------------------

    def end_turn(self) -> None:
        self.note(self.life.end_turn)

    def note(self, act: Callable[[], None]) -> None:
        """Do something that ends turns, and note what there is after each."""
        act()
        self.history.append((self._next_sequence() - 1, self.state()))

    def _turn_ending(self) -> None:
        self._sequence = self._next_sequence()

    def _next_sequence(self) -> int:
        """The number of the turn that is handed over next. A journal that has failed counts no more."""
        journal = self.life.journal
        return NEVER if journal.failure is not None else int(journal.sequence)

    def _turn_ended(self) -> None:
        self.history.append((self._sequence, self.state()))

    def state(self) -> State:
        state: State = {}
        for queue in self.life.broker.all_queues():
            if isinstance(queue, StreamQueue):
                contents = self.life.stream_contents(queue)
                if queue.name == TABLE:
                    contents = latest(contents)
                state[int(queue.log_id)] = [(offset, number, 0) for offset, number in contents]
        for lane in self.life.broker.all_backlogs():
            if lane.recoverable:
                contents = self.life.contents_of(lane)
                state[int(lane.log_id)] = [
                    (offset, number, lane.attempts.get(offset, 0))
                    for offset, number, persistent in contents
                    if persistent
                ]
                known = self.transients.setdefault(int(lane.log_id), {})
                known.update((offset, number) for offset, number, persistent in contents if not persistent)
        return state

    # --- Ending -----------------------------------------------------------------------------------------------------

    def way_to_end(self) -> str:
        return self.choose.choice(["power cut", "power cut", "kill", "clean stop"])

    def end(self) -> None:
        """End this life in one way or another, begin the next, and check what it finds."""
        old = self.life
        way = self.way_to_end()
        self.lives += 1
        catalog = self.folder / f"catalog-{self.lives}"
        if way == "clean stop":
            self.disk.heal()
            self.note(old.settle_down)
            self.note(old.checkpoint)
            told = int(old.journal.sequence) - 1
            old.stop()
            copy_catalog(self.catalog, catalog)
        else:
            told = old.told.durable if way == "power cut" else int(old.journal.written_sequence)
            with self.disk.guard:
                disk = self.disk.copy_for_crash() if way == "power cut" else self.disk.copy()
            if way == "kill":
                copy_catalog(self.catalog, catalog)
            else:
                old.copy_durable_catalog(catalog)
            old.vanish()
            if way == "power cut":
                disk.crash(keeps_some=self.choose.random() < 0.7)
            self.disk = disk
        self.catalog = catalog
        self.recent = int(old.stream("recent").log_id) if old.vhost.find_queue("recent") is not None else -1
        history, deleted, transients = self.history, self.deleted, self.transients
        life = self._new_life(deleted, old.clock.wall_ms() + self.choose.choice([0, 1000, 100_000]))
        life.check_counts()
        self._check(way, told, history, transients)
        if life.checkpoint_wanted and self.choose.random() < 0.8:
            life.turn.touch()
            life.checkpointer.begin()
        self.set_up()

    def _check(
        self,
        way: str,
        told: int,
        history: list[tuple[int, State]],
        transients: dict[int, dict[int, int]],
    ) -> None:
        found = self.state()
        promised = max((index for index, (sequence, _) in enumerate(history) if sequence <= told), default=0)
        # Turns that changed nothing durable share a number with the next that does.
        while promised > 0 and history[promised - 1][0] == history[promised][0]:
            promised -= 1
        # A lane that was empty may not have been begun again.
        queues = {queue_id(int(lane.log_id)) for lane in self.life.broker.all_backlogs() if lane.recoverable}
        for _, state in history:
            found.update((log_id, []) for log_id in state if log_id not in found and queue_id(log_id) in queues)
        candidates = [
            {log_id: state.get(log_id, []) for log_id in found} for _, state in history[max(0, promised - 1) :]
        ]
        assert any(self._is_same(found, candidate) for candidate in candidates), (
            f"after a {way} of life {self.lives}, with {told} promised, there is what never was:\n"
            + "\n".join(
                f"{log_id}: found {entries}\n   last {candidates[-1][log_id]}\n   promised {candidates[0][log_id]}"
                for log_id, entries in found.items()
                if entries != candidates[-1][log_id]
            )
        )
        for lane in self.life.broker.all_backlogs():
            if lane.recoverable:
                for offset, number, persistent in self.life.contents_of(lane):
                    assert persistent or transients[int(lane.log_id)].get(offset) == number, "a phantom"

    def _is_same(self, found: State, expected: State) -> bool:
        """Whether all is there that should be. What retention deletes from a stream, it deletes without a commit: so it
        may be back, or be gone already."""
        for log_id, entries in found.items():
            wanted = expected[log_id]
            start = 0
            if log_id == self.recent and entries and wanted:
                start = max(entries[0][0], wanted[0][0])
            if [entry for entry in entries if entry[0] >= start] != [entry for entry in wanted if entry[0] >= start]:
                return False
        return True

    def finish(self) -> None:
        """Consume everything: what comes is what there is, in order, and nothing is left behind in memory."""
        life = self.life
        self.disk.heal()
        for name, inbox in self.inboxes.items():
            life.vhost.queue(name, None).remove_consumer(inbox)
            self.unsettled += inbox.take()
        for entry in self.unsettled:
            if entry.queue is not None:
                entry.queue.give_back([entry], False)
        for _ in range(20):
            # Until nothing waits for its time any more.
            life.clock.advance(1000)
            life.turn.now_ms = life.clock.wall_ms()
            life.store.resume()
            life.settle_down()
        life.check_counts()
        assert life.vhost.delay_queues[LATER].delayed == life.queue("retried").delayed == 0
        for name in STREAMS:
            stream = life.stream(name)
            assert life.replay(stream) == life.stream_contents(stream)
            life.vhost.delete_queue(stream, False, False)
        table = life.stream(TABLE)
        assert latest(life.replay(table)) == latest(life.stream_contents(table))
        life.vhost.delete_queue(table, False, False)
        for queue in map(life.queue, list(life.vhost.queues)):
            life.clock.advance(2000)
            life.turn.now_ms = life.clock.wall_ms()
            life.settle_down()
            expected = [number for _, number, _ in life.contents(queue)]
            drained = life.drain(queue)
            # An expired message that is not at the head is discarded when its turn comes.
            expired = self.may_expire - set(drained)
            if queue.name == "retried":
                # What came back leaves in the order of its times.
                drained.sort()
                expected.sort()
            assert drained == [number for number in expected if number not in expired]
        poison = life.queue("poison")
        life.drain(poison)
        life.settle_down()
        life.check_counts()
        assert life.memory.used == 0
        life.abandon()


def compact(log: Partition) -> None:
    """Have a stream compacted as often as possible."""
    log.compacts = True
    log.deletes = False
    log.segment_ms = 1000
    log.min_cleanable_dirty_ratio = 0.01


def latest(contents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What must be left of each key, whether or not compaction has been there."""
    last = {number % TABLE_KEYS: offset for offset, number in contents}
    return [(offset, number) for offset, number in contents if last[number % TABLE_KEYS] == offset]
