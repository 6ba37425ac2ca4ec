"""Celery: workers as processes of their own, results over rpc://, retries, and a worker killed in mid-task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import celery
import pika
import pytest
from celery import chain, group
from celery.exceptions import MaxRetriesExceededError

from tests.interop.celery import tasks
from tests.support.endpoint import Endpoint
from tests.support.waiting import eventually

RESULT_DEADLINE_S = 30
REPOSITORY = Path(__file__).parents[3]


class WorkerProcess:
    """`celery worker` with one prefork child, in a session of its own so that it can be killed with the child."""

    def __init__(self, endpoint: Endpoint, app: celery.Celery, name: str, log: Path) -> None:
        self.hostname = f"{name}@tests"
        self._log_path = log
        self._log = log.open("wb")
        environment = {
            **os.environ,
            tasks.BROKER_VARIABLE: endpoint.url,
            tasks.QUEUE_VARIABLE: app.conf.task_default_queue,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.interop.celery.tasks", "worker"),
                *("--hostname", self.hostname, "--concurrency", "1", "--loglevel", "INFO"),
                # Neighbours are found over exchanges of the broker that other tests' workers would join as well.
                *("--without-gossip", "--without-mingle"),
            ],
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self.log
            return f"{self.hostname} ready." in self.log

        try:
            eventually(ready, f"{self.hostname} is ready", deadline_s=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-3000:]}") from None

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to the worker and its child at once: nobody is left to say goodbye to the broker."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()


@contextmanager
def client(endpoint: Endpoint) -> Iterator[celery.Celery]:
    """The client's side: the same application on a queue of its own, which sends tasks and waits for results."""
    app = tasks.make_app(endpoint.url, f"celery-{uuid.uuid4().hex[:12]}")
    try:
        yield app
    finally:
        # `close` leaves the connection that results arrive on.
        app.backend.result_consumer.stop()
        app.close()
        with pika.BlockingConnection(endpoint.parameters()) as connection:
            connection.channel().queue_delete(app.conf.task_default_queue)


@pytest.fixture(scope="module")
def app(session_endpoint: Endpoint) -> Iterator[celery.Celery]:
    with client(session_endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def worker(
    session_endpoint: Endpoint, app: celery.Celery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    process = WorkerProcess(session_endpoint, app, "steady", tmp_path_factory.mktemp("celery") / "worker.log")
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.stop()


def send(app: celery.Celery, name: str, *arguments: object) -> celery.result.AsyncResult:
    return app.send_task(name, args=arguments)


@pytest.mark.usefixtures("worker", "broker")
class TestOneWorker:
    def test_a_result_comes_back_over_rpc(self, app: celery.Celery) -> None:
        assert send(app, "tests.add", 2, 3).get(timeout=RESULT_DEADLINE_S) == 5

    def test_each_of_many_results_finds_its_caller(self, app: celery.Celery) -> None:
        results = [(number, send(app, "tests.add", number, 1000)) for number in range(50)]
        for number, result in results:
            assert result.get(timeout=RESULT_DEADLINE_S) == number + 1000

    def test_an_exception_comes_back(self, app: celery.Celery) -> None:
        with pytest.raises(ValueError, match="on purpose"):
            send(app, "tests.fail", "on purpose").get(timeout=RESULT_DEADLINE_S)

    def test_a_task_that_retries_is_done_in_the_end(self, app: celery.Celery) -> None:
        assert send(app, "tests.third_time").get(timeout=RESULT_DEADLINE_S) == 2

    def test_a_task_that_never_succeeds_gives_up(self, app: celery.Celery) -> None:
        with pytest.raises((ValueError, MaxRetriesExceededError)):
            send(app, "tests.never").get(timeout=RESULT_DEADLINE_S)

    def test_a_countdown_delays_a_task_and_others_go_ahead(self, app: celery.Celery) -> None:
        delayed = app.send_task("tests.add", args=(1, 1), countdown=2.0)
        # The worker holds the delayed task unacknowledged and asks for one message more by basic.qos.
        assert send(app, "tests.add", 2, 2).get(timeout=RESULT_DEADLINE_S) == 4
        assert not delayed.ready()
        assert delayed.get(timeout=RESULT_DEADLINE_S) == 2

    def test_groups_and_chains(self, app: celery.Celery) -> None:
        def signature(*arguments: int) -> celery.canvas.Signature:
            return app.signature("tests.add", args=arguments)

        assert group(signature(n, n) for n in range(5))().get(timeout=RESULT_DEADLINE_S) == [0, 2, 4, 6, 8]
        assert chain(signature(1, 2), signature(10), signature(100))().get(timeout=RESULT_DEADLINE_S) == 113

    def test_the_worker_answers_remote_control(self, app: celery.Celery, worker: WorkerProcess) -> None:
        replies = app.control.ping(destination=[worker.hostname], timeout=5)
        assert replies == [{worker.hostname: {"ok": "pong"}}]
        registered = app.control.inspect(destination=[worker.hostname], timeout=5).registered()
        assert "tests.add" in registered[worker.hostname]


@pytest.fixture
def own_app(broker: Endpoint) -> Iterator[celery.Celery]:
    """A client whose queue the module's worker does not serve."""
    with client(broker) as made:
        yield made


@pytest.fixture
def start_worker(broker: Endpoint, own_app: celery.Celery, tmp_path: Path) -> Iterator[Callable[[str], WorkerProcess]]:
    started: list[WorkerProcess] = []

    def start(name: str) -> WorkerProcess:
        started.append(WorkerProcess(broker, own_app, name, tmp_path / f"{name}.log"))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for process in started:
        process.stop()


def test_a_task_of_a_killed_worker_is_done_by_another(
    own_app: celery.Celery, start_worker: Callable[[str], WorkerProcess], tmp_path: Path
) -> None:
    doomed = start_worker("doomed")
    result = send(own_app, "tests.blocking", str(tmp_path))
    eventually((tmp_path / f"begun-{doomed.hostname}").exists, "the first worker has begun")
    heir = start_worker("heir")
    # acks_late: the task is the first worker's until it is done, whoever else is free.
    assert not (tmp_path / f"begun-{heir.hostname}").exists()
    doomed.kill()
    eventually((tmp_path / f"begun-{heir.hostname}").exists, "the second worker has begun")
    (tmp_path / "release").touch()
    assert result.get(timeout=RESULT_DEADLINE_S) == heir.hostname
    assert (tmp_path / "done").read_text() == f"{heir.hostname} redelivered=True\n"


def test_tasks_sent_without_a_worker_wait_for_one(
    own_app: celery.Celery, start_worker: Callable[[str], WorkerProcess]
) -> None:
    results = [send(own_app, "tests.add", number, 1) for number in range(10)]
    start_worker("late")
    assert [result.get(timeout=RESULT_DEADLINE_S) for result in results] == list(range(1, 11))
