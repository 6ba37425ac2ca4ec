"""A client that keeps the broker busy has its share of each turn, and others have theirs."""

from __future__ import annotations

import itertools

from millpond.base.limits import EXCLUSIVE_QUEUES_REMOVED_PER_TURN, STEPS_OF_A_METHOD, STEPS_PER_TURN_MAX
from millpond.broker.broker import DEFAULT_VHOST
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.field_table import encode_table
from tests.protocols.amqp.harness import Client, Pond, method_frame, publish_frames

METHODS_PER_TURN = STEPS_PER_TURN_MAX // STEPS_OF_A_METHOD


def test_publishes_that_are_hard_to_route_take_turns(pond: Pond, client: Client) -> None:
    client.call(1, methods.ExchangeDeclare(exchange="hard", type="topic"), methods.ExchangeDeclareOk)
    client.declare(1, "q")
    for words in itertools.product("#*ab", repeat=4):
        client.call(1, methods.QueueBind(queue="q", exchange="hard", routing_key=".".join(words)), methods.QueueBindOk)
    router = pond.broker.vhost(DEFAULT_VHOST).router
    client.publish(1, ".".join("ab" * 30), exchange="hard")
    of_one = router.effort
    assert of_one > 1000
    pond.rest()
    count = 4 * STEPS_PER_TURN_MAX // of_one
    keys = [".".join("ab" * 30) + f".{number}" for number in range(count)]
    before = router.effort
    client.feed(b"".join([publish_frames(1, key, exchange="hard") for key in keys]))
    assert router.effort - before < STEPS_PER_TURN_MAX + 2 * of_one
    assert not client.transport.is_reading
    # Others are served meanwhile.
    other = pond.client(channels=1)
    other.publish(1, "q")
    assert client.ready(1, "q") == count + 2
    assert client.transport.is_reading


def test_publishes_to_a_headers_exchange_take_turns(pond: Pond, client: Client) -> None:
    client.call(1, methods.ExchangeDeclare(exchange="hard", type="headers"), methods.ExchangeDeclareOk)
    client.declare(1, "q")
    # Both headers are asked for by half of the bindings first, and a message has one of them only.
    wanted: dict[str, object] = {"x-match": "all", "a": 1, "b": 1}
    for number in range(300):
        bind = methods.QueueBind(queue="q", exchange="hard", routing_key=f"{number}", arguments=wanted)
        client.call(1, bind, methods.QueueBindOk)
    properties = b"\x20\x00" + encode_table({"a": 1})
    router = pond.broker.vhost(DEFAULT_VHOST).router
    data = publish_frames(1, "", exchange="hard", properties=properties)
    before = router.effort
    client.feed(data)
    of_one = router.effort - before
    assert of_one >= 500
    count = 4 * STEPS_PER_TURN_MAX // of_one
    pond.rest()
    before = router.effort
    client.feed(data * count)
    assert router.effort - before < STEPS_PER_TURN_MAX + 2 * of_one
    pond.rest()
    assert router.effort - before == count * of_one


def test_publishes_to_very_many_queues_take_turns(pond: Pond, client: Client) -> None:
    for number in range(100):
        client.declare(1, f"q{number}")
        client.call(1, methods.QueueBind(queue=f"q{number}", exchange="amq.fanout"), methods.QueueBindOk)
    vhost = pond.broker.vhost(DEFAULT_VHOST)
    client.feed(publish_frames(1, "", exchange="amq.fanout") * 1000)
    assert vhost.published_total <= STEPS_PER_TURN_MAX // 100 + 1
    pond.rest()
    assert vhost.published_total == 1000
    assert client.ready(1, "q99") == 1000


def test_methods_take_turns(pond: Pond, client: Client) -> None:
    vhost = pond.broker.vhost(DEFAULT_VHOST)
    client.feed(b"".join([method_frame(1, methods.QueueDeclare(queue=f"q{number}")) for number in range(1000)]))
    assert len(vhost.queues) == METHODS_PER_TURN
    assert len(client.frames()) == 1000
    assert len(vhost.queues) == 1000


def test_channels_that_are_opened_take_turns(pond: Pond) -> None:
    client = pond.client()
    client.feed(b"".join([method_frame(number + 1, methods.ChannelOpen()) for number in range(1000)]))
    assert len(client.connection.channels) == METHODS_PER_TURN
    assert len(client.frames()) == 1000


def test_a_connection_may_be_lost_while_its_frames_wait_for_their_turn(pond: Pond, client: Client) -> None:
    vhost = pond.broker.vhost(DEFAULT_VHOST)
    client.feed(b"".join([method_frame(1, methods.QueueDeclare(queue=f"q{number}")) for number in range(1000)]))
    client.drop()
    assert len(vhost.queues) == METHODS_PER_TURN


def test_exclusive_queues_of_a_lost_connection_go_in_turns(pond: Pond, client: Client) -> None:
    vhost = pond.broker.vhost(DEFAULT_VHOST)
    count = 3 * EXCLUSIVE_QUEUES_REMOVED_PER_TURN
    for number in range(count):
        client.send(1, methods.QueueDeclare(queue=f"q{number}", exclusive=True))
    pond.rest()
    assert len(vhost.queues) == count
    client.transport.is_closed = True
    client.connection.lost()
    assert len(vhost.queues) == count - EXCLUSIVE_QUEUES_REMOVED_PER_TURN
    pond.rest()
    assert not vhost.queues
