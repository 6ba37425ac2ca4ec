"""Celery's remote control and events: fanout exchanges and short-lived queues beside those that carry the tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.app.control import Inspect

from tests.interop.celery import tasks
from tests.interop.celery.conftest import StartWorker
from tests.interop.celery.worker import RESULT_DEADLINE_S, WorkerProcess, client, send
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Connect, consumer_count
from tests.support.waiting import eventually

Event = dict[str, Any]


@pytest.fixture
def inspect(app: celery.Celery, worker: WorkerProcess, broker: Endpoint) -> Inspect:
    return app.control.inspect(destination=[worker.hostname], timeout=10, limit=1)


@pytest.fixture
def told(app: celery.Celery, worker: WorkerProcess, broker: Endpoint) -> Callable[..., Any]:
    """Sends a command to the shared worker and returns its answer."""

    def tell(command: str, **arguments: Any) -> Any:
        answers = app.control.broadcast(
            command, arguments=arguments, destination=[worker.hostname], reply=True, timeout=10, limit=1
        )
        return answers[0][worker.hostname]

    return tell


class TestOneWorker:
    def test_it_answers(self, told: Callable[..., Any], inspect: Inspect, worker: WorkerProcess) -> None:
        assert told("ping") == {"ok": "pong"}
        assert {"tests.add", "tests.fail"} <= set(inspect.registered()[worker.hostname])
        assert inspect.stats()[worker.hostname]["prefetch_count"] >= 1
        assert inspect.active()[worker.hostname] == []

    def test_it_tells_what_it_is_busy_with_and_what_is_scheduled(
        self, app: celery.Celery, inspect: Inspect, worker: WorkerProcess, tmp_path: Path
    ) -> None:
        later = send(app, "tests.add", 1, 1, countdown=300)
        eventually(lambda: inspect.scheduled()[worker.hostname], "the worker holds the delayed task")
        busy = send(app, "tests.blocking", str(tmp_path))
        active = eventually(lambda: inspect.active()[worker.hostname], "the worker is busy")
        assert [task["id"] for task in active] == [busy.id]
        assert [task["request"]["id"] for task in inspect.scheduled()[worker.hostname]] == [later.id]
        app.control.revoke(later.id, destination=[worker.hostname], reply=True, timeout=10, limit=1)
        (tmp_path / "release").touch()
        assert busy.get(timeout=RESULT_DEADLINE_S) == worker.hostname

    def test_a_revoked_task_is_not_run(self, app: celery.Celery, worker: WorkerProcess, tmp_path: Path) -> None:
        busy = send(app, "tests.blocking", str(tmp_path))
        eventually((tmp_path / f"begun-{worker.hostname}").exists, "the worker is busy")
        revoked = send(app, "tests.note", str(tmp_path / "notes"), "revoked")
        app.control.revoke(revoked.id, destination=[worker.hostname], reply=True, timeout=10, limit=1)
        (tmp_path / "release").touch()
        assert busy.get(timeout=RESULT_DEADLINE_S) == worker.hostname
        with pytest.raises(celery.exceptions.TaskRevokedError):
            revoked.get(timeout=RESULT_DEADLINE_S)
        assert not (tmp_path / "notes").exists()

    def test_it_takes_up_another_queue_and_leaves_it_again(
        self, app: celery.Celery, told: Callable[..., Any], connect: Connect
    ) -> None:
        extra = f"{app.conf.task_default_queue}-extra"
        assert "ok" in told("add_consumer", queue=extra)
        assert send(app, "tests.add", 20, 3, queue=extra).get(timeout=RESULT_DEADLINE_S) == 23
        channel = connect().channel()
        assert consumer_count(channel, extra) == 1
        assert "ok" in told("cancel_consumer", queue=extra)
        # The worker answers first and cancels then.
        eventually(lambda: consumer_count(channel, extra) == 0, "the queue has no consumer")
        channel.queue_delete(extra)


class Events:
    """What workers and clients tell about their tasks, received on a thread of its own."""

    def __init__(self, app: celery.Celery) -> None:
        self.seen: list[Event] = []
        self._connection = app.connection()
        self._ended = threading.Event()
        self._ready = threading.Event()
        receiver = app.events.Receiver(self._connection, handlers={"*": self.seen.append})
        self._receiver = receiver
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(RESULT_DEADLINE_S)

    def _run(self) -> None:
        with self._receiver.consumer_context(wakeup=False) as (connection, _, _):
            self._ready.set()
            while not self._ended.is_set():
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    continue

    def of(self, task_id: str) -> list[str]:
        return [event["type"] for event in self.seen if event.get("uuid") == task_id]

    def of_worker(self, hostname: str) -> set[str]:
        return {event["type"] for event in self.seen if event["hostname"] == hostname}

    def close(self) -> None:
        self._ended.set()
        self._thread.join(RESULT_DEADLINE_S)
        self._connection.close()


@pytest.fixture
def events(app: celery.Celery, broker: Endpoint) -> Iterator[Events]:
    receiving = Events(app)
    yield receiving
    receiving.close()


def test_events_tell_what_becomes_of_tasks_and_workers(
    app: celery.Celery, worker: WorkerProcess, events: Events
) -> None:
    done = send(app, "tests.add", 1, 2)
    failed = send(app, "tests.fail", "on purpose")
    retried = send(app, "tests.third_time")
    assert done.get(timeout=RESULT_DEADLINE_S) == 3
    assert retried.get(timeout=RESULT_DEADLINE_S) == 2
    expected = {
        done.id: {"task-sent", "task-received", "task-started", "task-succeeded"},
        failed.id: {"task-sent", "task-received", "task-started", "task-failed"},
        retried.id: {"task-sent", "task-received", "task-started", "task-retried", "task-succeeded"},
    }
    for task_id, types in expected.items():
        eventually(lambda task_id=task_id, types=types: set(events.of(task_id)) == types, f"the events {types}")
    of_the_worker = [kind for kind in events.of(done.id) if kind != "task-sent"]
    assert of_the_worker == ["task-received", "task-started", "task-succeeded"]
    assert events.of(retried.id).count("task-retried") == 2
    # Heartbeats come every two seconds.
    eventually(lambda: "worker-heartbeat" in events.of_worker(worker.hostname), "a heartbeat of the worker")


def test_a_rate_limit_holds_tasks_back(broker: Endpoint, own_app: celery.Celery, start_worker: StartWorker) -> None:
    worker = start_worker(broker, own_app, "steady")
    where = {"destination": [worker.hostname], "timeout": 10, "limit": 1}
    answer = own_app.control.rate_limit("tests.moment", "1/h", reply=True, **where)
    assert "ok" in answer[0][worker.hostname]
    send(own_app, "tests.moment").get(timeout=RESULT_DEADLINE_S)
    held = send(own_app, "tests.moment")

    eventually(lambda: f"[{held.id}] received" in worker.log, "the worker holds the second task")
    assert own_app.control.inspect(**where).active() == {worker.hostname: []}
    assert not held.ready()


@pytest.mark.on_request
def test_a_pool_that_has_grown_is_given_more_tasks(
    broker: Endpoint, own_app: celery.Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(broker, own_app, "growing")
    folders = [tmp_path / f"task-{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    tasks_sent = [send(own_app, "tests.blocking", str(folder)) for folder in folders]

    def begun() -> int:
        return sum((folder / f"begun-{worker.hostname}").exists() for folder in folders)

    eventually(lambda: begun() == 1, "the first task has begun")
    # One process and a prefetch of one; the worker raises the prefetch together with its processes.
    own_app.control.pool_grow(2, destination=[worker.hostname], reply=True, timeout=10, limit=1)
    eventually(lambda: begun() == 3, "all tasks have begun")
    for folder in folders:
        (folder / "release").touch()
    assert [task.get(timeout=RESULT_DEADLINE_S) for task in tasks_sent] == [worker.hostname] * 3


def test_a_running_task_is_terminated(
    broker: Endpoint, own_app: celery.Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(broker, own_app, "steady")
    busy = send(own_app, "tests.blocking", str(tmp_path))
    eventually((tmp_path / f"begun-{worker.hostname}").exists, "the worker is busy")
    own_app.control.revoke(
        busy.id, terminate=True, signal="SIGKILL", destination=[worker.hostname], reply=True, timeout=10, limit=1
    )
    with pytest.raises(celery.exceptions.TaskRevokedError, match="terminated"):
        busy.get(timeout=RESULT_DEADLINE_S)


def test_workers_are_told_to_shut_down_together_and_say_goodbye(
    broker: Endpoint, events: Events, start_worker: StartWorker
) -> None:
    with client(broker, worker_send_task_events=True) as own:
        leaving = [start_worker(broker, own, name) for name in ("first", "second")]
        own.control.shutdown(destination=[worker.hostname for worker in leaving])
        assert [worker.wait() for worker in leaving] == [0, 0]
        for worker in leaving:
            eventually(
                lambda worker=worker: {"worker-online", "worker-offline"} <= events.of_worker(worker.hostname),
                "the worker said hello and goodbye",
            )


def test_a_broadcast_task_is_run_by_every_worker_once(
    broker: Endpoint, start_worker: StartWorker, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    name = f"broadcast-{tmp_path.name}"
    with client(broker, **{tasks.BROADCAST_SETTING: name}) as own:
        workers = [start_worker(broker, own, stem) for stem in ("first", "second", "third")]
        for number in range(3):
            send(own, "tests.note", str(notes), number, queue=name)
        expected = sorted(f"{number} {worker.hostname}" for number in range(3) for worker in workers)
        eventually(lambda: len(notes.read_text().splitlines()) >= 9, "every worker has run every task")
        assert sorted(notes.read_text().splitlines()) == expected
