"""Topics as exchanges: what is routed to whom, and that each record is routed once wherever a broker's life ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from millpond.base.clock import ManualClock
from millpond.base.errors import CorruptData, NotFound, PreconditionFailed
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.broker import checkpoint, ledger
from millpond.broker.commits import ALARM_MEMORY
from millpond.broker.queues.queue import Queue
from millpond.broker.streams import record_router
from millpond.broker.streams.record_router import RecordRouter, decode_cursor, encode_cursor
from millpond.storage.batch_rewrite import recompressed
from millpond.storage.compression import GZIP
from millpond.storage.record_batch import BatchBuilder
from tests.broker.life import KIB, Life, copy_catalog, number_of, small_pages

TOPIC = "orders"


@pytest.fixture
def disk() -> FaultyFilesystem:
    return FaultyFilesystem(1)


@pytest.fixture
def life(disk: FaultyFilesystem, tmp_path: Path) -> Iterator[Life]:
    life = Life(disk, tmp_path / "catalog")
    life.vhost.topics.create(TOPIC, 1, {})
    yield life
    life.abandon()


def batch(*numbers: int, key: bytes | None = b"k", size: int = 0) -> bytes:
    """A batch as Kafka's producers make it; each value begins with its number."""
    builder = BatchBuilder()
    for delta, number in enumerate(numbers):
        value = (b"%d " % number).ljust(size, b"x")
        builder.append_with_headers(delta, 1_700_000_000_000, key, value, [(b"n", b"%d" % (number % 2))])
    return builder.finish(0, len(numbers) - 1)


def produce(life: Life, *numbers: int, topic: str = TOPIC, partition: int = 0, key: bytes | None = b"k") -> None:
    life.turn.touch()
    life.vhost.topics.topic(topic).partitions[partition].append(batch(*numbers, key=key))


def bind(life: Life, queue: Queue, key: str = "", topic: str = TOPIC, **arguments: object) -> None:
    named = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
    life.vhost.bind(life.vhost.exchange(topic), queue, key, named)


def unbind(life: Life, queue: Queue, key: str = "", **arguments: object) -> None:
    named = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
    life.vhost.unbind(life.vhost.exchange(TOPIC), queue, key, named)


def routers(life: Life, topic: str = TOPIC) -> list[RecordRouter]:
    return list(life.vhost.sources.routers_of(life.vhost.topics.topic(topic)))


def numbers_in(life: Life, queue: Queue) -> list[int]:
    life.settle_down()
    return [number for _, number, _ in life.contents_of(queue.backlog)]


def taken(life: Life, queue: Queue) -> list[int]:
    life.settle_down()
    return life.drain(queue)


def killed(life: Life, disk: FaultyFilesystem, folder: Path) -> Life:
    """The next life after a kill."""
    with disk.guard:
        copy = disk.copy()
    catalog = folder / f"{life.catalog_folder.name}-next"
    copy_catalog(life.catalog_folder, catalog)
    return Life(copy, catalog)


# --- What is routed ---------------------------------------------------------------------------------------------------


def test_records_before_the_binding_are_not_routed_and_those_after_it_are(life: Life) -> None:
    queue = life.declare("work")
    produce(life, 1, 2)
    bind(life, queue)
    produce(life, 3, 4)
    assert taken(life, queue) == [3, 4]


def test_several_bindings_that_match_bring_a_record_once(life: Life) -> None:
    queue = life.declare("work")
    for key in ("", "#", "k", "*"):
        bind(life, queue, key)
    produce(life, 1)
    assert taken(life, queue) == [1]
    for key in ("", "#", "k"):
        unbind(life, queue, key)
    produce(life, 2)
    assert taken(life, queue) == [2]


