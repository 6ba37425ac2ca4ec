"""One client process of a measurement: `python -m bench.kafka.client TASK`, with the task as JSON.

It says `ready`, waits for a line, does its work, answers with one line of JSON, and waits for a second line before it
closes its connections, so that coming and going are not charged to the broker.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from bench.kafka.workloads import KAFKA_PACED_RATE

_STANDSTILL_SECONDS_MAX: Final = 60.0
# Between two looks at the clock and at the delivery reports.
_RECORDS_PER_LOOK: Final = 500
_RECORDS_PER_CALL: Final = 10_000
# The sleep before a record is due ends this much early; the rest is spent looking at the clock.
_SLEEP_MARGIN_S: Final = 0.0002


@dataclass(frozen=True, slots=True)
class Task:
    role: str
    address: str
    topic: str
    partitions: int
    record_bytes: int
    seconds: float
    records: int
    """How many to read; those who produce stop by the clock."""
    group: str
    settings: dict[str, Any]


@dataclass(slots=True)
class Answer:
    """What a process has done. Times are of the machine's monotonic clock."""

    records: int = 0
    begin_s: float = 0.0
    end_s: float = 0.0
    cpu_s: float = 0.0
    """Of all threads."""
    thread_cpu_s: float = 0.0
    """Of the thread that calls the library: it is Python's, and can be the limit."""
    latencies_us: list[float] = field(default_factory=list)


class ClientError(Exception):
    """The broker refused or lost something, or stands still."""


def _await_line() -> None:
    if not sys.stdin.readline():
        sys.exit(1)


def _start() -> Answer:
    print("ready", flush=True)
    _await_line()
    return Answer(begin_s=time.monotonic(), cpu_s=-time.process_time(), thread_cpu_s=-time.thread_time())


def _finish(answer: Answer, records: int) -> Answer:
    answer.records = records
    answer.end_s = time.monotonic()
    answer.cpu_s += time.process_time()
    answer.thread_cpu_s += time.thread_time()
    return answer


# --- Producing --------------------------------------------------------------------------------------------------------


def _producer(task: Task) -> Producer:
    producer = Producer({"bootstrap.servers": task.address, "acks": "all", **task.settings})
    producer.list_topics(task.topic, timeout=10)
    # The connection to the partition's leader is another one, which is made for the first record.
    for partition in range(task.partitions):
        producer.produce(task.topic, bytes(task.record_bytes), partition=partition)
    _flush(producer)
    return producer


def _flush(producer: Producer) -> None:
    if left := producer.flush(_STANDSTILL_SECONDS_MAX):
        raise ClientError(f"{left} records were not acknowledged")


def _check_appended(task: Task, sent: int) -> None:
    """What the log has must be what was produced: nothing lost, nothing twice. It tells of refusals, too."""
    expected = sent + task.partitions
    consumer = Consumer({"bootstrap.servers": task.address, "group.id": "check"})
    found = 0
    for partition in range(task.partitions):
        low, high = consumer.get_watermark_offsets(TopicPartition(task.topic, partition), timeout=10)
        found += high - low
    consumer.close()
    if found != expected:
        raise ClientError(f"{expected} records were acknowledged, but the log has {found}")


def _flood(task: Task) -> Answer:
    """Produce for a time, or so many records, as fast as the library takes them."""
    producer = _producer(task)
    produce, poll, topic, partitions = producer.produce, producer.poll, task.topic, task.partitions
    body = bytes(task.record_bytes)
    sent, partition = 0, 0
    answer = _start()
    end = answer.begin_s + task.seconds if not task.records else float("inf")
    while time.monotonic() < end and (not task.records or sent < task.records):
        for _ in range(_RECORDS_PER_LOOK):
            while True:
                try:
                    produce(topic, body, None, partition)
                    break
                except BufferError:
                    poll(0.01)
            partition += 1
            if partition == partitions:
                partition = 0
        sent += _RECORDS_PER_LOOK
        poll(0)
    _flush(producer)
    return _finish(answer, sent)


