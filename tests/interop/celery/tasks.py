"""The Celery application whose worker the tests start. It finds its broker and queue in the environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery, Task

BROKER_VARIABLE = "CELERY_TEST_BROKER_URL"
QUEUE_VARIABLE = "CELERY_TEST_QUEUE"


def make_app(broker_url: str, queue: str) -> Celery:
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
    return app


app = make_app(
    os.environ.get(BROKER_VARIABLE, "amqp://guest:guest@127.0.0.1:5672//"), os.environ.get(QUEUE_VARIABLE, "celery")
)


@app.task(name="tests.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="tests.fail")
def fail(reason: str) -> None:
    raise ValueError(reason)


@app.task(name="tests.third_time", bind=True, max_retries=3)
def third_time(self: Task) -> int:
    """Fails twice and is then done; each retry is a new message that the broker delivers after its countdown."""
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)


@app.task(name="tests.never", bind=True, max_retries=2)
def never(self: Task) -> None:
    raise self.retry(countdown=0.05, exc=ValueError("never"))


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
    with (folder / "done").open("a") as done:
        done.write(f"{self.request.hostname} redelivered={self.request.delivery_info['redelivered']}\n")
    return str(self.request.hostname)
