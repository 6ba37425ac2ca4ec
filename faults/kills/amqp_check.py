"""Whether a history of AMQP's clients, and what is left in the queues at its end, keep what is promised.

Each check takes the history and what was found in the end, and tells what it has found wrong; none of them needs a
broker. The promises:

- a message that was confirmed, and that nobody has set out to acknowledge, is there; one that was rejected is with the
  dead letters; one that was given back is there again;
- no message is there, or was delivered, that nobody has published into that queue, and none is damaged;
- none is twice in a queue; one that is delivered a second time is flagged;
- what one publisher sent is delivered in its order, and is in its order in the queue;
- whose settlement was confirmed by a later publish on the same channel, or committed, never comes back;
- a transaction's publishes and acknowledgements have happened all or none;
- a stream has the same message at the same offset for everybody, and all that was confirmed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from faults.kills.amqp_queues import (
    DEAD,
    LEDGERS,
    NEWS_LOG,
    ORDERS_IN,
    ORDERS_OUT,
    PRIORITISED,
    WORK,
    is_poison,
    number_of,
    priority_of,
    publisher_of,
    route_of,
)
from faults.kills.history import Broken, Event, History


class Found(NamedTuple):
    """A message that is in a queue at the end. `death` says of a dead letter where it comes from, and why."""

    name: str
    death: tuple[str, str] | None = None


Left = Mapping[str, Sequence[Found]]


class Published:
    """What publishers have sent, and what of it was confirmed, by queue."""

    def __init__(self, history: History) -> None:
        self._sent: Counter[str] = Counter()
        self.confirmed: dict[str, set[str]] = defaultdict(set)
        for event in history.of("send", "confirmed"):
            publisher = event.facts["publisher"]
            if event.what == "send":
                self._sent[publisher] = event.facts["first"] + event.facts["count"]
            else:
                for number in event.facts["numbers"]:
                    for queue in route_of(number).queues:
                        self.confirmed[queue].add(f"{publisher}:{number}")

    def was_sent(self, name: str, queue: str) -> bool:
        number = number_of(name)
        return 0 <= number < self._sent[publisher_of(name)] and queue in route_of(number).queues


class Settling:
    """What consumers of a queue meant to do, and what of it they were told is done."""

    def __init__(self, history: History, queue: str) -> None:
        self.acked: set[str] = set()
        self.rejected: set[str] = set()
        self.surely_acked: dict[str, Event] = {}
        self.surely_rejected: dict[str, Event] = {}
        for event in history.of("settling", "settled"):
            if event.facts["queue"] != queue:
                continue
            if event.what == "settling":
                self.acked.update(event.facts["ack"])
                self.rejected.update(event.facts["reject"])
            else:
                self.surely_acked.update(dict.fromkeys(event.facts["ack"], event))
                self.surely_rejected.update(dict.fromkeys(event.facts["reject"], event))


def check_answers(history: History) -> Iterator[Broken]:
    """Nobody was refused anything, and nothing arrived damaged."""
    for event in history.of("nacked", "refused"):
        yield Broken(f"{event.client}: {event.what}", [str(event), *history.around(event.at)])
    for event in history.of("taken"):
        if any(not name for name, _ in event.facts["messages"]):
            yield Broken(f"{event.client} was given a damaged message of {event.facts['queue']}", [str(event)])


def check_queue(history: History, published: Published, left: Left, queue: str) -> Iterator[Broken]:
    """Of a queue that publishers fill and workers empty, or nobody does."""
    settling = Settling(history, queue)
    here = [found.name for found in left[queue]]
    yield from _check_once(history, queue, here)
    yield from _check_sent(history, published, queue, here)
    yield from _check_order(history, queue, here)
    yield from _check_taken(history, published, queue, {**settling.surely_acked, **settling.surely_rejected})
    there = set(here)
    dead = {found.name for found in left[DEAD]} if queue == WORK else set()
    for name in published.confirmed[queue] - settling.acked - there - dead:
        yield Broken(f"{queue}: {name} was confirmed, and is lost", history.about(f'"{name}"', _number_of(name)))
    for name in sorted(there & settling.surely_acked.keys()):
        yield Broken(f"{queue}: {name} was acknowledged for good, and is there", history.about(f'"{name}"'))
    for name in sorted(settling.surely_rejected.keys() - dead):
        yield Broken(f"{queue}: {name} was rejected for good, and is no dead letter", history.about(f'"{name}"'))
    if queue == WORK:
        yield from _check_dead(history, left, there, settling)


def _check_dead(history: History, left: Left, there: set[str], settling: Settling) -> Iterator[Broken]:
    yield from _check_once(history, DEAD, [found.name for found in left[DEAD]])
    for found in left[DEAD]:
        wrong = ""
        if found.name not in settling.rejected or not is_poison(number_of(found.name)):
            wrong = f"{DEAD}: {found.name} was rejected by nobody"
        elif found.name in there:
            wrong = f"{found.name} is in {WORK} and in {DEAD}"
        elif found.death != (WORK, "rejected"):
            wrong = f"{DEAD}: {found.name} says that it died by {found.death}"
        if wrong:
            yield Broken(wrong, history.about(f'"{found.name}"'))


def _number_of(name: str) -> str:
    """A name's number, as it stands in the list of a confirm."""
    return f",{number_of(name)},"


