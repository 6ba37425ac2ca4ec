"""The Celery application whose worker the tests start. It finds its broker, queue and settings in the environment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject
from kombu import Queue
from kombu.common import Broadcast

BROKER_VARIABLE = "CELERY_TEST_BROKER_URL"
QUEUE_VARIABLE = "CELERY_TEST_QUEUE"
SETTINGS_VARIABLE = "CELERY_TEST_SETTINGS"
# A setting of the tests' own: the name of a queue that every worker has one of.
BROADCAST_SETTING = "tests_broadcast"


def make_app(broker_url: str, queue: str, settings: Mapping[str, Any] | None = None) -> Celery:
    app = Celery("tests", broker=broker_url, backend="rpc://")
    app.conf.update(
        task_default_queue=queue,
        task_acks_late=True,
        # One task at a time, so that none is held by a worker that is busy with another.
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        result_expires=60,
        task_track_started=True,
    )
    app.conf.update(settings or {})
    # For the client, which starts workers with the same settings.
    app.tests_settings = dict(settings or {})
    if broadcast := app.conf.get(BROADCAST_SETTING):
        app.conf.task_queues = [Queue(queue), Broadcast(broadcast)]
    return app


app = make_app(
    os.environ.get(BROKER_VARIABLE, "amqp://guest:guest@127.0.0.1:5672//"),
    os.environ.get(QUEUE_VARIABLE, "celery"),
    json.loads(os.environ.get(SETTINGS_VARIABLE, "{}")),
)


def note(path: str, line: object) -> None:
    """Add a line in one write, so that the lines of several processes do not mix."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


@app.task(name="tests.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="tests.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="tests.fail")
def fail(reason: str) -> None:
    raise ValueError(reason)


@app.task(name="tests.poison")
def poison() -> None:
    """Nobody can do it, so it is not to be tried again."""
    raise Reject("poison", requeue=False)


@app.task(name="tests.third_time", bind=True, max_retries=3)
def third_time(self: Task) -> int:
    """Fails twice and is then done; each retry is a new message that the broker delivers after its countdown."""
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)


@app.task(name="tests.never", bind=True, max_retries=2)
def never(self: Task) -> None:
    raise self.retry(countdown=0.05, exc=ValueError("never"))


@app.task(
    name="tests.backing_off",
    bind=True,
    autoretry_for=(ConnectionError,),
    retry_backoff=True,
    retry_jitter=False,
    max_retries=2,
)
def backing_off(self: Task, path: str) -> int:
    """Notes when each attempt was made. The waits between them are one and two seconds."""
    note(path, time.time())
    if self.request.retries < 2:
        raise ConnectionError("not yet")
    return int(self.request.retries)


@app.task(name="tests.moment")
def moment() -> float:
    """When it was run."""
    return time.time()


@app.task(name="tests.note", bind=True)
def note_task(self: Task, path: str, line: object) -> None:
    """Leaves a trace that does not need a result to come back."""
    note(path, f"{line} {self.request.hostname}")


@app.task(name="tests.blocking", bind=True)
def blocking(self: Task, directory: str) -> str:
    """Says that it has begun, and works until it is released; then says who has done it."""
    folder = Path(directory)
    (folder / f"begun-{self.request.hostname}").touch()
    give_up_at = time.monotonic() + 60
    while not (folder / "release").exists():
        if time.monotonic() > give_up_at:
            raise TimeoutError("nobody released the task")
        time.sleep(0.01)
    note(str(folder / "done"), f"{self.request.hostname} redelivered={self.request.delivery_info['redelivered']}")
    return str(self.request.hostname)


@app.task(name="tests.kill_own_process", bind=True, reject_on_worker_lost=True)
def kill_own_process(self: Task, path: str) -> bool:
    """The first attempt kills its own process, as the kernel does when memory runs out. True when redelivered."""
    redelivered = bool(self.request.delivery_info["redelivered"])
    note(path, redelivered)
    if not redelivered:
        os.kill(os.getpid(), 9)
    return redelivered