def test_a_subscription_reads_history_while_others_go_on(life: Life) -> None:
    live, replayed = life.declare("live"), life.declare("replayed")
    bind(life, live)
    produce(life, 1, 2, 3)
    assert taken(life, live) == [1, 2, 3]
    bind(life, replayed, stream_offset="first")
    produce(life, 4)
    assert taken(life, replayed) == [1, 2, 3, 4]
    assert taken(life, live) == [4]
    unbind(life, replayed, stream_offset="first")
    produce(life, 5)
    assert taken(life, live) == [5]
    assert taken(life, replayed) == []
    assert len(routers(life)) == 1


def test_a_record_that_matches_nothing_is_passed_over(life: Life) -> None:
    queue = life.declare("work")
    bind(life, queue, "orders.*")
    produce(life, 1, key=b"invoices")
    produce(life, 2, key=b"orders.new")
    produce(life, 3, key=None)
    assert taken(life, queue) == [2]
    [router] = routers(life)
    assert (int(router.routed_total), int(router.unroutable_total), int(router.lag)) == (1, 2, 0)


def test_a_large_batch_takes_several_turns(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_router, "ROUTED_RECORDS_PER_TURN_MAX", 10)
    queue = life.declare("work")
    bind(life, queue)
    life.turn.touch()
    partition = life.vhost.topics.topic(TOPIC).partitions[0]
    partition.append(recompressed(batch(*range(95), size=300), GZIP, None, 1 << 20))
    after_each_turn = [0]
    life.turn.commits.append(lambda: after_each_turn.append(int(queue.ready)))
    life.pump_until(lambda: queue.ready == 95)
    if record_router.__file__.endswith(".py"):
        assert max(after - before for before, after in pairwise(after_each_turn)) <= 10
    assert taken(life, queue) == list(range(95))
    assert not routers(life)[0].has_open_batch


def test_topics_take_turns(life: Life) -> None:
    queues = []
    for name in ("a", "b", "c"):
        life.vhost.topics.create(name, 2, {})
        queues.append(life.declare(f"work-{name}"))
        bind(life, queues[-1], topic=name)
    for number in range(50):
        for name in ("a", "b", "c"):
            produce(life, number, topic=name, partition=number % 2)
    for queue in queues:
        assert sorted(taken(life, queue)) == list(range(50))


def test_publishing_to_a_topic_makes_a_record_that_comes_to_its_bindings(life: Life) -> None:
    queue = life.declare("work")
    bind(life, queue, "orders.*")
    life.publish(TOPIC, "orders.new", 1)
    life.publish(TOPIC, "invoices", 2)
    assert taken(life, queue) == [1]
    assert int(life.vhost.topics.topic(TOPIC).partitions[0].end_offset) == 2


def test_what_dies_can_become_a_topics_record(life: Life) -> None:
    dead = life.declare("dead")
    bind(life, dead)
    queue = life.declare("work", dead_letter_exchange=TOPIC)
    life.publish("", "work", 1)
    entry = queue.get()
    assert entry is not None
    queue.reject(entry)
    assert taken(life, dead) == [1]