def _check_once(history: History, queue: str, names: Iterable[str]) -> Iterator[Broken]:
    for name, count in Counter(names).items():
        if count > 1:
            yield Broken(f"{queue}: {name} is there {count} times", history.about(f'"{name}"'))


def _check_sent(history: History, published: Published, queue: str, names: Iterable[str]) -> Iterator[Broken]:
    for name in names:
        if not published.was_sent(name, queue):
            lines = history.about(client=publisher_of(name).rpartition(".")[0])
            yield Broken(f"{queue}: nobody has sent {name!r}", lines[-10:])


def _lane_of(queue: str, name: str) -> tuple[str, int]:
    """What the order holds among: a publisher's messages of one priority."""
    return publisher_of(name), priority_of(number_of(name)) if queue in PRIORITISED else 0


def _check_order(history: History, queue: str, names: Iterable[str]) -> Iterator[Broken]:
    last: dict[tuple[str, int], str] = {}
    for name in names:
        lane = _lane_of(queue, name)
        before = last.get(lane)
        if before is not None and number_of(name) < number_of(before):
            lines = history.about(f'"{name}"', f'"{before}"')
            yield Broken(f"{queue}: {name} comes after {before}", lines)
        last[lane] = name


def _check_taken(history: History, published: Published, queue: str, settled: Mapping[str, Event]) -> Iterator[Broken]:
    begun = {event.facts["connection"]: event.facts["began"] for event in history.of("connected")}
    unflagged: dict[str, Event] = {}
    last: dict[str, dict[tuple[str, int], str]] = defaultdict(dict)
    for event in history.of("taken"):
        if event.facts["queue"] != queue:
            continue
        connection = event.facts["connection"]
        yield from _check_sent(history, published, queue, [name for name, _ in event.facts["messages"] if name])
        for name, redelivered in event.facts["messages"]:
            end = settled.get(name)
            if end is not None and end.at < begun[connection]:
                yield Broken(f"{queue}: {event.client} was given {name}, which was settled", [str(end), str(event)])
            if redelivered:
                continue
            if name in unflagged:
                lines = [str(unflagged[name]), str(event)]
                yield Broken(f"{queue}: {name} was delivered twice, and not flagged", lines)
            unflagged[name] = event
            lane = _lane_of(queue, name)
            before = last[connection].get(lane)
            if before is not None and number_of(name) < number_of(before):
                yield Broken(f"{queue}: {connection} was given {name} after {before}", [str(event)])
            last[connection][lane] = name


class Transactions:
    """What transactions were to do, and how they ended, as far as their clients know."""

    def __init__(self, history: History, role: str) -> None:
        self.names: dict[str, list[str]] = {}
        self.fates: dict[str, str] = {}
        self.ended: dict[str, Event] = {}
        for event in history.of("begin", "committing", "committed", "rolling back", "rolled back"):
            transaction = event.facts["transaction"]
            if not event.client.startswith(f"{role}."):
                continue
            if event.what == "begin":
                self.names[transaction] = event.facts["names"]
            self.fates[transaction] = event.what
            self.ended[transaction] = event


# How a transaction ended for its client, and whether its messages are there: all, none, or either of the two.
SEEN_AFTER: Final = {"begin": False, "rolling back": False, "rolled back": False, "committed": True}


