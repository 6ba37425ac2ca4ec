"""Dead letters that nobody takes yet: how they wait, what they cost, and how they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.limits import DEAD_LETTER_RETRY_MS, DELIVERIES_PER_TURN_MAX
from millpond.broker.queues.queue import Queue
from tests.broker.life import MIB, Inbox, Life, small_pages

SURELY = {
    "queue_type": "quorum",
    "overflow": "reject-publish",
    "dead_letter_strategy": "at-least-once",
    "dead_letter_exchange": "amq.direct",
}


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    small_pages(monkeypatch, 64)
    life = Life(FaultyFilesystem(1), tmp_path / "catalog", budget=4 * MIB, file_bytes=64 * MIB)
    yield life
    life.abandon()


def reject_all(life: Life, queue: Queue) -> None:
    inbox = Inbox(queue)
    queue.add_consumer(inbox)
    life.pump_until(lambda: len(inbox.entries) == queue.unsettled and queue.ready == 0)
    for entry in inbox.take():
        queue.reject(entry)
    queue.remove_consumer(inbox)
    life.end_turn()


def attempt_again(life: Life) -> None:
    life.clock.advance(DEAD_LETTER_RETRY_MS)
    life.settle_down()


def test_a_purge_removes_them_too(life: Life) -> None:
    queue = life.declare("work", **SURELY)
    life.fill("work", range(10))
    reject_all(life, queue)
    assert queue.stuck == 10
    life.fill("work", range(10, 15))
    assert queue.purge() == 15
    life.settle_down()
    life.check_counts()
    assert (queue.stuck, queue.ready, life.memory.used) == (0, 0, 0)
    attempt_again(life)


def test_they_count_for_both_length_limits(life: Life) -> None:
    queue = life.declare("work", **SURELY, max_length_bytes=100)
    life.fill("work", range(2), size=50)
    reject_all(life, queue)
    life.fill("work", range(2, 4), size=50)
    assert (queue.stuck, queue.ready) == (2, 0)
    queue.purge()
    life.fill("work", range(4, 6), size=50)
    assert queue.ready == 2


def test_one_that_leads_nowhere_holds_no_other_up(life: Life) -> None:
    queue = life.declare("work", **SURELY)
    target = life.declare("dead", max_length=1, overflow="reject-publish")
    vhost = life.vhost
    exchange = vhost.declare_exchange("from", "fanout", True, False, False, {})
    vhost.bind(exchange, queue, "", {})
    vhost.bind(vhost.exchange("amq.direct"), target, "known", {})
    life.publish("from", "unknown", 0)
    for number in range(1, 5):
        life.publish("from", "known", number)
    reject_all(life, queue)
    assert (queue.stuck, target.ready) == (4, 1)
    numbers: list[int] = []
    for _ in range(4):
        numbers += life.drain(target)
        attempt_again(life)
    assert numbers == [1, 2, 3, 4]
    assert queue.stuck == 1
    life.check_counts()


def test_a_backlog_that_dies_while_nobody_takes_it_stays_on_the_disk(life: Life) -> None:
    queue = life.declare("work", **SURELY, message_ttl=1000)
    life.fill("work", range(12_000), size=1000)
    life.settle_down()
    highest = 0
    for _ in range(10):
        attempt_again(life)
        highest = max(highest, int(life.memory.used))
    assert highest < 1.25 * life.memory.budget_bytes
    assert queue.stuck > 0
    assert queue.stuck + queue.ready == 12_000
    life.check_counts()
    target = life.declare("dead")
    life.vhost.bind(life.vhost.exchange("amq.direct"), target, "work", {})
    while queue.stuck + queue.ready > 0:
        attempt_again(life)
    assert sorted(life.drain(target)) == list(range(12_000))
    life.settle_down()
    life.check_counts()
    assert life.memory.used == 0


@pytest.mark.parametrize("reason", ["expired", "too many"])
def test_a_long_backlog_dies_over_several_turns(life: Life, reason: str) -> None:
    queue = life.declare("work", message_ttl=1000, dead_letter_exchange="", dead_letter_routing_key="dead")
    target = life.declare("dead")
    count = 3 * DELIVERIES_PER_TURN_MAX
    life.fill("work", range(count))
    life.settle_down()
    life.clock.advance(1000 if reason == "expired" else 0)
    if reason == "too many":
        queue.apply_settings(life.declare("short", max_length=0, dead_letter_exchange="").settings)
    life.turn.end()
    assert 0 < queue.ready < count
    life.settle_down()
    assert queue.ready == 0
    if reason == "expired":
        assert life.drain(target) == list(range(count))
    life.check_counts()
