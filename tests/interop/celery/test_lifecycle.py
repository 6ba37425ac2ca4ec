"""Celery workers and brokers that come and go: what was sent is done, and what was begun is done again or finished."""

from __future__ import annotations

import os
from pathlib import Path

import celery
import pytest

from tests.interop.celery.conftest import StartWorker
from tests.interop.celery.worker import RESULT_DEADLINE_S, WorkerProcess, client, send
from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Connect, ready_count, wait_ready
from tests.support.waiting import eventually


def begun(folder: Path, worker: WorkerProcess) -> Path:
    return folder / f"begun-{worker.hostname}"


def test_tasks_sent_without_a_worker_wait_for_one(
    broker: Endpoint, own_app: celery.Celery, start_worker: StartWorker
) -> None:
    results = [send(own_app, "tests.add", number, 1) for number in range(10)]
    start_worker(broker, own_app, "late")
    assert [result.get(timeout=RESULT_DEADLINE_S) for result in results] == list(range(1, 11))


def test_a_task_of_a_killed_worker_is_done_by_another(
    broker: Endpoint, own_app: celery.Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    doomed = start_worker(broker, own_app, "doomed")
    result = send(own_app, "tests.blocking", str(tmp_path))
    eventually(begun(tmp_path, doomed).exists, "the first worker has begun")
    heir = start_worker(broker, own_app, "heir")
    # acks_late: the task is the first worker's until it is done, whoever else is free.
    assert not begun(tmp_path, heir).exists()
    doomed.kill()
    eventually(begun(tmp_path, heir).exists, "the second worker has begun")
    (tmp_path / "release").touch()
    assert result.get(timeout=RESULT_DEADLINE_S) == heir.hostname
    assert (tmp_path / "done").read_text() == f"{heir.hostname} redelivered=True\n"


@pytest.mark.on_request
def test_a_task_whose_process_is_killed_is_requeued(
    broker: Endpoint, own_app: celery.Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    start_worker(broker, own_app, "steady")
    attempts = tmp_path / "attempts"
    assert send(own_app, "tests.kill_own_process", str(attempts)).get(timeout=RESULT_DEADLINE_S) is True
    assert attempts.read_text() == "False\nTrue\n"


def test_a_warm_shutdown_finishes_what_has_begun_and_returns_the_rest(
    broker: Endpoint, connect: Connect, start_worker: StartWorker, tmp_path: Path
) -> None:
    with client(broker, worker_prefetch_multiplier=4) as own:
        leaving = start_worker(broker, own, "leaving")
        result = send(own, "tests.blocking", str(tmp_path))
        eventually(begun(tmp_path, leaving).exists, "the worker has begun")
        channel = connect().channel()
        rest = [send(own, "tests.add", number, 1) for number in range(5)]
        # It holds three tasks beside the one that it is busy with, and two wait.
        wait_ready(channel, own.conf.task_default_queue, 2)
        leaving.ask_to_stop()
        eventually(lambda: "Warm shutdown" in leaving.log, "the worker has heard")
        (tmp_path / "release").touch()
        assert result.get(timeout=RESULT_DEADLINE_S) == leaving.hostname
        assert leaving.wait() == 0
        # The pool may have taken up one of the tasks before it closed.
        assert ready_count(channel, own.conf.task_default_queue) >= 4
        start_worker(broker, own, "next")
        assert [task.get(timeout=RESULT_DEADLINE_S) for task in rest] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("end", [pytest.param("terminate", marks=pytest.mark.on_request), "kill"])
def test_a_worker_finds_a_restarted_broker_again_and_nothing_is_lost(
    broker_process: BrokerProcess, start_worker: StartWorker, tmp_path: Path, end: str
) -> None:
    endpoint = Endpoint.of_url(broker_process.amqp_url)
    notes = tmp_path / "notes"
    notes.touch()
    with client(endpoint, broker_transport_options={"confirm_publish": True}) as own:
        worker = start_worker(endpoint, own, "steady")
        send(own, "tests.blocking", str(tmp_path))
        eventually(begun(tmp_path, worker).exists, "the worker has begun")
        for number in range(20):
            send(own, "tests.note", str(notes), number)
        getattr(broker_process, end)()
        eventually(lambda: "Connection to broker lost" in worker.log, "the worker has noticed")
        broker_process.start()
        (tmp_path / "release").touch()
        for number in range(20, 40):
            send(own, "tests.note", str(notes), number)

        def done() -> set[int]:
            return {int(line.split()[0]) for line in notes.read_text().splitlines()}

        eventually(lambda: done() == set(range(40)), "all tasks done", deadline_s=60)
        # The task in hand was not acknowledged when the connection broke: it is done once more, and told so.
        eventually(
            lambda: f"{worker.hostname} redelivered=True\n" in (tmp_path / "done").read_text(), "the task done again"
        )
        assert worker.running
        assert os.path.exists(begun(tmp_path, worker))
