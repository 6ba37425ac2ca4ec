"""A client and a worker that several tests share, and clients and workers of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import celery
import pytest

from tests.interop.celery.worker import WorkerProcess, client
from tests.support.endpoint import Endpoint

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture(scope="package")
def app(session_endpoint: Endpoint) -> Iterator[celery.Celery]:
    with client(session_endpoint, worker_send_task_events=True, task_send_sent_event=True) as made:
        yield made


@pytest.fixture(scope="package")
def worker(
    session_endpoint: Endpoint, app: celery.Celery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """One worker that the tests of this folder share; it is steered by remote control and left as it was."""
    process = WorkerProcess(session_endpoint, app, "steady", tmp_path_factory.mktemp("celery"))
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.discard()


@pytest.fixture
def own_app(broker: Endpoint) -> Iterator[celery.Celery]:
    """A client whose queue the shared worker does not serve."""
    with client(broker) as made:
        yield made


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers for a client; they are gone after the test."""
    started: list[WorkerProcess] = []

    def start(endpoint: Endpoint, app: celery.Celery, name: str, *, concurrency: int = 1) -> WorkerProcess:
        started.append(WorkerProcess(endpoint, app, name, tmp_path, concurrency=concurrency))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for process in started:
        process.discard()
