"""Queues over a topic: who gets which record, what becomes of it, and what is left of that after a power cut."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.base.errors import PreconditionFailed
from millpond.broker.definitions.exports import exported
from millpond.broker.definitions.imports import Import
from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.rewind import Rewind
from millpond.broker.shares import coordinator
from millpond.broker.shares.share_queue import ShareQueue
from tests.broker.life import Life, number_of
from tests.broker.test_streams import Lives

SEEDS = [int(os.environ["MILLPOND_TEST_SEED"])] if "MILLPOND_TEST_SEED" in os.environ else list(range(12))
STEPS = 120


class Worker(Consumer):
    """A consumer that remembers what it was given: (number, delivery count) beside the entry."""

    def __init__(self, queue: MessageQueue, prefetch: int = 0, *, priority: int = 0, acknowledges: bool = True) -> None:
        super().__init__(queue, "worker", prefetch, acknowledges, False)
        self.priority = priority
        self.given: list[tuple[int, int]] = []
        self.entries: dict[int, Entry] = {}

    def deliver(self, entry: Entry) -> None:
        number = number_of(entry.message)
        self.given.append((number, int(entry.returns)))
        self.entries[number] = entry

    def queue_deleted(self) -> None:
        self.entries = {}

    def ack(self, *numbers: int) -> None:
        for number in numbers:
            self.queue.settle(self.entries.pop(number))

    def nack(self, *numbers: int, failed: bool = False) -> None:
        self.queue.give_back([self.entries.pop(number) for number in numbers], failed)

    def reject(self, *numbers: int) -> None:
        for number in numbers:
            self.queue.reject(self.entries.pop(number))


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    lives.life.abandon()


@pytest.fixture
def life(lives: Lives) -> Life:
    lives.life.vhost.topics.create("t", 1, {})
    lives.life.settle_down()
    return lives.life


def declare(life: Life, name: str = "q", **arguments: Any) -> ShareQueue:
    named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    queue = life.vhost.declare_queue(
        name, True, False, False, {"x-queue-type": "share", "x-source-topic": "t", **named}, None
    )
    assert isinstance(queue, ShareQueue)
    return queue


def found(life: Life, name: str = "q") -> ShareQueue:
    queue = life.vhost.queues[name]
    assert isinstance(queue, ShareQueue)
    return queue


def fill(life: Life, *numbers: int) -> None:
    for number in numbers:
        life.publish("", "t", number)
    life.settle_down()


def work(life: Life, prefetch: int = 0, **options: Any) -> Worker:
    queue = found(life)
    worker = Worker(queue, prefetch, **options)
    queue.add_consumer(worker)
    life.settle_down()
    return worker


class TestDeclaring:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"source_topic": "missing"},
            {"source_topic": 7},
            {"max_length": 10},
            {"message_ttl": 10},
            {"max_priority": 3},
            {"stream_offset": "somewhere"},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, life: Life, arguments: dict[str, object]) -> None:
        with pytest.raises(PreconditionFailed):
            declare(life, **arguments)
        assert "q" not in life.vhost.queues
        assert "q" not in life.vhost.shares.groups

    def test_it_is_durable(self, life: Life) -> None:
        with pytest.raises(PreconditionFailed):
            life.vhost.declare_queue("q", False, False, False, {"x-queue-type": "share", "x-source-topic": "t"}, None)

    def test_another_declaration_must_be_the_same(self, life: Life) -> None:
        queue = declare(life)
        assert declare(life) is queue
        with pytest.raises(PreconditionFailed):
            declare(life, delivery_limit=7)

    def test_it_begins_at_the_end_unless_it_says_otherwise(self, life: Life) -> None:
        fill(life, *range(3))
        assert declare(life).ready == 0
        assert declare(life, "first", stream_offset="first").ready == 3
        assert declare(life, "second", stream_offset=1).ready == 2

    def test_it_goes_with_its_topic(self, life: Life) -> None:
        declare(life)
        life.vhost.topics.delete(life.vhost.topics.topic("t"))
        life.settle_down()
        assert "q" not in life.vhost.queues
        assert not life.vhost.shares.groups

    def test_it_cannot_have_the_name_of_a_consumer_group(self, life: Life) -> None:
        life.vhost.groups.offsets.commit(CommitRequest("q", (OffsetCommit("t", 0, 1),)))
        with pytest.raises(PreconditionFailed):
            declare(life)
        assert "q" not in life.vhost.queues

    def test_it_begins_anew_when_its_group_is_deleted(self, lives: Lives, life: Life) -> None:
        declare(life, stream_offset="first")
        fill(life, *range(3))
        found(life).purge()
        life.vhost.groups.delete("q")
        life.settle_down()
        assert found(life).ready == 3
        assert found(lives.cut_power()).ready == 3

    def test_definitions_have_it_after_its_topic(self, life: Life) -> None:
        declare(life)
        document = exported(life.broker)
        life.vhost.topics.delete(life.vhost.topics.topic("t"))
        Import(life.broker, document, None).run()
        assert found(life).topic is life.vhost.topics.topic("t")

    def test_it_goes_with_its_virtual_host(self, lives: Lives) -> None:
        life = lives.life
        vhost = life.broker.create_vhost("other")
        vhost.topics.create("t", 1, {})
        arguments: dict[str, object] = {"x-queue-type": "share", "x-source-topic": "t"}
        vhost.declare_queue("q", True, False, False, arguments, None)
        life.settle_down()
        life.broker.delete_vhost("other")
        life.settle_down()
        assert life.broker.shares.partition_count == 0
        assert not life.broker.create_vhost("other").shares.groups
        life.settle_down()
        assert not lives.cut_power().broker.vhost("other").shares.groups

    def test_another_queue_of_its_name_begins_anew(self, lives: Lives, life: Life) -> None:
        declare(life, stream_offset="first")
        fill(life, *range(3))
        work(life).ack(0, 1, 2)
        life.vhost.remove_queue(found(life))
        assert "q" not in life.vhost.groups.store.groups
        assert declare(life, stream_offset="first").ready == 3
        life.settle_down()
        assert found(lives.cut_power()).ready == 3


class TestDelivering:
    def test_consumers_compete(self, life: Life) -> None:
        declare(life)
        first, second = work(life), work(life)
        fill(life, *range(10))
        assert sorted(first.given + second.given) == [(number, 0) for number in range(10)]
        assert len(first.given) == len(second.given) == 5

    def test_no_more_is_given_than_the_prefetch_allows(self, life: Life) -> None:
        queue = declare(life)
        worker = work(life, 2)
        fill(life, *range(5))
        assert [number for number, _ in worker.given] == [0, 1]
        assert (queue.ready, queue.unsettled) == (3, 2)
        worker.ack(0)
        life.settle_down()
        assert [number for number, _ in worker.given] == [0, 1, 2]

    def test_those_of_the_highest_priority_come_first(self, life: Life) -> None:
        declare(life)
        low, high = work(life, 5), work(life, 2, priority=3)
        fill(life, *range(5))
        assert [number for number, _ in high.given] == [0, 1]
        assert [number for number, _ in low.given] == [2, 3, 4]

    def test_a_single_active_consumer_gets_all_until_it_goes(self, life: Life) -> None:
        queue = declare(life, single_active_consumer=True)
        first, second = work(life, 2), work(life, 2)
        fill(life, *range(4))
        assert (len(first.given), len(second.given)) == (2, 0)
        queue.remove_consumer(first)
        life.settle_down()
        assert [number for number, _ in second.given] == [2, 3]

    def test_partitions_take_turns(self, lives: Lives) -> None:
        life = lives.life
        topic = life.vhost.topics.create("t", 3, {})
        declare(life, stream_offset="first")
        for number in range(300):
            life.publish("", "t-" + str(number % 3), number)
        life.settle_down()
        worker = work(life, 30)
        assert {number % 3 for number, _ in worker.given} == {0, 1, 2}
        assert len(topic.partitions) == 3

    def test_what_comes_back_is_redelivered_with_its_count(self, life: Life) -> None:
        declare(life)
        worker = work(life, 1)
        fill(life, 0, 1)
        worker.nack(0)
        life.settle_down()
        assert worker.given == [(0, 0), (0, 1)]
        assert worker.entries[0].redelivered

    def test_one_that_is_not_acknowledged_is_settled_at_once(self, life: Life) -> None:
        queue = declare(life)
        worker = work(life, acknowledges=False)
        fill(life, *range(4))
        assert len(worker.given) == 4
        assert (queue.ready, queue.unsettled) == (0, 0)
        assert queue.details()["start_offsets"] == [4]

    def test_one_message_can_be_asked_for(self, life: Life) -> None:
        queue = declare(life)
        fill(life, 0, 1)
        entry = queue.get()
        assert entry is not None
        assert number_of(entry.message) == 0
        assert queue.ready == 1
        queue.settle(entry)
        assert queue.get() is not None
        assert queue.get() is None

    def test_one_message_can_be_asked_for_that_is_on_the_disk(self, life: Life) -> None:
        queue = declare(life)
        fill(life, *range(50))
        log = life.vhost.topics.topic("t").partitions[0]
        life.broker.streams.write(log, everything=True)
        life.settle_down()
        log.drop_written(0)
        assert not log.hot
        entry = queue.get()
        assert entry is not None
        assert number_of(entry.message) == 0

    def test_what_is_on_the_disk_is_delivered(self, life: Life) -> None:
        declare(life)
        fill(life, *range(200))
        log = life.vhost.topics.topic("t").partitions[0]
        life.broker.streams.write(log, everything=True)
        life.settle_down()
        log.drop_written(0)
        worker = work(life)
        life.pump_until(lambda: len(worker.given) == 200)

    def test_purging_takes_what_is_ready_only(self, life: Life) -> None:
        queue = declare(life)
        worker = work(life, 2)
        fill(life, *range(6))
        assert queue.purge() == 4
        assert (queue.ready, queue.unsettled) == (0, 2)
        worker.nack(0)
        life.settle_down()
        assert worker.given[-1] == (0, 1)

    def test_what_is_published_to_it_is_appended_to_its_topic(self, life: Life) -> None:
        declare(life)
        life.publish("", "q", 5)
        worker = work(life)
        assert worker.given == [(5, 0)]
        assert life.vhost.topics.topic("t").partitions[0].end_offset == 1

    def test_new_partitions_are_read_from_their_beginning(self, life: Life) -> None:
        declare(life)
        worker = work(life)
        life.vhost.topics.add_partitions(life.vhost.topics.topic("t"), 3)
        for number in range(3):
            life.publish("", f"t-{number}", number)
        life.settle_down()
        assert sorted(number for number, _ in worker.given) == [0, 1, 2]


class TestDying:
    def test_what_is_refused_is_dead_lettered(self, life: Life) -> None:
        dead = life.declare("dead")
        queue = declare(life, dead_letter_exchange="", dead_letter_routing_key="dead")
        worker = work(life)
        fill(life, *range(4))
        worker.reject(1, 3)
        life.settle_down()
        assert life.drain(dead) == [1, 3]
        assert queue.details()["messages_dlx"] == 0
        worker.ack(0, 2)
        assert queue.details()["start_offsets"] == [4]

    def test_what_comes_back_too_often_is_dead_lettered(self, life: Life) -> None:
        dead = life.declare("dead")
        declare(life, dead_letter_exchange="", dead_letter_routing_key="dead", delivery_limit=2)
        worker = work(life, 1)
        fill(life, 0, 1)
        for _ in range(3):
            worker.nack(0)
            life.settle_down()
        assert worker.given == [(0, 0), (0, 1), (0, 2), (1, 0)]
        assert life.drain(dead) == [0]

    def test_without_a_dead_letter_exchange_it_is_gone(self, life: Life) -> None:
        queue = declare(life)
        worker = work(life)
        fill(life, 0)
        worker.reject(0)
        assert queue.details()["start_offsets"] == [1]

    def test_it_waits_for_a_dead_letter_queue_that_is_full(self, life: Life) -> None:
        dead = life.declare("dead", max_length=1, overflow="reject-publish")
        queue = declare(
            life,
            dead_letter_exchange="",
            dead_letter_routing_key="dead",
            dead_letter_strategy="at-least-once",
        )
        worker = work(life)
        fill(life, 0, 1)
        worker.reject(0, 1)
        life.settle_down()
        assert queue.details()["messages_dlx"] == 1
        assert life.drain(dead) == [0]
        life.clock.advance(10_000)
        life.settle_down()
        assert life.drain(dead) == [1]


class TestRewinding:
    def test_what_was_done_is_done_again_but_for_what_is_in_hands(self, lives: Lives, life: Life) -> None:
        queue = declare(life)
        worker = work(life, 6)
        fill(life, *range(6))
        worker.ack(0, 1, 2, 4)
        life.settle_down()
        queue.rewind(1)
        queue.remove_consumer(worker)
        again = work(life)
        assert [number for number, _ in again.given] == [1, 2, 4]
        life.settle_down()
        assert found(lives.cut_power()).ready == 5

    def test_a_rewound_queue_is_that_after_a_power_cut(self, lives: Lives, life: Life) -> None:
        queue = declare(life)
        worker = work(life)
        fill(life, *range(6))
        worker.ack(*range(6))
        life.settle_down()
        queue.remove_consumer(worker)
        queue.rewind(2)
        life.settle_down()
        life = lives.cut_power()
        assert [number for number, _ in work(life).given] == [2, 3, 4, 5]


class TestPowerCuts:
    @pytest.mark.parametrize("with_checkpoint", [False, True])
    def test_what_was_settled_stays_settled_and_the_rest_comes_again(
        self, lives: Lives, life: Life, with_checkpoint: bool
    ) -> None:
        declare(life)
        worker = work(life, 6)
        fill(life, *range(10))
        worker.ack(0, 2, 3)
        life.settle_down()
        if with_checkpoint:
            life.checkpoint()
        life = lives.cut_power()
        queue = found(life)
        assert queue.details()["start_offsets"] == [1]
        again = work(life)
        assert again.given[:2] == [(1, 1), (4, 1)]
        assert sorted(number for number, _ in again.given) == [1, 4, 5, 6, 7, 8, 9]

    def test_a_clean_stop_forgets_nothing(self, lives: Lives, life: Life) -> None:
        declare(life)
        worker = work(life, 4)
        fill(life, *range(4))
        worker.ack(1)
        life = lives.stop()
        assert [number for number, _ in work(life).given] == [0, 2, 3]

    def test_what_retention_has_taken_is_not_waited_for(self, lives: Lives, life: Life) -> None:
        declare(life)
        fill(life, *range(10))
        life.vhost.topics.topic("t").partitions[0].trim_before(4)
        life.settle_down()
        life = lives.cut_power()
        assert found(life).ready == 6
        assert [number for number, _ in work(life).given] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_and_nothing_settled_comes_again(lives: Lives, seed: int) -> None:
    """Random work on a queue over a topic, with checkpoints, and the power cut at any moment."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    life = lives.life
    life.vhost.topics.create("t", 2, {})
    life.declare("dead")
    declare(life, stream_offset="first", dead_letter_exchange="", dead_letter_routing_key="dead", delivery_limit=3)
    life.settle_down()
    published: dict[int, int] = {}
    settled: dict[int, int] = {}
    # Also what nobody was told of that it is durable: it may have been settled all the same.
    acknowledged: set[int] = set()
    workers: list[Worker] = []
    number = 0
    for _ in range(STEPS):
        step = chance.random()
        if step < 0.3:
            for _ in range(chance.randrange(1, 30)):
                life.publish("", f"t-{chance.randrange(2)}", number)
                published[number] = int(life.ledger.sequence())
                number += 1
        elif step < 0.4 and len(workers) < 4:
            worker = Worker(found(life), chance.choice((0, 1, 7)))
            found(life).add_consumer(worker)
            workers.append(worker)
        elif step < 0.8 and workers:
            worker = chance.choice(workers)
            for held in list(worker.entries):
                outcome = chance.random()
                if outcome < 0.5:
                    worker.ack(held)
                    settled[held] = int(life.ledger.sequence())
                    acknowledged.add(held)
                elif outcome < 0.6:
                    worker.nack(held)
                elif outcome < 0.65:
                    worker.reject(held)
        elif step < 0.83 and workers:
            worker = workers.pop(chance.randrange(len(workers)))
            worker.nack(*list(worker.entries), failed=True)
            found(life).remove_consumer(worker)
        elif step < 0.86:
            life.checkpoint()
        elif step < 0.9:
            life.settle_down()
        elif step < 0.95:
            durable = life.told.durable
            life = lives.cut_power(keeps_some=chance.random() < 0.5)
            workers = []
            published = {one: 0 for one, sequence in published.items() if sequence <= durable}
            settled = {one: 0 for one, sequence in settled.items() if sequence <= durable}
            continue
        before = {one for one, sequence in settled.items() if sequence <= life.told.durable}
        life.end_turn()
        life.pump()
        for worker in workers:
            again = [one for one, _ in worker.given if one in before and one in worker.entries]
            assert not again, f"settled, and delivered again: {again}"
    for worker in workers:
        worker.nack(*list(worker.entries), failed=True)
        found(life).remove_consumer(worker)
    queue = found(life)
    last = work(life)
    life.pump_until(lambda: queue.ready == 0)
    rest = set(last.entries)
    last.ack(*rest)
    life.settle_down()
    dead = set(life.drain(life.queue("dead")))
    lost = [one for one in published if one not in acknowledged and one not in rest and one not in dead]
    assert not lost, f"lost: {lost}"
    assert not rest & settled.keys(), "what was settled has come again"