def test_what_is_routed_never_comes_back_to_its_topic(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    vhost = life.vhost
    vhost.topics.create("other", 2, {})
    # One directly, and a circle of two topics and an exchange.
    queue = life.declare("work")
    bind(life, queue)
    vhost.bind(vhost.exchange(TOPIC), vhost.exchange_bound(TOPIC), "", {})
    vhost.bind(vhost.exchange(TOPIC), vhost.exchange("amq.fanout"), "", {})
    vhost.bind(vhost.exchange("amq.fanout"), vhost.exchange_bound("other"), "", {})
    vhost.bind(vhost.exchange("other"), vhost.exchange_bound(TOPIC), "", {})
    produce(life, 1)
    assert taken(life, queue) == [1]
    assert "would come back" in caplog.text
    assert int(vhost.topics.topic(TOPIC).partitions[0].end_offset) == 1


def test_a_topic_that_is_bound_hides_behind_no_exchange(life: Life) -> None:
    vhost = life.vhost
    bind(life, life.declare("work"))
    with pytest.raises(PreconditionFailed):
        vhost.declare_exchange(TOPIC, "direct", True, False, False, {})
    vhost.topics.create("free", 1, {})
    exchange = vhost.declare_exchange("free", "direct", True, False, False, {})
    assert vhost.exchange("free") is exchange
    with pytest.raises(NotFound):
        vhost.exchange("neither")


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_nothing_is_routed_while_an_alarm_is_on(life: Life) -> None:
    queue = life.declare("work")
    bind(life, queue)
    life.settle_down()
    life.alarms.raise_alarm(ALARM_MEMORY)
    # The memory that is used does not ask for it, so the end of a turn would clear it at once.
    life.turn.commits[:] = [one for one in life.turn.commits if one.__name__ != "_balance_memory"]
    produce(life, 1, 2)
    life.settle_down()
    assert (int(queue.ready), int(routers(life)[0].lag)) == (0, 2)
    life.alarms.clear_alarm(ALARM_MEMORY)
    assert taken(life, queue) == [1, 2]


def test_a_queue_that_refuses_is_waited_for_and_one_that_drops_is_not(life: Life) -> None:
    refusing = life.declare("refusing", max_length=2, overflow="reject-publish")
    dropping = life.declare("dropping", max_length=2)
    bind(life, refusing)
    bind(life, dropping, stream_offset="next")
    produce(life, 1, 2, 3, 4, 5)
    life.settle_down()
    assert numbers_in(life, dropping) == [4, 5]
    seen: list[int] = []
    for _ in range(5):
        seen += taken(life, refusing)
        life.clock.advance(1000)
    assert seen == [1, 2, 3, 4, 5]


def test_what_was_deleted_before_it_was_routed_is_told(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    queue = life.declare("refusing", max_length=1, overflow="reject-publish")
    bind(life, queue)
    for number in range(6):
        produce(life, number)
        life.settle_down()
    life.vhost.topics.topic(TOPIC).partitions[0].trim_before(4)
    seen: list[int] = []
    for _ in range(6):
        seen += taken(life, queue)
        life.clock.advance(1000)
    # One had been read when it was deleted.
    assert seen == [0, 1, 4, 5]
    assert "2 records of 'orders-0' were deleted before they were routed" in caplog.text
    assert int(routers(life)[0].missed_total) == 2


# --- Ends of things ---------------------------------------------------------------------------------------------------


def test_a_topic_that_grows_is_read_from_the_beginning_of_what_is_new(life: Life) -> None:
    queue, replayed = life.declare("work"), life.declare("replayed")
    bind(life, queue)
    bind(life, replayed, stream_offset="next")
    topics = life.vhost.topics
    topics.add_partitions(topics.topic(TOPIC), 3)
    produce(life, 1, partition=2)
    produce(life, 2, partition=0)
    assert sorted(taken(life, queue)) == [1, 2]
    assert sorted(taken(life, replayed)) == [1, 2]


def test_a_bound_stream_that_grows_stays_bound(life: Life) -> None:
    vhost = life.vhost
    vhost.topics.create("copy", 1, {})
    vhost.bind(vhost.exchange(TOPIC), vhost.exchange_bound("copy"), "", {"x-stream-offset": "first"})
    produce(life, 1)
    life.settle_down()
    vhost.topics.add_partitions(vhost.topics.topic("copy"), 2)
    produce(life, 2)
    life.settle_down()
    assert sum(int(partition.end_offset) for partition in vhost.topics.topic("copy").partitions) == 2
    assert len(routers(life)) == 1


@pytest.mark.parametrize("end", ["queue", "topic"])
def test_bindings_go_with_what_they_lead_from_and_to(life: Life, end: str) -> None:
    vhost = life.vhost
    queue = life.declare("work")
    bind(life, queue)
    bind(life, queue, "k", stream_offset="first")
    assert len(routers(life)) == 2
    if end == "queue":
        vhost.delete_queue(queue, False, False)
    else:
        vhost.topics.delete(vhost.topics.topic(TOPIC))
        vhost.topics.create(TOPIC, 1, {})
    assert routers(life) == []
    life.settle_down()
    assert life.catalog.load().topic_bindings == []
    assert [record for state in life.broker.routing.capture() for record in state.records()] == []


def test_a_virtual_host_goes_with_its_bound_topics(life: Life) -> None:
    vhost = life.broker.create_vhost("other")
    vhost.topics.create(TOPIC, 2, {})
    vhost.bind(vhost.exchange(TOPIC), vhost.declare_queue("work", True, False, False, {}, None), "", {})
    life.settle_down()
    life.broker.delete_vhost("other")
    life.settle_down()
    assert list(life.broker.routing.sources) == ["/"]
    assert life.catalog.load().topic_bindings == []


# --- Restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_cursors_go_on_where_they_were(
    life: Life, disk: FaultyFilesystem, tmp_path: Path, with_checkpoint: bool
) -> None:
    queue = life.declare("work")
    bind(life, queue)
    bind(life, life.declare("replayed"), stream_offset="first")
    produce(life, 1, 2)
    assert taken(life, queue) == [1, 2]
    if with_checkpoint:
        life.checkpoint()
    produce(life, 3)
    life.settle_down()
    after = killed(life, disk, tmp_path)
    try:
        after.end_turn()
        produce(after, 4)
        assert taken(after, after.queue("work")) == [3, 4]
        assert taken(after, after.queue("replayed")) == [1, 2, 3, 4]
    finally:
        after.abandon()


def test_a_cursor_that_is_gone_does_not_come_back(life: Life, disk: FaultyFilesystem, tmp_path: Path) -> None:
    queue = life.declare("work")
    bind(life, queue)
    produce(life, 1)
    life.settle_down()
    unbind(life, queue)
    produce(life, 2)
    life.settle_down()
    after = killed(life, disk, tmp_path)
    try:
        assert routers(after) == []
        bind(after, after.queue("work"))
        produce(after, 3)
        assert taken(after, after.queue("work")) == [1, 3]
    finally:
        after.abandon()


def test_a_cursor_is_read_as_it_was_written() -> None:
    assert decode_cursor(encode_cursor(7, -1, "")) == (7, -1, "")
    assert decode_cursor(encode_cursor(1 << 40, 1 << 50, "queue wörk\udcff ~x")) == (
        1 << 40,
        1 << 50,
        "queue wörk\udcff ~x",
    )
    for size in range(16):
        with pytest.raises(CorruptData):
            decode_cursor(encode_cursor(1, 2, "")[:size])


class Simulation:
    """Lives that end at random points. Whatever comes back, the queues have what is before the cursors, and no more."""

    QUEUES = ("all", "even", "history")

    def __init__(self, seed: int, folder: Path) -> None:
        self.choose = random.Random(seed)
        self.folder = folder
        self.disk = FaultyFilesystem(seed)
        self.lives = 0
        self.next_number = 0
        self.catalog = folder / "catalog-0"
        self.life = self._new_life(1_700_000_000_000)
        life = self.life
        life.vhost.topics.create(TOPIC, 3, {"segment.bytes": "2000"})
        for name in self.QUEUES:
            life.declare(name)
        bind(life, life.queue("all"))
        life.vhost.bind(life.vhost.exchange(TOPIC), life.queue("even"), "", {"x-match": "all", "n": "0"})
        bind(life, life.queue("history"), stream_offset="first")
        life.settle_down()

    def _new_life(self, wall_ms: int) -> Life:
        budget = self.choose.choice([20 * KIB, 1 << 30])
        file_bytes = self.choose.choice([8 * KIB, 30 * KIB])
        return Life(self.disk, self.catalog, budget=budget, file_bytes=file_bytes, clock=ManualClock(wall_ms))

    def produce(self) -> None:
        for _ in range(self.choose.choice([1, 3, 10])):
            numbers = range(self.next_number, self.next_number + self.choose.choice([1, 5, 20]))
            self.next_number = numbers.stop
            produce(self.life, *numbers, partition=self.choose.randrange(3))

    def step(self) -> None:
        actions: list[Callable[[], object]] = [self.produce] * 6
        actions += [lambda: self.life.clock.advance(200), self.life.store.resume, self.life.broker.streams.keep_house]
        if not self.life.checkpointer.running:
            actions.append(self.life.checkpointer.begin)
        self.choose.choice(actions)()
        if self.choose.random() < 0.3:
            self.life.ledger.sync_wanted = True
        self.life.end_turn()
        pace = self.choose.random()
        if pace < 0.6:
            self.life.pump()
        elif pace < 0.7:
            self.life.settle_down()

    def end(self) -> None:
        old = self.life
        self.lives += 1
        catalog = self.folder / f"catalog-{self.lives}"
        way = self.choose.choice(["power cut", "power cut", "kill", "clean stop"])
        if way == "clean stop":
            old.settle_down()
            old.stop()
            copy_catalog(self.catalog, catalog)
        else:
            with self.disk.guard:
                disk = self.disk.copy_for_crash() if way == "power cut" else self.disk.copy()
            if way == "kill":
                copy_catalog(self.catalog, catalog)
            else:
                old.copy_durable_catalog(catalog)
            old.abandon()
            if way == "power cut":
                disk.crash(keeps_some=self.choose.random() < 0.7)
            self.disk = disk
        self.catalog = catalog
        self.life = self._new_life(old.clock.wall_ms() + 1000)
        # Before anything is routed again.
        self.check(way)

    def check(self, way: str) -> None:
        life = self.life
        found = {router.source.cursor: {} for router in routers(life)}
        for router in routers(life):
            found[router.source.cursor][int(router.partition.log_id)] = int(router.next_offset)
        assert len(found) == 2, f"cursors are missing after a {way}"
        # Now: to read the topic lets the routers go on.
        present = {
            name: sorted(number for _, number, _ in life.contents_of(life.queue(name).backlog)) for name in self.QUEUES
        }
        for name in self.QUEUES:
            cursors = next(at for cursor, at in found.items() if bool(cursor) == (name == "history"))
            expected = []
            for partition in life.vhost.topics.topic(TOPIC).partitions:
                expected += self.records(partition, cursors[int(partition.log_id)])
            if name == "even":
                expected = [number for number in expected if number % 2 == 0]
            assert present[name] == sorted(expected), f"{name} after a {way}"

    def records(self, partition: record_router.Partition, end_offset: int) -> list[int]:
        """The numbers of a partition's records before an offset."""
        messages = record_router.RecordMessages("a test")
        numbers: list[int] = []
        offset = int(partition.start_offset)
        while offset < end_offset:
            read = partition.batch_at(offset)
            if read is None:
                partition.load(offset)
                self.life.pump_until(lambda: partition.batch_at(offset) is not None)  # noqa: B023
                continue
            if read.data and messages.open(read.data):
                while messages.next():
                    if offset <= messages.offset < end_offset:
                        numbers.append(number_of(messages.message))
            offset = int(read.end_offset)
        return numbers


@pytest.mark.parametrize("seed", range(12))
def test_each_record_is_routed_once_wherever_a_life_ends(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    small_pages(monkeypatch)
    monkeypatch.setattr(checkpoint, "CARRY_FORWARD_BYTES", 600)
    monkeypatch.setattr(ledger, "LEDGER_FRAME_BYTES", 4000)
    monkeypatch.setattr(ledger, "LEDGER_BATCH_BYTES", 2000)
    monkeypatch.setattr(record_router, "ROUTED_RECORDS_PER_TURN_MAX", 7)
    simulation = Simulation(seed, tmp_path)
    try:
        for _ in range(4):
            for _ in range(simulation.choose.choice([5, 20, 40])):
                simulation.step()
            simulation.end()
        life = simulation.life
        life.settle_down()
        life.pump_until(lambda: not any(router.lag for router in routers(life)), "the end of the topic")
        simulation.check("whole run")
    finally:
        simulation.life.abandon()
