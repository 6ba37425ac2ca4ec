"""Celery: results over rpc://, exceptions, retries, countdowns, and what is composed of several tasks."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import celery
import pytest
from celery import chain, chord, group
from celery.canvas import Signature
from celery.exceptions import MaxRetriesExceededError

from tests.interop.celery.conftest import StartWorker
from tests.interop.celery.worker import RESULT_DEADLINE_S, client, send
from tests.support.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("worker", "broker")


def test_a_result_comes_back_over_rpc(app: celery.Celery) -> None:
    assert send(app, "tests.add", 2, 3).get(timeout=RESULT_DEADLINE_S) == 5


def test_each_of_many_results_finds_its_caller(app: celery.Celery) -> None:
    results = [(number, send(app, "tests.add", number, 1000)) for number in range(50)]
    for number, result in results:
        assert result.get(timeout=RESULT_DEADLINE_S) == number + 1000


def test_an_exception_comes_back(app: celery.Celery) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        send(app, "tests.fail", "on purpose").get(timeout=RESULT_DEADLINE_S)


def test_a_task_that_retries_is_done_in_the_end(app: celery.Celery) -> None:
    assert send(app, "tests.third_time").get(timeout=RESULT_DEADLINE_S) == 2


def test_a_task_that_never_succeeds_gives_up(app: celery.Celery) -> None:
    with pytest.raises((ValueError, MaxRetriesExceededError)):
        send(app, "tests.never").get(timeout=RESULT_DEADLINE_S)


def test_retries_back_off(app: celery.Celery, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    assert send(app, "tests.backing_off", str(attempts)).get(timeout=RESULT_DEADLINE_S) == 2
    first, second, third = (float(line) for line in attempts.read_text().split())
    assert second - first >= 1
    assert third - second >= 2


def test_a_countdown_delays_a_task_and_others_go_ahead(app: celery.Celery) -> None:
    sent_at = time.time()
    delayed = send(app, "tests.moment", countdown=1.5)
    # The worker holds the delayed task unacknowledged and asks for one message more by basic.qos.
    assert send(app, "tests.add", 2, 2).get(timeout=RESULT_DEADLINE_S) == 4
    assert delayed.get(timeout=RESULT_DEADLINE_S) >= sent_at + 1.5


def test_tasks_are_not_run_before_their_times(app: celery.Celery) -> None:
    now = datetime.now(UTC)
    times = [now + timedelta(seconds=seconds) for seconds in (1.2, 0.4, 0.8)]
    results = [send(app, "tests.moment", eta=at) for at in times]
    run_at = [result.get(timeout=RESULT_DEADLINE_S) for result in results]
    assert all(ran >= at.timestamp() for ran, at in zip(run_at, times, strict=True))


def test_a_task_that_has_expired_is_not_run(app: celery.Celery) -> None:
    # The message expires as well, but not before the worker has it.
    with pytest.raises(celery.exceptions.TaskRevokedError, match="expired"):
        send(app, "tests.add", 1, 1, countdown=1.2, expires=1).get(timeout=RESULT_DEADLINE_S)


def add(app: celery.Celery, *arguments: int) -> Signature:
    return app.signature("tests.add", args=arguments)


def test_groups_chains_and_callbacks(app: celery.Celery) -> None:
    assert group(add(app, n, n) for n in range(5))().get(timeout=RESULT_DEADLINE_S) == [0, 2, 4, 6, 8]
    assert chain(add(app, 1, 2), add(app, 10), add(app, 100))().get(timeout=RESULT_DEADLINE_S) == 113
    assert list(app.tasks["tests.add"].chunks(((n, 1) for n in range(6)), 2)().get(timeout=RESULT_DEADLINE_S)) == [
        [1, 2],
        [3, 4],
        [5, 6],
    ]


def test_a_chord_adds_up_its_parts(broker: Endpoint, start_worker: StartWorker, tmp_path: Path) -> None:
    # The rpc backend has no chords: they need results that several readers may look at. What waits for the parts is
    # a task that retries until all of them are there, so the broker carries it again and again.
    results = tmp_path / "results"
    results.mkdir()
    with client(broker, result_backend=f"file://{results}", result_chord_retry_interval=0.1) as own:
        start_worker(broker, own, "chords", concurrency=2)
        total = app_total(own)
        sums = chord((add(own, n, n) for n in range(10)), total)()
        nested = chain(add(own, 1, 1), group(add(own, n) for n in range(3)), total)()
        assert sums.get(timeout=RESULT_DEADLINE_S) == 90
        assert nested.get(timeout=RESULT_DEADLINE_S) == 9


def app_total(app: celery.Celery) -> Signature:
    return app.signature("tests.total")
