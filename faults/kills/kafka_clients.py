"""Clients of Kafka's protocol, each in a process of its own that can be killed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    AcknowledgeType,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    ShareConsumer,
    TopicPartition,
)

from faults.kills.client import Client, Settings

# What a client does in one go, and how long it waits for more to do.
BATCH_RECORDS: Final = 20
POLL_S: Final = 0.1
# While the broker is away no more than so much waits in a producer.
WAITING_RECORDS_MAX: Final = 500
# How long an orderly end may take, when the broker is there.
END_S: Final = 15.0
# Requests that have no answer by then are given up. A broker that was paused has answered long before.
REQUEST_S: Final = 5.0
# A call that takes so much longer than its timeout will never return.
HANG_S: Final = 3.0


class KafkaClient(Client):
    """A client with librdkafka."""

    def __init__(self, told: Settings) -> None:
        super().__init__(told)
        self.rebalanced = False

    def connection(self, **more: Any) -> Settings:
        """librdkafka's settings. What it would print about a broker that is away is what is meant to happen."""
        named = {key.replace("_", "."): value for key, value in more.items()}
        return {
            "bootstrap.servers": self.told["servers"],
            "client.id": self.name,
            "log_level": 0,
            "error_cb": self._on_error,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 200,
            "retry.backoff.ms": 20,
            "retry.backoff.max.ms": 200,
            "topic.metadata.refresh.interval.ms": 2000,
        } | named

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self.notes.write("fatal", error=str(error))

    def consumer(self, **more: Any) -> Consumer:
        settings = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_wait_max_ms": 100} | more
        return Consumer(self.connection(**settings))

    def subscribe(self, consumer: Consumer) -> None:
        """With callbacks, so that partitions come and go only while the consumer is asked for records."""

        def assigned(_: Consumer, places: list[TopicPartition]) -> None:
            self.rebalanced = True
            self.notes.write("assigned", places=[[place.topic, place.partition] for place in places])

        def revoked(_: Consumer, places: list[TopicPartition]) -> None:
            self.rebalanced = True
            self.notes.write("revoked", places=[[place.topic, place.partition] for place in places])

        consumer.subscribe([self.told["topic"]], on_assign=assigned, on_revoke=revoked, on_lost=revoked)

    def records_of(self, messages: list[Message]) -> list[Message]:
        """Those that are records. Errors that a broker's absence does not explain are written down."""
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() in UNEXPECTED:
                self.notes.write("unexpected", error=str(error), place=[message.topic(), message.partition()])
        return records

    def note_read(self, records: list[Message]) -> None:
        if records:
            self.notes.write("read", records=[[*place_of(record), text_of(record)] for record in records])


# A consumer that is told one of these has been at an offset that is not there any more, or got what is no record.
UNEXPECTED: Final = frozenset(
    {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError.INVALID_MSG, KafkaError._BAD_MSG}
)


def place_of(record: Message) -> tuple[str, int, int]:
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return topic, partition, offset


def text_of(record: Message) -> str:
    return (record.value() or b"").decode(errors="replace")


def produce(client: KafkaClient) -> None:
    """An idempotent producer: acks=all, keys, and never more than some hundred records without an answer."""
    producer = Producer(client.connection(enable_idempotence=True, acks="all", linger_ms=5, message_timeout_ms=300_000))
    topic, keys, pace_s = client.told["topic"], client.told["keys"], BATCH_RECORDS / client.told["rate"]
    answered: list[tuple[int, int, int]] = []

    def on_answer(error: KafkaError | None, message: Message) -> None:
        number = int(text_of(message).rpartition(":")[2])
        if error is None:
            _, partition, offset = place_of(message)
            answered.append((number, partition, offset))
        elif not client.over.is_set():
            client.notes.write("refused", number=number, error=str(error))

    def note_answers() -> None:
        if answered:
            client.notes.write("acked", topic=topic, records=answered)
            answered.clear()

    number = 0
    while not client.over.is_set():
        if len(producer) < WAITING_RECORDS_MAX:
            count = client.choose.randint(1, BATCH_RECORDS * 2)
            client.notes.write("send", topic=topic, first=number, count=count)
            for _ in range(count):
                key = keys[number % len(keys)]
                producer.produce(topic, f"{client.name}:{number}".encode(), key.encode(), on_delivery=on_answer)
                number += 1
        until = time.monotonic() + pace_s
        while (left := until - time.monotonic()) > 0:
            producer.poll(left)
            note_answers()
    producer.flush(END_S)
    note_answers()


