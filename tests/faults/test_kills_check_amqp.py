"""Histories of AMQP's clients, made by hand: the good one passes, and each broken promise is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from faults.kills.amqp_check import (
    Found,
    Published,
    check_answers,
    check_books,
    check_moves,
    check_queue,
    check_stream,
)
from faults.kills.amqp_queues import (
    DEAD,
    LEDGERS,
    NEWS_LOG,
    NEWS_UNREAD,
    ORDERS_IN,
    ORDERS_OUT,
    RANKED,
    WORK,
    body_of,
    is_poison,
    name_of,
    priority_of,
    route_of,
)
from faults.kills.history import Event, History

PUBLISHER = "publish.0-1.1"
COUNT = 60


def names_in(queue: str) -> list[str]:
    """Of all that the one publisher sends, what goes to the queue."""
    return [f"{PUBLISHER}:{number}" for number in range(COUNT) if queue in route_of(number).queues]


def rank_of(name: str) -> int:
    return -priority_of(int(name.rpartition(":")[2]))


WORK_NAMES = names_in(WORK)
POISON = next(name for name in WORK_NAMES if is_poison(int(name.rpartition(":")[2])))
GOOD = [name for name in WORK_NAMES if not is_poison(int(name.rpartition(":")[2]))]
ORDERS = names_in(ORDERS_IN)
NEWS = names_in(NEWS_LOG)


@dataclass
class Case:
    """A history that keeps all promises, to be spoilt."""

    events: list[Event] = field(default_factory=list)
    left: dict[str, list[Found]] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)

    def note(self, client: str, what: str, **facts: Any) -> None:
        at = float(len(self.events))
        self.events.append(Event(client, at, what, {"began": at, **facts}))

    def take(self, connection: str, queue: str, *messages: tuple[str, bool]) -> None:
        client = connection.rpartition(".")[0]
        self.note(client, "taken", connection=connection, queue=queue, messages=list(messages))

    def connect(self, connection: str) -> None:
        self.note(connection.rpartition(".")[0], "connected", connection=connection)

    def settle(self, queue: str, *, ack: list[str], reject: list[str], surely: bool = True) -> None:
        self.note("work.0-1", "settling", queue=queue, ack=ack, reject=reject, requeue=[])
        if surely:
            self.note("work.0-1", "settled", queue=queue, ack=ack, reject=reject)

    def transact(self, client: str, transaction: str, names: list[str], fate: str) -> None:
        self.note(client, "begin", transaction=transaction, names=names)
        self.note(client, fate, transaction=transaction)

    def found(self) -> list[str]:
        history = History(self.events)
        published = Published(history)
        return [broken.what for broken in self._checks(history, published)]

    def _checks(self, history: History, published: Published) -> Iterator[Any]:
        yield from check_answers(history)
        for queue in (WORK, RANKED, NEWS_UNREAD):
            yield from check_queue(history, published, self.left, queue)
        yield from check_moves(history, published, self.left)
        yield from check_books(history, self.left)
        yield from check_stream(history, published, self.log)


@pytest.fixture
def case() -> Case:
    made = Case()
    made.note("publish.0-1", "send", publisher=PUBLISHER, first=0, count=COUNT)
    made.note("publish.0-1", "confirmed", publisher=PUBLISHER, numbers=list(range(COUNT)))
    made.connect("work.0-1.1")
    made.take("work.0-1.1", WORK, (GOOD[0], False), (GOOD[1], False), (POISON, False))
    made.settle(WORK, ack=[GOOD[0]], reject=[POISON])
    made.connect("move.0-1.1")
    made.take("move.0-1.1", ORDERS_IN, (ORDERS[0], False), (ORDERS[1], False), (ORDERS[2], False))
    made.transact("move.0-1", "move.0-1.t1", ORDERS[:2], "committed")
    made.transact("move.0-1", "move.0-1.t2", ORDERS[2:3], "rolled back")
    made.transact("book.0-1", "book.0-1.t1", ["book.0-1.1:0", "book.0-1.1:1"], "committed")
    made.transact("book.0-1", "book.0-1.t2", ["book.0-1.1:2", "book.0-1.1:3"], "committing")
    made.note("read.0-1", "read", connection="read.0-1.1", messages=[(0, NEWS[0]), (1, NEWS[1])])
    made.left = {
        WORK: [Found(name) for name in WORK_NAMES if name not in {GOOD[0], POISON}],
        DEAD: [Found(POISON, (WORK, "rejected"))],
        ORDERS_IN: [Found(name) for name in ORDERS[2:]],
        ORDERS_OUT: [Found(f"{name}|move.0-1.t1") for name in ORDERS[:2]],
        RANKED: [Found(name) for name in sorted(names_in(RANKED), key=rank_of)],
        NEWS_UNREAD: [Found(name) for name in NEWS],
        LEDGERS[0]: [Found(f"book.0-1.1:{number}|book.0-1.t1") for number in range(2)],
        LEDGERS[1]: [Found(f"book.0-1.1:{number}|book.0-1.t1") for number in range(2)],
    }  # fmt: skip
    made.log = list(enumerate(NEWS))
    return made


def test_a_history_that_keeps_its_promises_passes(case: Case) -> None:
    assert case.found() == []


@pytest.mark.parametrize("queue", [WORK, RANKED, NEWS_UNREAD])
def test_a_lost_message(case: Case, queue: str) -> None:
    lost = case.left[queue].pop()
    assert case.found() == [f"{queue}: {lost.name} was confirmed, and is lost"]


def test_a_lost_order(case: Case) -> None:
    lost = case.left[ORDERS_IN].pop()
    assert case.found() == [f"{ORDERS_IN}: {lost.name} was confirmed, and is lost"]


def test_a_lost_message_of_a_stream(case: Case) -> None:
    _, lost = case.log.pop()
    assert case.found() == [f"{NEWS_LOG}: {lost} was confirmed, and is lost"]


def test_a_message_that_was_only_sent_may_be_lost(case: Case) -> None:
    case.note("publish.0-1", "send", publisher=PUBLISHER, first=COUNT, count=10)
    assert case.found() == []


def test_a_lost_dead_letter(case: Case) -> None:
    case.left[DEAD].clear()
    assert f"{WORK}: {POISON} was confirmed, and is lost" in case.found()


def test_a_message_that_was_rejected_and_never_confirmed_may_be_lost(case: Case) -> None:
    number = next(number for number in range(COUNT, 2 * COUNT) if is_poison(number) and WORK in route_of(number).queues)
    case.note("publish.0-1", "send", publisher=PUBLISHER, first=COUNT, count=COUNT)
    case.take("work.0-1.1", WORK, (f"{PUBLISHER}:{number}", False))
    case.settle(WORK, ack=[], reject=[f"{PUBLISHER}:{number}"], surely=False)
    assert case.found() == []


def test_a_message_that_nobody_sent(case: Case) -> None:
    case.left[WORK].append(Found(f"{PUBLISHER}:{COUNT}"))
    assert case.found() == [f"{WORK}: nobody has sent '{PUBLISHER}:{COUNT}'"]


def test_a_message_in_another_queue(case: Case) -> None:
    case.left[NEWS_UNREAD].append(Found(f"{PUBLISHER}:{COUNT - 1}"))
    assert f"{NEWS_UNREAD}: nobody has sent '{PUBLISHER}:{COUNT - 1}'" in case.found()


def test_a_delivery_that_nobody_sent(case: Case) -> None:
    case.take("work.0-1.1", WORK, ("publish.9-1.1:0", False))
    assert f"{WORK}: nobody has sent 'publish.9-1.1:0'" in case.found()


def test_a_damaged_delivery(case: Case) -> None:
    case.take("work.0-1.1", WORK, ("", False))
    assert "work.0-1 was given a damaged message of work" in case.found()


def test_a_message_that_is_there_twice(case: Case) -> None:
    case.left[NEWS_UNREAD].append(case.left[NEWS_UNREAD][-1])
    assert case.found() == [f"{NEWS_UNREAD}: {case.left[NEWS_UNREAD][-1].name} is there 2 times"]


def test_a_message_in_both_of_two_queues(case: Case) -> None:
    case.left[WORK] = [Found(name) for name in WORK_NAMES if name != GOOD[0]]
    assert f"{POISON} is in {WORK} and in {DEAD}" in case.found()


@pytest.mark.parametrize("queue", [WORK, RANKED, NEWS_UNREAD])
def test_another_order(case: Case, queue: str) -> None:
    here = case.left[queue]
    here[-1], here[-2] = here[-2], here[-1]
    assert len(case.found()) == 1
    assert "comes after" in case.found()[0]


def test_a_second_delivery_without_a_flag(case: Case) -> None:
    case.connect("work.1-1.1")
    case.take("work.1-1.1", WORK, (GOOD[1], False))
    assert case.found() == [f"{WORK}: {GOOD[1]} was delivered twice, and not flagged"]


def test_a_second_delivery_with_a_flag_is_allowed(case: Case) -> None:
    case.connect("work.1-1.1")
    case.take("work.1-1.1", WORK, (GOOD[1], True))
    assert case.found() == []


def test_deliveries_in_another_order(case: Case) -> None:
    case.connect("work.1-1.1")
    case.take("work.1-1.1", WORK, (GOOD[5], False), (GOOD[4], False))
    assert case.found() == [f"{WORK}: work.1-1.1 was given {GOOD[4]} after {GOOD[5]}"]


def test_a_delivery_after_the_settlement(case: Case) -> None:
    case.connect("work.1-1.1")
    case.take("work.1-1.1", WORK, (GOOD[0], True))
    assert case.found() == [f"{WORK}: work.1-1 was given {GOOD[0]}, which was settled"]


def test_a_delivery_told_late_by_one_who_had_begun_before_the_settlement(case: Case) -> None:
    connected = Event("work.1-1", 0.5, "connected", {"connection": "work.1-1.1", "began": 0.5})
    case.events.append(connected)
    case.take("work.1-1.1", WORK, (GOOD[0], True))
    assert case.found() == []


def test_a_settled_message_that_is_there_again(case: Case) -> None:
    case.left[WORK].insert(0, Found(GOOD[0]))
    assert case.found() == [f"{WORK}: {GOOD[0]} was acknowledged for good, and is there"]


def test_a_settlement_without_an_answer_may_be_lost(case: Case) -> None:
    case.settle(WORK, ack=[GOOD[1]], reject=[], surely=False)
    assert case.found() == []


def test_a_dead_letter_that_nobody_rejected(case: Case) -> None:
    case.left[DEAD].append(Found(GOOD[0], (WORK, "rejected")))
    assert case.found() == [f"{DEAD}: {GOOD[0]} was rejected by nobody"]


def test_a_dead_letter_with_another_death(case: Case) -> None:
    case.left[DEAD] = [Found(POISON, (WORK, "expired"))]
    assert len(case.found()) == 1


def test_half_a_transaction(case: Case) -> None:
    case.left[ORDERS_OUT].pop()
    assert any("there is a part" in what for what in case.found())


def test_a_transaction_that_was_committed_and_is_not_there(case: Case) -> None:
    for ledger in LEDGERS:
        case.left[ledger].clear()
    assert len(case.found()) == len(LEDGERS)


def test_a_transaction_that_was_rolled_back_and_is_there(case: Case) -> None:
    case.left[ORDERS_IN].pop(0)
    case.left[ORDERS_OUT].append(Found(f"{ORDERS[2]}|move.0-1.t2"))
    assert case.found() == [f"{ORDERS_OUT}: transaction move.0-1.t2 ended with 'rolled back'; 1 are there"]


def test_a_transaction_without_an_answer_may_be_there(case: Case) -> None:
    for ledger in LEDGERS:
        case.left[ledger] += [Found(f"book.0-1.1:{number}|book.0-1.t2") for number in range(2, 4)]
    assert case.found() == []


def test_a_transaction_in_one_ledger_only(case: Case) -> None:
    case.left[LEDGERS[0]] += [Found(f"book.0-1.1:{number}|book.0-1.t2") for number in range(2, 4)]
    assert len(case.found()) == 1


def test_an_order_that_has_moved_and_not_moved(case: Case) -> None:
    case.left[ORDERS_IN].insert(0, Found(ORDERS[0]))
    assert case.found() == [f"{ORDERS[0]} is in {ORDERS_IN} and in {ORDERS_OUT}"]


def test_another_message_at_an_offset(case: Case) -> None:
    case.note("read.0-1", "read", connection="read.0-1.2", messages=[(0, NEWS[1])])
    assert len(case.found()) == 1


def test_an_offset_that_is_passed_over(case: Case) -> None:
    case.note("read.0-1", "read", connection="read.0-1.2", messages=[(0, NEWS[0]), (2, NEWS[2])])
    assert case.found() == ["read.0-1.2 read 2 after 0"]


def test_a_nack(case: Case) -> None:
    case.note("publish.0-1", "nacked", publisher=PUBLISHER, numbers=[1])
    assert case.found() == ["publish.0-1: nacked"]


def test_a_body_tells_whether_it_is_whole() -> None:
    body = body_of("publish.0-1.1:3", 10)
    assert name_of(body) == "publish.0-1.1:3"
    assert name_of(body[:-1]) == ""
    assert name_of(body[:-1] + b"x") == ""
    assert name_of(b"publish") == ""