def _raise_if_failed(error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        raise KafkaException(error)


def _synchronous(task: Task) -> Answer:
    """Produce a record when the one before has been acknowledged."""
    producer = _producer(task)
    body = bytes(task.record_bytes)
    sent = 0
    answer = _start()
    end = begin = answer.begin_s
    while end - answer.begin_s < task.seconds:
        producer.produce(task.topic, body, on_delivery=_raise_if_failed)
        _flush(producer)
        end = time.monotonic()
        answer.latencies_us.append((end - begin) * 1e6)
        begin = end
        sent += 1
    return _finish(answer, sent)


def _paced(task: Task) -> Answer:
    """Produce records at a fixed rate. Each begins with the time at which it was due."""
    producer = _producer(task)
    filler = bytes(task.record_bytes - 8)
    answer = _start()
    interval_ns = 1_000_000_000 // KAFKA_PACED_RATE
    due_ns = time.monotonic_ns()
    for _ in range(task.records):
        due_ns += interval_ns
        spare_s = (due_ns - time.monotonic_ns()) / 1e9 - _SLEEP_MARGIN_S
        if spare_s > 0:
            time.sleep(spare_s)
        while time.monotonic_ns() < due_ns:
            pass
        producer.produce(task.topic, due_ns.to_bytes(8) + filler, on_delivery=_raise_if_failed)
        producer.poll(0)
    _flush(producer)
    return _finish(answer, task.records)


# --- Consuming --------------------------------------------------------------------------------------------------------


def _consumer(task: Task) -> Consumer:
    return Consumer({
        "bootstrap.servers": task.address,
        "group.id": task.group,
        "auto.offset.reset": "earliest",
        # By default the library stops fetching for a second whenever 100,000 records wait for the application.
        "queued.min.messages": 10_000_000,
        "queued.max.messages.kbytes": 2_000_000,
    })  # fmt: skip


def _read_all(consumer: Consumer, answer: Answer, wanted: int) -> Answer:
    got = 0
    moved_s = time.monotonic()
    while got < wanted:
        messages = consumer.consume(min(_RECORDS_PER_CALL, wanted - got), 1.0)
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
        if messages:
            moved_s = time.monotonic()
        elif time.monotonic() - moved_s > _STANDSTILL_SECONDS_MAX:
            raise ClientError(f"only {got} of {wanted} records came")
        got += len(messages)
    return _finish(answer, got)


def _replay(task: Task) -> Answer:
    """Read a topic from its beginning, without a group."""
    consumer = _consumer(task)
    consumer.list_topics(task.topic, timeout=10)
    answer = _start()
    consumer.assign([TopicPartition(task.topic, partition, 0) for partition in range(task.partitions)])
    return _read_all(consumer, answer, task.records)


def _member(task: Task) -> Answer:
    """Read half of a topic as one of a group's two members, from when both have their partitions."""
    consumer = _consumer(task)

    def assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.assign(partitions)
        consumer.pause(partitions)

    consumer.subscribe([task.topic], on_assign=assign)
    deadline = time.monotonic() + _STANDSTILL_SECONDS_MAX
    while len(consumer.assignment()) != task.partitions // 2:
        consumer.poll(0.05)
        if time.monotonic() > deadline:
            raise ClientError(f"the group has not been shared out: {consumer.assignment()}")
    answer = _start()
    consumer.resume(consumer.assignment())
    return _read_all(consumer, answer, task.records)


def _next_body(consumer: Consumer) -> bytes:
    message = consumer.poll(_STANDSTILL_SECONDS_MAX)
    if message is None:
        raise ClientError("no record came")
    if (error := message.error()) is not None:
        raise KafkaException(error)
    body = message.value()
    assert body is not None
    return body


def _listener(task: Task) -> Answer:
    """Take records one by one, and note how long ago each was due."""
    consumer = _consumer(task)
    # Behind the records by which the producer has made its connections.
    consumer.assign([TopicPartition(task.topic, 0, 0)])
    _next_body(consumer)
    answer = _start()
    for _ in range(task.records):
        body = _next_body(consumer)
        answer.latencies_us.append((time.monotonic_ns() - int.from_bytes(body[:8])) / 1000)
    return _finish(answer, task.records)


_PRODUCING: Final = frozenset({"flood", "synchronous", "paced"})
ROLES: Final[dict[str, Callable[[Task], Answer]]] = {
    "flood": _flood,
    "synchronous": _synchronous,
    "paced": _paced,
    "replay": _replay,
    "member": _member,
    "listener": _listener,
}


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    try:
        answer = ROLES[task.role](task)
        print(json.dumps(asdict(answer)), flush=True)
        _await_line()
        if task.role in _PRODUCING:
            _check_appended(task, answer.records)
    except (ClientError, KafkaException) as error:
        sys.exit(f"{task.role}: {error}")


if __name__ == "__main__":
    main()
