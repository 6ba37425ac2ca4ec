"""Transactions with the clients that have them: a producer's records and offsets count together, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import aiokafka
import pytest
from aiokafka.errors import ProducerFenced
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.kafka.conftest import CreateTopic
from tests.kafka.test_restarts import create, kill_and_start
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import Unique, quiet
from tests.support.waiting import DEADLINE_S, eventually

Found = list[tuple[int, int, bytes]]


def producer_of(servers: str, transactional_id: str, **settings: Any) -> Producer:
    """A producer that is ready for its first transaction."""
    options = {key.replace("_", "."): value for key, value in settings.items()}
    producer = Producer(quiet(servers) | {"transactional.id": transactional_id, "linger.ms": 0} | options)
    producer.init_transactions(DEADLINE_S)
    return producer


def write(producer: Producer, topic: str, *values: bytes, partitions: int = 1) -> None:
    """Write within the open transaction, and wait until the broker has it."""
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % partitions)
    producer.flush(DEADLINE_S)


def read(servers: str, topic: str, isolation: str = "read_committed", partitions: int = 1) -> Found:
    """All that a consumer is shown up to the end: (partition, offset, value) each."""
    settings = {
        "group.id": "none", "isolation.level": isolation, "enable.partition.eof": True, "enable.auto.commit": False,
    }  # fmt: skip
    consumer = Consumer(quiet(servers) | settings)
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    found: Found = []
    ended: set[int] = set()
    deadline = time.monotonic() + DEADLINE_S
    with contextlib.closing(consumer):
        while len(ended) < partitions:
            assert time.monotonic() < deadline, f"only {found} so far"
            message = consumer.poll(0.5)
            if message is None:
                continue
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended.add(message.partition())
            else:
                found.append((message.partition(), message.offset(), message.value()))
    return sorted(found)


def values(found: Found) -> list[bytes]:
    return [value for _, _, value in found]


@pytest.fixture
def name(unique: Unique) -> str:
    """A transactional id."""
    return unique("transaction")


class TestCommitAndAbort:
    def test_what_is_committed_is_read_from_all_partitions(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic(3)
        producer = producer_of(kafka, name)
        producer.begin_transaction()
        write(producer, topic, b"a", b"b", b"c", b"d", partitions=3)
        producer.commit_transaction(DEADLINE_S)
        assert read(kafka, topic, partitions=3) == [(0, 0, b"a"), (0, 1, b"d"), (1, 0, b"b"), (2, 0, b"c")]

    def test_what_is_aborted_is_seen_by_those_only_who_want_all(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic()
        producer = producer_of(kafka, name)
        for value, ends in ((b"a", True), (b"b", False), (b"c", True), (b"d", False), (b"e", True)):
            producer.begin_transaction()
            write(producer, topic, value)
            (producer.commit_transaction if ends else producer.abort_transaction)(DEADLINE_S)
        # A marker takes an offset after each.
        assert read(kafka, topic) == [(0, 0, b"a"), (0, 4, b"c"), (0, 8, b"e")]
        assert values(read(kafka, topic, "read_uncommitted")) == [b"a", b"b", b"c", b"d", b"e"]

    def test_an_open_transaction_holds_back_what_comes_after_it(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic()
        first, second = producer_of(kafka, name), producer_of(kafka, f"{name}-2")
        first.begin_transaction()
        write(first, topic, b"first")
        second.begin_transaction()
        write(second, topic, b"second")
        second.commit_transaction(DEADLINE_S)
        assert read(kafka, topic) == []
        assert values(read(kafka, topic, "read_uncommitted")) == [b"first", b"second"]
        first.commit_transaction(DEADLINE_S)
        assert values(read(kafka, topic)) == [b"first", b"second"]

    def test_a_consumer_that_waits_is_woken_by_the_commit(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic()
        consumer = Consumer(
            quiet(kafka) | {"group.id": "none", "isolation.level": "read_committed", "fetch.wait.max.ms": 20_000}
        )
        consumer.assign([TopicPartition(topic, 0, 0)])
        producer = producer_of(kafka, name)
        with contextlib.closing(consumer):
            producer.begin_transaction()
            write(producer, topic, b"a")
            assert consumer.poll(0.5) is None
            producer.commit_transaction(DEADLINE_S)
            message = consumer.poll(DEADLINE_S)
            assert message is not None
            assert message.value() == b"a"

    def test_many_batches_of_two_producers_are_told_apart(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic(2)
        kept, dropped = producer_of(kafka, name), producer_of(kafka, f"{name}-2")
        for round_number in range(5):
            kept.begin_transaction()
            dropped.begin_transaction()
            for number in range(20):
                write(kept, topic, b"k%d.%d" % (round_number, number), b"k", partitions=2)
                write(dropped, topic, b"d%d.%d" % (round_number, number), b"d", partitions=2)
            kept.commit_transaction(DEADLINE_S)
            dropped.abort_transaction(DEADLINE_S)
        found = read(kafka, topic, partitions=2)
        expected = [b"k%d.%d" % (round_number, number) for round_number in range(5) for number in range(20)]
        assert [value for partition, _, value in found if partition == 0] == expected
        assert [value for partition, _, value in found if partition == 1] == [b"k"] * 100

    def test_aiokafka_commits_and_aborts(self, kafka: str, create_topic: CreateTopic, name: str) -> None:
        topic = create_topic(2)

        async def run() -> list[bytes]:
            producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
            await producer.start()
            try:
                async with producer.transaction():
                    await producer.send_and_wait(topic, b"a", partition=0)
                    await producer.send_and_wait(topic, b"b", partition=1)
                with contextlib.suppress(ZeroDivisionError):
                    async with producer.transaction():
                        await producer.send_and_wait(topic, b"c", partition=0)
                        raise ZeroDivisionError
                async with producer.transaction():
                    await producer.send_and_wait(topic, b"d", partition=0)
            finally:
                await producer.stop()
            consumer = aiokafka.AIOKafkaConsumer(
                topic, bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest"
            )
            await consumer.start()
            try:
                return sorted([(await asyncio.wait_for(anext(consumer), DEADLINE_S)).value for _ in range(3)])
            finally:
                await consumer.stop()

        assert asyncio.run(run()) == [b"a", b"b", b"d"]


class TestFencing:
    def test_a_second_producer_shuts_the_first_out_and_aborts_its_transaction(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic()
        first = producer_of(kafka, name)
        first.begin_transaction()
        write(first, topic, b"first")
        second = producer_of(kafka, name)
        second.begin_transaction()
        write(second, topic, b"second")
        second.commit_transaction(DEADLINE_S)
        with pytest.raises(KafkaException) as caught:
            first.commit_transaction(DEADLINE_S)
        assert caught.value.args[0].code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED)
        assert values(read(kafka, topic)) == [b"second"]

    def test_aiokafka_is_told_so(self, kafka: str, create_topic: CreateTopic, name: str) -> None:
        topic = create_topic()

        async def run() -> None:
            first = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
            second = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
            await first.start()
            await first.begin_transaction()
            await first.send_and_wait(topic, b"first")
            await second.start()
            try:
                with pytest.raises(ProducerFenced):
                    await first.commit_transaction()
                async with second.transaction():
                    await second.send_and_wait(topic, b"second")
            finally:
                await first.stop()
                await second.stop()

        asyncio.run(run())
        assert values(read(kafka, topic)) == [b"second"]

    def test_a_transaction_that_takes_too_long_is_aborted(
        self, kafka: str, create_topic: CreateTopic, name: str
    ) -> None:
        topic = create_topic()
        producer = producer_of(kafka, name, transaction_timeout_ms=1000)
        producer.begin_transaction()
        write(producer, topic, b"late")
        other = producer_of(kafka, f"{name}-2")
        other.begin_transaction()
        write(other, topic, b"other")
        other.commit_transaction(DEADLINE_S)
        eventually(lambda: values(read(kafka, topic)) == [b"other"], "the one before it is aborted")
        with pytest.raises(KafkaException):
            producer.commit_transaction(DEADLINE_S)

    def test_a_timeout_beyond_the_brokers_limit_is_refused(self, kafka: str, name: str) -> None:
        with pytest.raises(KafkaException) as caught:
            producer_of(kafka, name, transaction_timeout_ms=901_000)
        assert caught.value.args[0].code() == KafkaError.INVALID_TRANSACTION_TIMEOUT


class TestOffsets:
    def test_records_and_the_offsets_they_come_from_are_one(
        self, kafka: str, create_topic: CreateTopic, name: str, unique: Unique
    ) -> None:
        source, target, group = create_topic(2), create_topic(), unique("group")
        plain = Producer(quiet(kafka))
        for number in range(40):
            plain.produce(source, b"%d" % number, partition=number % 2)
        plain.flush(DEADLINE_S)
        # Each of them does some, aborts some of that, and goes away.
        for life in range(4):
            self._transform(kafka, source, target, group, f"{name}-{life}", aborts_last=life < 3)
        doubled = sorted(int(value) for value in values(read(kafka, target)))
        assert doubled == [2 * number for number in range(40)]

    def _transform(
        self, kafka: str, source: str, target: str, group: str, transactional_id: str, aborts_last: bool
    ) -> None:
        settings = {
            "group.id": group, "auto.offset.reset": "earliest", "isolation.level": "read_committed",
            "enable.auto.commit": False, "enable.partition.eof": True,
        }  # fmt: skip
        consumer = Consumer(quiet(kafka) | settings)
        consumer.subscribe([source])
        producer = producer_of(kafka, transactional_id)
        deadline = time.monotonic() + DEADLINE_S
        ended: set[int] = set()
        count = 0
        with contextlib.closing(consumer):
            while len(ended) < 2 and (not aborts_last or count < 10):
                assert time.monotonic() < deadline
                message = consumer.poll(0.5)
                if message is None:
                    continue
                if message.error() is not None:
                    ended.add(message.partition())
                    continue
                producer.begin_transaction()
                producer.produce(target, b"%d" % (2 * int(message.value())))
                place = TopicPartition(source, message.partition(), message.offset() + 1)
                producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), DEADLINE_S)
                count += 1
                if aborts_last and count == 10:
                    producer.abort_transaction(DEADLINE_S)
                else:
                    producer.commit_transaction(DEADLINE_S)

    def test_offsets_of_an_open_transaction_are_not_stable(
        self, kafka: str, create_topic: CreateTopic, name: str, unique: Unique, admin: AdminClient
    ) -> None:
        topic, group = create_topic(), unique("group")
        consumer = Consumer(quiet(kafka) | {"group.id": group})
        with contextlib.closing(consumer):
            consumer.assign([TopicPartition(topic, 0)])
            producer = producer_of(kafka, name)
            producer.begin_transaction()
            place = TopicPartition(topic, 0, 7)
            producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), DEADLINE_S)
            # librdkafka asks for stable offsets where it may, and goes on asking.
            with pytest.raises(KafkaException):
                consumer.committed([TopicPartition(topic, 0)], timeout=1)
            producer.commit_transaction(DEADLINE_S)
            assert consumer.committed([TopicPartition(topic, 0)], timeout=DEADLINE_S)[0].offset == 7

    def test_aborted_offsets_are_as_before(
        self, kafka: str, create_topic: CreateTopic, name: str, unique: Unique
    ) -> None:
        topic, group = create_topic(), unique("group")
        consumer = Consumer(quiet(kafka) | {"group.id": group, "isolation.level": "read_committed"})
        with contextlib.closing(consumer):
            consumer.assign([TopicPartition(topic, 0)])
            producer = producer_of(kafka, name)
            for offset, ends in ((3, producer.commit_transaction), (9, producer.abort_transaction)):
                producer.begin_transaction()
                place = TopicPartition(topic, 0, offset)
                producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), DEADLINE_S)
                ends(DEADLINE_S)
            assert consumer.committed([TopicPartition(topic, 0)], timeout=DEADLINE_S)[0].offset == 3

    def test_aiokafka_sends_offsets(self, kafka: str, create_topic: CreateTopic, name: str, unique: Unique) -> None:
        topic, group = create_topic(), unique("group")
        place = aiokafka.TopicPartition(topic, 0)

        async def run() -> int | None:
            producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
            await producer.start()
            async with producer.transaction():
                await producer.send_and_wait(topic, b"a", partition=0)
                await producer.send_offsets_to_transaction({place: 5}, group)
            await producer.stop()
            consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group)
            await consumer.start()
            try:
                consumer.assign([place])
                committed: int | None = await consumer.committed(place)
                return committed
            finally:
                await consumer.stop()

        assert asyncio.run(run()) == 5


class TestRestarts:
    @pytest.fixture
    def servers(self, kafka_process: BrokerProcess) -> str:
        return kafka_process.kafka_address

    def test_a_kill_leaves_the_committed_and_an_open_transaction_goes_on(
        self, kafka_process: BrokerProcess, servers: str
    ) -> None:
        create(AdminClient(quiet(servers)), "t", 2)
        producer = producer_of(servers, "x")
        producer.begin_transaction()
        write(producer, "t", b"a", b"b", partitions=2)
        producer.commit_transaction(DEADLINE_S)
        producer.begin_transaction()
        write(producer, "t", b"c", b"d", partitions=2)
        kill_and_start(kafka_process)
        assert values(read(servers, "t", partitions=2)) == [b"a", b"b"]
        assert values(read(servers, "t", "read_uncommitted", partitions=2)) == [b"a", b"c", b"b", b"d"]
        write(producer, "t", b"e", b"f", partitions=2)
        producer.commit_transaction(DEADLINE_S)
        assert values(read(servers, "t", partitions=2)) == [b"a", b"c", b"e", b"b", b"d", b"f"]
        # The numbers go on too: none is missing, none is there twice.
        producer.begin_transaction()
        write(producer, "t", b"g")
        producer.commit_transaction(DEADLINE_S)
        assert values(read(servers, "t", partitions=2)) == [b"a", b"c", b"e", b"g", b"b", b"d", b"f"]

    def test_what_was_aborted_stays_so_after_a_stop_and_a_kill(
        self, kafka_process: BrokerProcess, servers: str
    ) -> None:
        create(AdminClient(quiet(servers)), "t")
        producer = producer_of(servers, "x")
        for end in (kafka_process.restart, lambda: kill_and_start(kafka_process)):
            for value, ends in ((b"a", producer.abort_transaction), (b"b", producer.commit_transaction)):
                producer.begin_transaction()
                write(producer, "t", value)
                ends(DEADLINE_S)
            end()
        assert values(read(servers, "t")) == [b"b", b"b"]
        assert values(read(servers, "t", "read_uncommitted")) == [b"a", b"b", b"a", b"b"]

    def test_an_open_transaction_whose_producer_is_gone_is_aborted_in_time(
        self, kafka_process: BrokerProcess, servers: str
    ) -> None:
        create(AdminClient(quiet(servers)), "t")
        producer = producer_of(servers, "x", transaction_timeout_ms=2000)
        producer.begin_transaction()
        write(producer, "t", b"open")
        kill_and_start(kafka_process)
        plain = Producer(quiet(servers))
        plain.produce("t", b"plain")
        plain.flush(DEADLINE_S)
        eventually(lambda: values(read(servers, "t")) == [b"plain"], "it is aborted")

    def test_offsets_wait_for_their_transaction_across_a_kill(self, kafka_process: BrokerProcess, servers: str) -> None:
        create(AdminClient(quiet(servers)), "t")
        settings = quiet(servers) | {"group.id": "g", "enable.auto.commit": False}
        consumer = Consumer(settings)
        consumer.assign([TopicPartition("t", 0)])
        producer = producer_of(servers, "x")
        producer.begin_transaction()
        write(producer, "t", b"a")
        metadata = consumer.consumer_group_metadata()
        producer.send_offsets_to_transaction([TopicPartition("t", 0, 1)], metadata, DEADLINE_S)
        kill_and_start(kafka_process)
        producer.commit_transaction(DEADLINE_S)
        assert consumer.committed([TopicPartition("t", 0)], timeout=DEADLINE_S)[0].offset == 1
        consumer.close()
        kill_and_start(kafka_process)
        consumer = Consumer(settings)
        with contextlib.closing(consumer):
            assert consumer.committed([TopicPartition("t", 0)], timeout=DEADLINE_S)[0].offset == 1
        assert values(read(servers, "t")) == [b"a"]
