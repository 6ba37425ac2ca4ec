"""Messages that claim to have died before: what a publisher writes into x-death is not to be believed."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from millpond.protocols.amqp import methods
from millpond.protocols.amqp.properties import encode_properties, parse_properties
from tests.protocols.amqp.harness import Client


@pytest.fixture
def dying(client: Client) -> Client:
    """Queue `q`, whose messages go to `dead` when they are rejected, expire, or are too many."""
    client.declare(1, "dead")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", "x-max-length": 1}
    client.declare(1, "q", arguments=arguments)
    return client


@pytest.mark.parametrize("reason", ["rejected", "maxlen", "expired"])
@pytest.mark.parametrize(
    "death",
    [
        {"count": (1 << 64) - 1},
        {"count": (1 << 63) - 1},
        {"count": -(1 << 63)},
        {"count": "many"},
        {"count": True},
        {"count": None},
        {"count": Decimal(-1)},
        {"time": "noon", "exchange": 5, "routing-keys": {}},
        {"time": datetime(9999, 12, 31, tzinfo=UTC)},
        {"original-expiration": [[[[]]]]},
        {"x" * 255: b"\xff" * 10_000},
    ],
)
def test_a_forged_death_is_counted_or_forgotten_but_breaks_nothing(
    dying: Client, reason: str, death: dict[str, object]
) -> None:
    headers: dict[str, object] = {"x-death": [{"queue": "q", "reason": reason, **death}] * 3, "x-first-death-reason": 5}
    expiration = "1" if reason == "expired" else None
    dying.publish(1, "q", b"m", properties=encode_properties(headers=headers, expiration=expiration))
    dying.pond.rest()
    if reason == "rejected":
        dying.send(1, methods.BasicGet(queue="q"))
        dying.frames()
        dying.send(1, methods.BasicReject(delivery_tag=1, requeue=False))
    elif reason == "maxlen":
        dying.publish(1, "q", b"another")
    else:
        dying.pond.clock.advance(2)
    assert dying.frames() == []
    dying.consume(2, "dead")
    (dead,) = dying.messages()
    assert dead.body == b"m"
    newest = parse_properties(dead.properties).headers()["x-death"][0]  # type: ignore[index]
    assert (newest["queue"], newest["reason"]) == ("q", reason)
    assert newest["count"] >= 1


def test_deaths_in_a_shape_of_their_own_are_no_deaths(dying: Client) -> None:
    shapes: list[object] = ["x", 5, {}, {"queue": "q"}, [1, "x", None, []], None]
    for number, deaths in enumerate(shapes, 1):
        dying.publish(1, "q", properties=encode_properties(headers={"x-death": deaths, "x-death-": deaths}))
        dying.pond.rest()
        dying.send(1, methods.BasicGet(queue="q"))
        dying.frames()
        dying.send(1, methods.BasicReject(delivery_tag=number, requeue=False))
        assert dying.frames() == []
    assert dying.ready(2, "dead") == 6
