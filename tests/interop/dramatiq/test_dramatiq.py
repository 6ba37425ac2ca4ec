"""dramatiq: actors, workers, its three queues for each actor, delays, retries, dead letters, a broker restarted."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import dramatiq.worker
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import dq_name, xq_name
from dramatiq.middleware import CurrentMessage, default_middleware
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique, get, publish, ready_count, wait_ready
from tests.support.waiting import eventually

JOIN_DEADLINE_MS = 20_000

StartWorker = Callable[..., dramatiq.Worker]


def make_broker(endpoint: Endpoint, **settings: Any) -> RabbitmqBroker:
    middleware = [kind() for kind in default_middleware if kind is not dramatiq.middleware.Retries]
    retries = dramatiq.middleware.Retries(min_backoff=50, max_backoff=200)
    broker = RabbitmqBroker(url=endpoint.url, middleware=[*middleware, retries, CurrentMessage()], **settings)
    broker.emit_after("process_boot")
    return broker


@pytest.fixture
def tasks(broker: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[RabbitmqBroker]:
    """dramatiq's broker object, which is the client's side."""
    made = make_broker(broker, confirm_delivery=True, max_priority=10)
    # Pipelines and callbacks send through the one that is everybody's.
    monkeypatch.setattr(dramatiq.broker, "global_broker", made)
    yield made
    made.close()


@pytest.fixture
def name(unique: Unique, channel: BlockingChannel) -> Iterator[str]:
    """A queue's name. dramatiq makes a delay queue and a dead letter queue beside it."""
    made = unique("dramatiq")
    yield made
    for beside in (dq_name(made), xq_name(made)):
        channel.queue_delete(beside)


