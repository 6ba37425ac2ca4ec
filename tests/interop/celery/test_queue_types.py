"""Celery on queues with arguments: priorities, and quorum queues, on which it has the broker delay its tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import celery
import pytest
from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE, MAX_LEVEL, level_name
from pika.adapters.blocking_connection import BlockingChannel

from tests.interop.celery.conftest import StartWorker
from tests.interop.celery.worker import RESULT_DEADLINE_S, client, send
from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import ready_count
from tests.support.waiting import eventually

# What Celery's documentation asks for: delayed tasks are routed by their keys, which a direct exchange does not do.
QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "broker_transport_options": {"confirm_publish": True},
}


def test_tasks_of_a_higher_priority_are_run_first(broker: Endpoint, start_worker: StartWorker, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    priorities = (0, 3, 9, None, 10, 3, 0, 9)
    with client(broker, task_queue_max_priority=10) as own:
        for number, priority in enumerate(priorities):
            send(own, "tests.note", str(notes), number, priority=priority)
        start_worker(broker, own, "steady")
        eventually(lambda: len(notes.read_text().splitlines()) == len(priorities), "all tasks done")
    done = [int(line.split()[0]) for line in notes.read_text().splitlines()]
    # Of one priority the first goes first; without one, a task has the lowest.
    assert done == sorted(range(len(priorities)), key=lambda number: -(priorities[number] or 0))


@pytest.fixture
def quorum(broker: Endpoint, channel: BlockingChannel) -> Iterator[celery.Celery]:
    """A client whose queue is a quorum queue."""
    with client(broker, **QUORUM) as made:
        yield made
    # The names of Celery's delaying queues are the same for everybody.
    for level in range(MAX_LEVEL + 1):
        channel.queue_delete(level_name(level))
        channel.exchange_delete(level_name(level))
    channel.exchange_delete(CELERY_DELAYED_DELIVERY_EXCHANGE)


class TestQuorumQueues:
    def test_delayed_tasks_wait_in_the_broker_and_run_at_their_times(
        self, broker: Endpoint, quorum: celery.Celery, start_worker: StartWorker, channel: BlockingChannel
    ) -> None:
        worker = start_worker(broker, quorum, "steady")
        # Quorum queues know a prefetch per consumer only; Celery finds out by the queue's type.
        assert "Global QoS is disabled. Prefetch count is now static." in worker.log
        sent_at = time.time()
        # One bit of the countdown is one queue: three seconds pass through those of two and of one.
        later = {countdown: send(quorum, "tests.moment", countdown=countdown) for countdown in (3, 1, 2)}
        # More than 2^11 seconds, and less than twice as many.
        send(quorum, "tests.moment", countdown=3600)
        eventually(lambda: ready_count(channel, level_name(11)) == 1, "a task waits for an hour")
        assert send(quorum, "tests.add", 1, 2).get(timeout=RESULT_DEADLINE_S) == 3
        assert quorum.control.inspect(destination=[worker.hostname], timeout=10, limit=1).scheduled() == {
            worker.hostname: []
        }
        run_at = {countdown: result.get(timeout=RESULT_DEADLINE_S) for countdown, result in later.items()}
        assert all(ran >= sent_at + countdown for countdown, ran in run_at.items())

    @pytest.mark.on_request
    def test_a_task_that_retries_is_done_in_the_end(
        self, broker: Endpoint, quorum: celery.Celery, start_worker: StartWorker, tmp_path: Path
    ) -> None:
        start_worker(broker, quorum, "steady")
        attempts = tmp_path / "attempts"
        assert send(quorum, "tests.backing_off", str(attempts)).get(timeout=RESULT_DEADLINE_S) == 2
        first, second, third = (float(line) for line in attempts.read_text().split())
        assert second - first >= 1
        assert third - second >= 2

    def test_a_task_of_a_killed_worker_is_done_by_another(
        self, broker: Endpoint, quorum: celery.Celery, start_worker: StartWorker, tmp_path: Path
    ) -> None:
        doomed = start_worker(broker, quorum, "doomed")
        result = send(quorum, "tests.blocking", str(tmp_path))
        eventually((tmp_path / f"begun-{doomed.hostname}").exists, "the first worker has begun")
        doomed.kill()
        heir = start_worker(broker, quorum, "heir")
        (tmp_path / "release").touch()
        assert result.get(timeout=RESULT_DEADLINE_S) == heir.hostname


def test_delayed_tasks_survive_a_kill_of_the_broker_and_need_no_worker_meanwhile(
    broker_process: BrokerProcess, start_worker: StartWorker, tmp_path: Path
) -> None:
    endpoint = Endpoint.of_url(broker_process.amqp_url)
    notes = tmp_path / "notes"
    notes.touch()
    with client(endpoint, **QUORUM) as own:
        start_worker(endpoint, own, "first").kill()
        for countdown in (1, 2, 3):
            send(own, "tests.note", str(notes), countdown, countdown=countdown)
        broker_process.kill()
        broker_process.start()
        start_worker(endpoint, own, "second")
        eventually(lambda: len(notes.read_text().splitlines()) == 3, "all tasks done")
    assert sorted(int(line.split()[0]) for line in notes.read_text().splitlines()) == [1, 2, 3]