class TestHistory:
    def test_a_queue_over_the_history_of_another_does_not_let_go_of_its_messages(self, lives: Lives) -> None:
        life = lives.life
        own = life.vhost.declare_queue("work", True, False, False, {"x-retention-ms": 1000}, None)
        assert isinstance(own, ShareQueue)
        for number in range(5):
            life.publish("", "work", number)
        life.settle_down()
        declare(life, "watch", source_topic="work")
        worker = Worker(found(life, "watch"))
        found(life, "watch").add_consumer(worker)
        life.publish("", "work", 5)
        life.settle_down()
        # As of any queue over a topic, its beginning is the end of that moment.
        assert [number for number, _ in worker.given] == [5]
        worker.ack(5)
        life.settle_down()
        log = life.vhost.topics.topic("work").partitions[0]
        assert log.needed_from == 0
        lives.cut_power()
        assert lives.life.vhost.topics.topic("work").partitions[0].needed_from == 0

    def test_a_topic_of_many_partitions_is_rewound_to_a_time(self, life: Life) -> None:
        life.vhost.topics.create("wide", 1200, {})
        queue = declare(life, source_topic="wide", stream_offset="first")
        life.settle_down()
        done: list[bool] = []
        rewind = Rewind(life.vhost, "q", None, 0, None, lambda: done.append(True))
        rewind.go_on()
        life.pump_until(lambda: bool(done))
        assert (len(queue.partitions()), len(rewind.offsets), done) == (1200, 1200, [True])


class TestLimits:
    def test_a_queue_that_reads_too_many_partitions_is_refused_as_a_whole(
        self, lives: Lives, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coordinator, "SHARE_PARTITIONS_MAX", 4)
        life = lives.life
        life.vhost.topics.create("t", 3, {})
        declare(life)
        with pytest.raises(PreconditionFailed, match="4 partitions"):
            declare(life, "more")
        assert "more" not in life.vhost.queues
        # It has these, whether or not the queue may read them.
        life.vhost.topics.add_partitions(life.vhost.topics.topic("t"), 5)
        life.settle_down()
        lives.cut_power()
        assert len(found(lives.life).partitions()) == 4