def transform(client: KafkaClient) -> None:
    """Consume, transform, produce: each turn one transaction with its inputs' offsets, some of which are aborted.

    Ends when the producer is fenced, or when it can no more know what has become of its transaction.
    """
    transactional_id = client.told["transactional_id"]
    producer = Producer(
        client.connection(transactional_id=transactional_id, transaction_timeout_ms=20_000, linger_ms=0)
    )
    consumer = client.consumer(
        group_id=client.told["group"], isolation_level="read_committed", session_timeout_ms=client.told["session_ms"],
        heartbeat_interval_ms=500, partition_assignment_strategy="range",
    )  # fmt: skip
    try:
        _retry(client, lambda: producer.init_transactions(REQUEST_S))
        client.notes.write("initialised", transactional_id=transactional_id)
        client.subscribe(consumer)
        number = 0
        while not client.over.is_set():
            client.rebalanced = False
            records = client.records_of(consumer.consume(BATCH_RECORDS, POLL_S))
            if client.rebalanced:
                # Some of them may be of partitions that are another's by now.
                _go_back(client, consumer)
            elif records:
                number += 1
                _transact(client, producer, consumer, f"{client.name}.{number}", records)
    except KafkaException as failure:
        error = failure.args[0]
        client.notes.write("ended", error=str(error), fenced=error.code() in FENCED)
    finally:
        if client.over.is_set():
            consumer.close()


FENCED: Final = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})


def _transact(client: KafkaClient, producer: Producer, consumer: Consumer, name: str, records: list[Message]) -> None:
    places = [place_of(record) for record in records]
    ends: dict[tuple[str, int], int] = {}
    for topic, partition, offset in places:
        ends[topic, partition] = offset + 1
    offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in ends.items()]
    client.notes.write("begin", transaction=name, inputs=places)
    try:
        producer.begin_transaction()
        for record, (_, partition, offset) in zip(records, places, strict=True):
            producer.produce(client.told["target"], f"{name}|{partition}|{offset}".encode(), record.key())
        group = consumer.consumer_group_metadata()
        _retry(client, lambda: producer.send_offsets_to_transaction(offsets, group, REQUEST_S))
        if client.choose.random() < client.told["aborts"]:
            # Some of what is aborted is in the log by then.
            producer.flush(REQUEST_S)
            _abort(client, producer, consumer, name)
            return
        client.notes.write("committing", transaction=name)
        _retry(client, lambda: producer.commit_transaction(REQUEST_S))
        client.notes.write("committed", transaction=name)
    except KafkaException as failure:
        error = failure.args[0]
        client.notes.write("failed", transaction=name, error=str(error))
        if not error.txn_requires_abort():
            raise
        _abort(client, producer, consumer, name)


def _abort(client: KafkaClient, producer: Producer, consumer: Consumer, name: str) -> None:
    _retry(client, lambda: producer.abort_transaction(REQUEST_S))
    client.notes.write("aborted", transaction=name)
    _go_back(client, consumer)


def _go_back(client: KafkaClient, consumer: Consumer) -> None:
    """To the committed offsets of what is assigned: nothing that was read since is done."""

    def seek() -> None:
        for place in consumer.committed(consumer.assignment(), REQUEST_S):
            if place.error is not None:
                raise KafkaException(place.error)
            place.offset = place.offset if place.offset >= 0 else OFFSET_BEGINNING
            consumer.seek(place)

    _retry(client, seek)


def _retry(client: KafkaClient, action: Callable[[], object]) -> None:
    """Until it is done, as the client's documentation says, or failed for good.

    librdkafka may forget to send a TxnOffsetCommit whose connection has just broken, and then waits for its answer
    whatever the timeout. Such a process ends, and another takes its place, as an operator's supervisor does.
    """

    def give_up() -> None:
        client.notes.write("hangs")
        os._exit(1)

    while True:
        watchdog = threading.Timer(REQUEST_S + HANG_S, give_up)
        watchdog.start()
        try:
            action()
            return
        except KafkaException as failure:
            error = failure.args[0]
            if error.fatal() or error.txn_requires_abort() or not (error.retriable() or error.code() in PASSING):
                raise
            client.notes.write("again", error=str(error))
            if client.over.wait(POLL_S):
                raise
        finally:
            watchdog.cancel()


# What ends by itself: a broker that is away, or was so long that a request has timed out.
PASSING: Final = frozenset(
    {KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._WAIT_COORD,
     KafkaError.REQUEST_TIMED_OUT, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR,
     KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.UNSTABLE_OFFSET_COMMIT}
)  # fmt: skip


