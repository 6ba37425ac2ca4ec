"""The queues of the AMQP workload, and what a message says of itself.

| queue | who publishes | who consumes |
| --- | --- | --- |
| work | publishers, with confirms | competing workers, who acknowledge, give back and reject |
| work.dead | the broker: what workers reject | |
| orders.in | publishers, with confirms | movers: a transaction publishes to orders.out and acknowledges |
| orders.out | movers | |
| ranked, with priorities | publishers, with confirms | a slow worker |
| news.a, news.b, news.log (a stream), by a fanout | publishers, with confirms | nobody; a stuck worker; a reader |
| ledger.a, ledger.b | bookers: a transaction publishes to both | |
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

WORK: Final = "work"
DEAD: Final = "work.dead"
ORDERS_IN: Final = "orders.in"
ORDERS_OUT: Final = "orders.out"
RANKED: Final = "ranked"
NEWS: Final = "news"
NEWS_UNREAD: Final = "news.a"
NEWS_STUCK: Final = "news.b"
NEWS_LOG: Final = "news.log"
LEDGERS: Final = ("ledger.a", "ledger.b")
RECEIPTS: Final = "receipts"
PRIORITIES: Final = 4
# Quorum queues have priorities without asking.
PRIORITISED: Final = frozenset({RANKED, ORDERS_IN})

QUEUES: Final[dict[str, dict[str, Any]]] = {
    WORK: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD},
    DEAD: {},
    # However often a message comes back because of a kill, it is no poison.
    ORDERS_IN: {"x-queue-type": "quorum", "x-delivery-limit": -1},
    ORDERS_OUT: {"x-queue-type": "quorum"},
    RANKED: {"x-max-priority": PRIORITIES},
    NEWS_UNREAD: {},
    NEWS_STUCK: {},
    NEWS_LOG: {"x-queue-type": "stream"},
    LEDGERS[0]: {},
    LEDGERS[1]: {},
    # What is published here is confirmed, and so is all that its channel has acknowledged before.
    RECEIPTS: {"x-max-length": 100},
}


class Route(NamedTuple):
    """Where a publisher sends a message, and the queues that get it."""

    exchange: str
    key: str
    queues: tuple[str, ...]


_WORK_ROUTE: Final = Route("", WORK, (WORK,))
# A publisher's messages go to these in turn, by their numbers.
ROUTES: Final = (
    _WORK_ROUTE,
    Route("", ORDERS_IN, (ORDERS_IN,)),
    _WORK_ROUTE,
    Route(NEWS, "", (NEWS_UNREAD, NEWS_STUCK, NEWS_LOG)),
    Route("", RANKED, (RANKED,)),
)


def route_of(number: int) -> Route:
    return ROUTES[number % len(ROUTES)]


def priority_of(number: int) -> int:
    return number // len(ROUTES) % PRIORITIES


def is_poison(number: int) -> bool:
    """Whether workers reject it."""
    return number % 23 == 5


def body_of(name: str, size: int) -> bytes:
    """A message with a name, which also says how long it is."""
    return f"{name}|{size}\n".encode() + b"." * size


def name_of(body: bytes) -> str:
    """The name of a message; empty when it is not as it was sent."""
    text, _, filling = body.partition(b"\n")
    name, _, size = text.decode(errors="replace").rpartition("|")
    is_whole = size.isdecimal() and len(filling) == int(size) == filling.count(b".")
    return name if is_whole else ""


def publisher_of(name: str) -> str:
    return name.rpartition(":")[0]


def number_of(name: str) -> int:
    """The number that its publisher gave a message; -1 for none."""
    digits = name.rpartition(":")[2]
    return int(digits) if digits.isdecimal() else -1