@pytest.fixture
def start_worker(tasks: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartWorker]:
    # How long a consumer waits before it connects again, and before it acknowledges again what failed.
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.05)
    monkeypatch.setattr(dramatiq.worker, "POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.05)
    started: list[dramatiq.Worker] = []

    def start(broker: RabbitmqBroker = tasks, *, threads: int = 4) -> dramatiq.Worker:
        started.append(dramatiq.Worker(broker, worker_timeout=20, worker_threads=threads))
        started[-1].start()
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


def test_each_of_many_messages_is_done_once(tasks: RabbitmqBroker, name: str, start_worker: StartWorker) -> None:
    done: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work(number: int) -> None:
        done.append(number)

    for number in range(200):
        work.send(number)
    worker = start_worker()
    tasks.join(name, timeout=JOIN_DEADLINE_MS)
    worker.join()
    assert sorted(done) == list(range(200))


def test_a_delayed_message_waits_in_the_delay_queue_and_runs_at_its_time(
    tasks: RabbitmqBroker, name: str, channel: BlockingChannel, start_worker: StartWorker
) -> None:
    run_at: dict[str, float] = {}

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work(which: str) -> None:
        run_at[which] = time.time()

    sent_at = time.time()
    for which, delay_ms in (("last", 600), ("second", 300)):
        work.send_with_options(args=(which,), delay=delay_ms)
    work.send("first")
    wait_ready(channel, dq_name(name), 2)
    start_worker()
    eventually(lambda: len(run_at) == 3, "all messages done")
    # dramatiq counts in whole milliseconds.
    assert run_at["second"] >= sent_at + 0.299
    assert run_at["last"] >= sent_at + 0.599


def test_a_message_that_fails_is_tried_again(tasks: RabbitmqBroker, name: str, start_worker: StartWorker) -> None:
    attempts: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work() -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        attempts.append(message.options.get("retries", 0))
        if len(attempts) < 3:
            raise ConnectionError("not yet")

    work.send()
    worker = start_worker()
    tasks.join(name, timeout=JOIN_DEADLINE_MS)
    worker.join()
    assert attempts == [0, 1, 2]


def test_a_message_that_keeps_failing_is_dead_lettered(
    tasks: RabbitmqBroker, name: str, channel: BlockingChannel, start_worker: StartWorker
) -> None:
    attempts: list[float] = []

    @dramatiq.actor(broker=tasks, queue_name=name, max_retries=2)
    def work() -> None:
        attempts.append(time.time())
        raise ConnectionError("never")

    sent = work.send()
    start_worker()
    wait_ready(channel, xq_name(name), 1)
    assert len(attempts) == 3
    dead = get(channel, xq_name(name))
    # A retry is a new message, so this one has died once: when the last attempt failed.
    assert [(death["queue"], death["reason"], death["count"]) for death in dead.headers["x-death"]] == [
        (name, "rejected", 1)
    ]
    assert dramatiq.Message.decode(dead.body).message_id == sent.message_id
    assert ready_count(channel, name) == 0


def test_messages_that_no_actor_understands_are_dead_lettered(
    tasks: RabbitmqBroker, name: str, channel: BlockingChannel, start_worker: StartWorker
) -> None:
    done: list[bool] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work() -> None:
        done.append(True)

    tasks.declare_queue(name, ensure=True)
    publish(channel, name, b"this is no message", delivery_mode=2)
    tasks.enqueue(work.message().copy(actor_name="unknown"))
    work.send()
    start_worker()
    wait_ready(channel, xq_name(name), 2)
    eventually(lambda: done, "the actor's own message done")
    assert get(channel, xq_name(name)).headers["x-first-death-reason"] == "rejected"


def test_messages_of_a_higher_priority_go_first(tasks: RabbitmqBroker, name: str, start_worker: StartWorker) -> None:
    done: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work(priority: int) -> None:
        done.append(priority)

    for priority in (1, 10, 0, 5, 10):
        work.send_with_options(args=(priority,), broker_priority=priority)
    worker = start_worker(threads=1)
    tasks.join(name, timeout=JOIN_DEADLINE_MS)
    worker.join()
    assert done == [10, 10, 5, 1, 0]


def test_pipelines_and_callbacks_send_what_comes_next(
    tasks: RabbitmqBroker, name: str, start_worker: StartWorker
) -> None:
    ended: list[int] = []
    succeeded: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def add(x: int, y: int) -> int:
        return x + y

    @dramatiq.actor(broker=tasks, queue_name=name)
    def end(x: int) -> None:
        ended.append(x)

    @dramatiq.actor(broker=tasks, queue_name=name)
    def on_success(message: dict[str, Any], result: int) -> None:
        succeeded.append(result)

    (add.message(1, 2) | add.message(10) | end.message()).run()
    add.send_with_options(args=(20, 3), on_success=on_success)
    start_worker()
    eventually(lambda: ended == [13] and succeeded == [23], "both ends reached")


def test_middleware_hears_what_becomes_of_each_message(
    tasks: RabbitmqBroker, name: str, channel: BlockingChannel, start_worker: StartWorker
) -> None:
    heard: list[str] = []

    class Listener(dramatiq.Middleware):
        def after_ack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            heard.append(f"ack {message.actor_name}")

        def after_nack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            heard.append(f"nack {message.actor_name}")

    tasks.add_middleware(Listener())

    @dramatiq.actor(broker=tasks, queue_name=name)
    def healthy() -> None:
        pass

    @dramatiq.actor(broker=tasks, queue_name=name, max_retries=0)
    def poisonous() -> None:
        raise ValueError("on purpose")

    # Older than it may be when a worker gets it.
    @dramatiq.actor(broker=tasks, queue_name=name, max_age=1)
    def late() -> None:
        pytest.fail("this message is too old to be run")

    late.send_with_options(delay=20)
    healthy.send()
    poisonous.send()
    start_worker()
    wait_ready(channel, xq_name(name), 2)
    eventually(lambda: len(heard) == 4, "four messages settled")
    # The late one is acknowledged in the delay queue, published once more, and refused when it comes.
    assert sorted(heard) == ["ack healthy", "ack late", "nack late", "nack poisonous"]


def test_a_worker_that_stops_finishes_what_has_begun_and_returns_the_rest(
    tasks: RabbitmqBroker, name: str, channel: BlockingChannel, start_worker: StartWorker
) -> None:
    begun, release = threading.Event(), threading.Event()
    done: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work(number: int) -> None:
        begun.set()
        assert release.wait(20)
        done.append(number)

    for number in range(10):
        work.send(number)
    worker = start_worker(threads=1)
    assert begun.wait(20)
    # It has one in hand, and holds another.
    wait_ready(channel, name, 8)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    eventually(lambda: not worker.workers[0].running, "the worker has heard")
    release.set()
    stopping.join(20)
    assert done == [0]
    wait_ready(channel, name, 9)
    start_worker(threads=1)
    eventually(lambda: sorted(done) == list(range(10)), "the rest done")


def test_queues_that_have_been_deleted_are_declared_again(
    tasks: RabbitmqBroker, name: str, channel: BlockingChannel, start_worker: StartWorker
) -> None:
    done: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name=name)
    def work(number: int) -> None:
        done.append(number)

    start_worker()
    work.send(1)
    eventually(lambda: done == [1], "a message before")
    # The consumers are cancelled by the broker, and a publish to nowhere comes back.
    for queue in (name, dq_name(name), xq_name(name)):
        channel.queue_delete(queue)
    work.send(2)
    eventually(lambda: done == [1, 2], "a message after")


@pytest.fixture
def leaky() -> Iterator[None]:
    """dramatiq forgets a connection that it has lost, with its sockets. They go in this test, not in a later one."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:.*<socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("leaky")
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_worker_finds_a_restarted_broker_again_and_nothing_is_lost(
    broker_process: BrokerProcess, start_worker: StartWorker, end: str
) -> None:
    tasks = make_broker(Endpoint.of_url(broker_process.amqp_url), confirm_delivery=True)
    begun, release = threading.Event(), threading.Event()
    done: list[int] = []

    @dramatiq.actor(broker=tasks, queue_name="work")
    def work(number: int) -> None:
        begun.set()
        assert release.wait(20)
        done.append(number)

    try:
        for number in range(20):
            work.send(number)
        work.send_with_options(args=(20,), delay=300)
        start_worker(tasks, threads=2)
        assert begun.wait(20)
        getattr(broker_process, end)()
        broker_process.start()
        release.set()
        work.send(21)
        # What was in hand is done twice: its acknowledgement came too late.
        eventually(lambda: set(done) == set(range(22)), "all messages done")
    finally:
        release.set()
        tasks.close()