def read(client: KafkaClient) -> None:
    """A member of a consumer group that commits what it has read, and waits for each answer."""
    if client.told["protocol"] == "consumer":
        settings: Settings = {"group_protocol": "consumer"}
    else:
        settings = {"session_timeout_ms": client.told["session_ms"], "heartbeat_interval_ms": 500,
                    "partition_assignment_strategy": client.told["protocol"]}  # fmt: skip
    consumer = client.consumer(group_id=client.told["group"], **settings)
    client.subscribe(consumer)
    while not client.over.is_set():
        records = client.records_of(consumer.consume(BATCH_RECORDS * 5, POLL_S))
        client.note_read(records)
        if records:
            _commit(client, consumer)
    consumer.close()
    client.notes.write("left")


def _commit(client: KafkaClient, consumer: Consumer) -> None:
    began = time.monotonic()
    client.notes.write("commit")
    try:
        answered = consumer.commit(asynchronous=False) or []
    except KafkaException:
        # The broker is away, or the partition is another's, or nothing is new: nothing was promised.
        return
    # Of a partition that nothing was read of nothing is committed.
    done = [place for place in answered if place.error is None and place.offset >= 0]
    client.notes.write("offsets", began=began, places=[[place.topic, place.partition, place.offset] for place in done])


def watch(client: KafkaClient) -> None:
    """A reader of committed records without a group, which sees all from the first, and where the partitions end."""
    consumer = client.consumer(group_id="watch", isolation_level="read_committed", auto_offset_reset="error")
    topic = client.told["topic"]
    places = [TopicPartition(topic, number, 0) for number in range(client.told["partitions"])]
    consumer.assign(places)
    next_look = 0.0
    while not client.over.is_set():
        client.note_read(client.records_of(consumer.consume(BATCH_RECORDS * 10, POLL_S)))
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + 0.5
            for place in places:
                _note_end(client, consumer, place)
    consumer.close()


def _note_end(client: KafkaClient, consumer: Consumer, place: TopicPartition) -> None:
    began = time.monotonic()
    try:
        ends = consumer.get_watermark_offsets(place, timeout=2.0, cached=False)
    except KafkaException:
        return
    if ends is not None:
        client.notes.write("end", began=began, place=[place.topic, place.partition], low=ends[0], high=ends[1])


def share(client: KafkaClient) -> None:
    """A member of a share group that accepts most records, gives some back and rejects few."""
    consumer = ShareConsumer(
        client.connection(
            group_id=client.told["group"], share_acknowledgement_mode="explicit", fetch_wait_max_ms=100,
            max_poll_records=BATCH_RECORDS * 5,
        )
    )  # fmt: skip
    consumer.subscribe([client.told["topic"]])
    while not client.over.is_set():
        try:
            _share_turn(client, consumer)
        except KafkaException as failure:
            client.notes.write("failed", error=str(failure))
    consumer.close()
    client.notes.write("left")


def _share_turn(client: KafkaClient, consumer: ShareConsumer) -> None:
    settled: dict[tuple[str, int], list[tuple[int, str]]] = {}
    taken = []
    for message in client.records_of(list(consumer.poll(POLL_S))):
        topic, partition, offset = place_of(message)
        kind = _fate(client, offset)
        taken.append([topic, partition, offset, text_of(message), kind.name, message.delivery_count()])
        settled.setdefault((topic, partition), []).append((offset, kind.name))
        consumer.acknowledge(message, kind)
    if not taken:
        return
    client.notes.write("taken", records=taken)
    began = time.monotonic()
    for place, error in consumer.commit_sync(REQUEST_S).items():
        facts = {"began": began, "place": [place.topic, place.partition]}
        fates = settled.get((place.topic or "", place.partition), [])
        if error is None:
            client.notes.write("settled", **facts, records=fates)
        else:
            client.notes.write("unsettled", **facts, error=str(error))


def _fate(client: KafkaClient, offset: int) -> AcknowledgeType:
    chance = client.choose.random()
    if client.told["drain"]:
        return AcknowledgeType.ACCEPT
    if offset % 50 == 7:
        return AcknowledgeType.REJECT
    return AcknowledgeType.RELEASE if chance < 0.1 else AcknowledgeType.ACCEPT


ROLES: Final[dict[str, Callable[[KafkaClient], None]]] = {
    "produce": produce, "transform": transform, "read": read, "watch": watch, "share": share,
}  # fmt: skip


if __name__ == "__main__":
    KafkaClient.run(ROLES)
