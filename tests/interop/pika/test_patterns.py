"""The three patterns that most systems on a broker are made of: competing consumers, fanout, poison messages."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from tests.support.endpoint import Endpoint
from tests.support.pika_client import (
    Connect,
    Delivery,
    Inbox,
    Unique,
    consumer_count,
    drain,
    get,
    numbered,
    publish,
    ready_count,
    turn,
    wait_ready,
)
from tests.support.waiting import DEADLINE_S, eventually

WORKERS = 50
TASKS = 2000


@dataclass
class Worker(threading.Thread):
    """One of many consumers, with a connection and a pace of its own. It leaves when told to."""

    endpoint: Endpoint
    queue: str
    task_s: float
    done: list[int] = field(default_factory=list)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.ending = threading.Event()

    # Threads are told apart by identity, not by what they have done so far.
    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        try:
            with pika.BlockingConnection(self.endpoint.parameters()) as connection:
                channel = connection.channel()
                channel.basic_qos(prefetch_count=1)
                channel.basic_consume(self.queue, self.work)
                while not self.ending.is_set():
                    connection.process_data_events(time_limit=0.05)
        except (AMQPError, OSError) as error:
            self.failure = error

    def work(
        self, channel: BlockingChannel, method: pika.spec.Basic.Deliver, _: pika.BasicProperties, body: bytes
    ) -> None:
        # The time a task takes is what this pattern is about, so here it passes for real.
        time.sleep(self.task_s)
        self.done.append(int(body))
        channel.basic_ack(method.delivery_tag)


def test_fifty_competing_consumers_share_uneven_work(broker: Endpoint, connect: Connect, unique: Unique) -> None:
    name = unique("work")
    channel = connect().channel()
    channel.queue_declare(name, durable=True)
    # Every fifth worker is twenty times as slow as the others.
    workers = [Worker(broker, name, 0.1 if number % 5 == 0 else 0.005) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: consumer_count(channel, name) == WORKERS, "all workers consume", step=lambda: turn(channel))
        publish(channel, name, *numbered(TASKS), delivery_mode=2)
        eventually(
            lambda: sum(len(worker.done) for worker in workers) >= TASKS or any(worker.failure for worker in workers),
            "all tasks done",
            deadline_s=60,
            step=lambda: turn(channel),
        )
    finally:
        for worker in workers:
            worker.ending.set()
        for worker in workers:
            worker.join(DEADLINE_S)
    assert not [worker.failure for worker in workers if worker.failure]
    times_done = Counter(task for worker in workers for task in worker.done)
    assert times_done == dict.fromkeys(range(TASKS), 1), "every task exactly once"
    assert all(worker.done for worker in workers), "every worker had work"
    slow = [len(worker.done) for worker in workers if worker.task_s == 0.1]
    fast = [len(worker.done) for worker in workers if worker.task_s != 0.1]
    # A slow one holds up nobody: the others do much more in the same time.
    assert min(fast) > max(slow)
    assert ready_count(channel, name) == 0


def test_fanout_to_three_queues_one_of_them_without_a_consumer_for_a_while(connect: Connect, unique: Unique) -> None:
    exchange = unique("events")
    connection = connect()
    channel = connection.channel()
    channel.exchange_declare(exchange, "fanout", durable=True)
    billing, shipping, audit = (unique(stem) for stem in ("billing", "shipping", "audit"))
    for name in (billing, shipping, audit):
        channel.queue_declare(name, durable=True)
        channel.queue_bind(name, exchange)
    present = [Inbox(connection.channel(), name, on_delivery=Delivery.ack) for name in (billing, shipping)]
    first, second = numbered(1000)[:600], numbered(1000)[600:]
    for body in first:
        channel.basic_publish(exchange, "", body, pika.BasicProperties(delivery_mode=2))
    for inbox in present:
        inbox.wait(600)
        assert inbox.bodies == first
    # Nobody has looked at the third one so far, and it has everything.
    wait_ready(channel, audit, 600)
    late = Inbox(connection.channel(), audit, on_delivery=Delivery.ack)
    for body in second:
        channel.basic_publish(exchange, "", body, pika.BasicProperties(delivery_mode=2))
    for inbox in (*present, late):
        inbox.wait(1000)
        assert inbox.bodies == first + second
        assert not any(delivery.redelivered for delivery in inbox.deliveries)


def test_poison_messages_are_moved_aside_after_three_attempts_and_redriven(connect: Connect, unique: Unique) -> None:
    work, retry, parking = unique("work"), unique("retry"), unique("parking")
    attempts_max = 3
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(parking, durable=True)
    # A rejected message waits in `retry` for a moment and comes back; x-death counts how often.
    channel.queue_declare(
        work, durable=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": retry}
    )
    channel.queue_declare(
        retry,
        durable=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": work, "x-message-ttl": 20},
    )
    poisonous = {b"7", b"13"}
    done: list[bytes] = []
    attempts: Counter[bytes] = Counter()

    def handle(delivery: Delivery) -> None:
        attempts[delivery.body] += 1
        if delivery.body not in poisonous:
            done.append(delivery.body)
            delivery.ack()
            return
        rejected = [
            death["count"]
            for death in delivery.headers.get("x-death", [])
            if death["queue"] == work and death["reason"] == "rejected"
        ]
        if sum(rejected) + 1 < attempts_max:
            delivery.channel.basic_reject(delivery.tag, requeue=False)
        else:
            delivery.channel.basic_publish("", parking, delivery.body, delivery.properties)
            delivery.ack()

    consuming = connection.channel()
    consuming.basic_qos(prefetch_count=5)
    inbox = Inbox(consuming, work, on_delivery=handle)
    publish(channel, work, *numbered(20), delivery_mode=2)
    wait_ready(channel, parking, 2)
    eventually(lambda: len(done) == 18, "all healthy messages done", step=lambda: turn(channel))
    # The poison neither blocked the others nor was tried for ever.
    assert sorted(done, key=int) == [body for body in numbered(20) if body not in poisonous]
    assert {body: attempts[body] for body in poisonous} == dict.fromkeys(poisonous, attempts_max)
    assert [ready_count(channel, name) for name in (work, retry)] == [0, 0]

    # The cause is mended: what was put aside is sent again, and done.
    poisonous.clear()
    for _ in range(2):
        parked = get(channel, parking, auto_ack=False)
        publish(channel, work, parked.body, delivery_mode=2)
        parked.ack()
    eventually(lambda: len(done) == 20, "the redriven messages done", step=lambda: turn(channel))
    inbox.cancel()
    assert sorted(done, key=int) == numbered(20)
    assert drain(channel, parking) == []
