"""Celery's two sides for the tests: workers as processes of their own, and the client that sends tasks to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import celery
import pika
from celery.result import AsyncResult

from tests.interop.celery import tasks
from tests.support.endpoint import Endpoint
from tests.support.waiting import eventually

RESULT_DEADLINE_S = 30
REPOSITORY = Path(__file__).parents[3]


class WorkerProcess:
    """`celery worker` with prefork children, in a session of its own so that it can be killed with the children."""

    def __init__(
        self, endpoint: Endpoint, app: celery.Celery, name: str, folder: Path, *, concurrency: int = 1
    ) -> None:
        # Neighbours, remote control and events go over exchanges that other tests' workers share.
        self.hostname = f"{name}@{uuid.uuid4().hex[:8]}"
        self._log_path = folder / f"{name}.log"
        self._log = self._log_path.open("wb")
        environment = {
            **os.environ,
            tasks.BROKER_VARIABLE: endpoint.url,
            tasks.QUEUE_VARIABLE: app.conf.task_default_queue,
            tasks.SETTINGS_VARIABLE: json.dumps(app.tests_settings),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.interop.celery.tasks", "worker"),
                *("--hostname", self.hostname, "--concurrency", str(concurrency), "--loglevel", "INFO"),
                *("--without-gossip", "--without-mingle"),
            ],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.running, self.log
            return f"{self.hostname} ready." in self.log

        try:
            eventually(ready, f"{self.hostname} is ready", deadline_s=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-3000:]}") from None

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def ask_to_stop(self) -> None:
        """SIGTERM, Celery's warm shutdown: what has begun is finished first."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait until it has ended; returns the exit code."""
        return self._process.wait(RESULT_DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL to the worker and its children at once: nobody is left to say goodbye to the broker."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()

    def discard(self) -> None:
        """For the end of a test. A warm shutdown takes the prefork pool one and a half seconds with nothing to do."""
        self.kill()
        self._log.close()


@contextmanager
def client(endpoint: Endpoint, **settings: Any) -> Iterator[celery.Celery]:
    """The client's side: the same application on a queue of its own, which sends tasks and waits for results."""
    queue = f"celery-{uuid.uuid4().hex[:12]}"
    # Clients with the same options share a pool of connections, and this one closes its own.
    options = {**settings.pop("broker_transport_options", {}), "client_properties": {"connection_name": queue}}
    app = tasks.make_app(endpoint.url, queue, {**settings, "broker_transport_options": options})
    try:
        yield app
    finally:
        # `close` leaves open the connection that results arrive on.
        results = getattr(app.backend, "result_consumer", None)
        if results is not None and results._connection is not None:
            results.stop()
        # And those that are pooled, too.
        app.pool.force_close_all()
        app.close()
        with pika.BlockingConnection(endpoint.parameters()) as connection:
            # Celery gives the exchange its queue's name.
            connection.channel().queue_delete(queue)
            connection.channel().exchange_delete(queue)


def send(app: celery.Celery, name: str, *arguments: object, **options: Any) -> AsyncResult:
    return app.send_task(name, args=arguments, **options)