def _check_whole(history: History, transactions: Transactions, queue: str, left: Left) -> Iterator[Broken]:
    seen: dict[str, list[str]] = defaultdict(list)
    for found in left[queue]:
        name, _, transaction = found.name.rpartition("|")
        if name not in transactions.names.get(transaction, ()):
            yield Broken(f"{queue}: nobody has sent {found.name!r}", history.about(f'"{transaction}"'))
        seen[transaction].append(name)
    for transaction, names in transactions.names.items():
        fate = transactions.fates[transaction]
        there = seen[transaction]
        wrong = ""
        if there not in ([], names):
            wrong = f"of transaction {transaction} there is a part, {len(there)} of {len(names)}, or another order"
        elif fate in SEEN_AFTER and SEEN_AFTER[fate] != bool(there):
            wrong = f"transaction {transaction} ended with {fate!r}; {len(there)} are there"
        if wrong:
            yield Broken(f"{queue}: {wrong}", history.about(f'"{transaction}"'))


def check_moves(history: History, published: Published, left: Left) -> Iterator[Broken]:
    """Each order is in one of the two queues, and in one only; what has moved never comes back."""
    transactions = Transactions(history, "move")
    yield from _check_whole(history, transactions, ORDERS_OUT, left)
    here = [found.name for found in left[ORDERS_IN]]
    there = [found.name.rpartition("|")[0] for found in left[ORDERS_OUT]]
    yield from _check_once(history, ORDERS_IN, here)
    yield from _check_once(history, ORDERS_OUT, there)
    yield from _check_sent(history, published, ORDERS_IN, here)
    yield from _check_order(history, ORDERS_IN, here)
    moved = {
        name: event
        for transaction, event in transactions.ended.items() if event.what == "committed"
        for name in transactions.names[transaction]
    }  # fmt: skip
    yield from _check_taken(history, published, ORDERS_IN, moved)
    for name in sorted(set(here) & set(there)):
        yield Broken(f"{name} is in {ORDERS_IN} and in {ORDERS_OUT}", history.about(f'"{name}"'))
    for name in sorted(published.confirmed[ORDERS_IN] - set(here) - set(there)):
        yield Broken(f"{ORDERS_IN}: {name} was confirmed, and is lost", history.about(f'"{name}"', _number_of(name)))


def check_books(history: History, left: Left) -> Iterator[Broken]:
    """Transactions are in both ledgers, and the ledgers are the same, but for what other bookers did between."""
    transactions = Transactions(history, "book")
    for ledger in LEDGERS:
        yield from _check_whole(history, transactions, ledger, left)
    first, second = ([found.name for found in left[ledger]] for ledger in LEDGERS)
    if first != second:
        place = next((place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), -1)
        lines = [f"{ledger}: {left[ledger][max(0, place - 3) : place + 3]}" for ledger in LEDGERS]
        yield Broken(f"the ledgers have {len(first)} and {len(second)} messages, and differ at {place}", lines)


def check_stream(history: History, published: Published, log: Sequence[tuple[int, str]]) -> Iterator[Broken]:
    """`log` is what the stream has in the end: (offset, name)."""
    names = [name for _, name in log]
    yield from _check_once(history, NEWS_LOG, names)
    yield from _check_sent(history, published, NEWS_LOG, names)
    yield from _check_order(history, NEWS_LOG, names)
    for name in sorted(published.confirmed[NEWS_LOG] - set(names)):
        yield Broken(f"{NEWS_LOG}: {name} was confirmed, and is lost", history.about(_number_of(name)))
    there = dict(log)
    if sorted(there) != list(range(len(log))):
        yield Broken(f"{NEWS_LOG}: its {len(log)} offsets are not those from 0 on", [str(log[:5]), str(log[-5:])])
    last: dict[str, int] = {}
    for event in history.of("read"):
        connection = event.facts["connection"]
        for offset, name in event.facts["messages"]:
            if there.get(offset) != name:
                yield Broken(f"{event.client} read {name} at {offset}, {there.get(offset)} is there", [str(event)])
            if offset != last.get(connection, offset - 1) + 1:
                yield Broken(f"{connection} read {offset} after {last[connection]}", [str(event)])
            last[connection] = offset
