"""The same conversation gives the same answers however its bytes are cut."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.protocols.amqp import methods
from millpond.protocols.amqp.properties import encode_properties
from tests.protocols.amqp.harness import (
    CAPABILITIES,
    HEARTBEAT_FRAME,
    PLAIN_GUEST,
    PROTOCOL_HEADER,
    Client,
    frame,
    method_frame,
    pond_of,
    publish_frames,
)


def conversation() -> list[bytes]:
    """A client that does a bit of everything; each part is a frame or a protocol header."""
    start_ok = methods.ConnectionStartOk(client_properties={"capabilities": CAPABILITIES}, response=PLAIN_GUEST)
    properties = encode_properties(headers={"a": 1, "b": [True, None, {"c": "d"}]}, message_id="m", expiration="9999")
    return [
        PROTOCOL_HEADER,
        method_frame(0, start_ok),
        method_frame(0, methods.ConnectionTuneOk(frame_max=4096)),
        method_frame(0, methods.ConnectionOpen(virtual_host="/")),
        *[method_frame(number, methods.ChannelOpen()) for number in (1, 2, 3)],
        method_frame(1, methods.QueueDeclare(queue="q", arguments={"x-max-length": 100})),
        method_frame(1, methods.QueueDeclare(queue="t")),
        method_frame(1, methods.QueueBind(queue="q", exchange="amq.topic", routing_key="a.#")),
        method_frame(1, methods.ConfirmSelect()),
        *_frames(publish_frames(1, "a.b", b"first", exchange="amq.topic", properties=properties)),
        *_frames(publish_frames(1, "q", b"second" * 1000, frame_max=4096)),
        *_frames(publish_frames(1, "none", b"returned", mandatory=True)),
        HEARTBEAT_FRAME,
        method_frame(2, methods.BasicGet(queue="q")),
        method_frame(2, methods.BasicNack(delivery_tag=1)),
        method_frame(2, methods.BasicGet(queue="q")),
        method_frame(2, methods.BasicAck(delivery_tag=2)),
        method_frame(3, methods.TxSelect()),
        *_frames(publish_frames(3, "t", b"in a transaction")),
        method_frame(3, methods.TxCommit()),
        method_frame(3, methods.BasicGet(queue="t")),
        method_frame(3, methods.BasicAck(delivery_tag=1)),
        method_frame(3, methods.TxRollback()),
        method_frame(2, methods.QueuePurge(queue="nowhere")),
        method_frame(2, methods.ChannelCloseOk()),
        method_frame(2, methods.ChannelOpen()),
        method_frame(2, methods.QueueDelete(queue="q")),
        method_frame(1, methods.ChannelClose()),
        method_frame(0, methods.ConnectionClose(reply_code=200)),
    ]


def _frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 8 + int.from_bytes(data[3:7], "big")
        found.append(data[:end])
        data = data[end:]
    return found


WHOLE = b"".join(conversation())


def answered(data: bytes, cuts: list[int], turns: bool) -> list[tuple[int, int, bytes]]:
    """What a new broker answers, without the confirms, which are fewer where turns are longer."""
    with pond_of() as pond:
        client = Client(pond)
        found = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            client.feed(data[start:end])
            if turns:
                found += client.frames()
        found += client.frames()
        assert pond.broker.connections == {}
    acks = [each for each in found if each.kind == 1 and isinstance(each.method, methods.BasicAck)]
    assert max(each.method.delivery_tag for each in acks) == 3  # type: ignore[attr-defined]
    return [each for each in found if each not in acks]


EXPECTED = answered(WHOLE, [], turns=False)


@pytest.mark.parametrize("turns", [False, True])
def test_byte_by_byte(turns: bool) -> None:
    assert answered(WHOLE, list(range(1, len(WHOLE))), turns) == EXPECTED


@pytest.mark.parametrize("size", [2, 3, 7, 8, 9, 64, 4096])
def test_in_chunks_of_one_size(size: int) -> None:
    assert answered(WHOLE, list(range(size, len(WHOLE), size)), turns=True) == EXPECTED


@pytest.mark.parametrize("seed", range(20))
def test_at_random_cuts(seed: int) -> None:
    random = Random(seed)
    cuts = sorted(random.sample(range(1, len(WHOLE)), random.randrange(1, 200)))
    assert answered(WHOLE, cuts, random.random() < 0.5) == EXPECTED, f"seed {seed}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=12, unique=True).map(sorted), st.booleans())
def test_at_any_cuts(cuts: list[int], turns: bool) -> None:
    assert answered(WHOLE, cuts, turns) == EXPECTED


def test_an_error_is_the_same_wherever_its_chunk_begins() -> None:
    prefix = b"".join(conversation()[:10])
    bad = prefix + frame(4, 1, b"bad") + method_frame(1, methods.BasicQos())
    expected = None
    for cut in range(len(prefix), len(bad)):
        with pond_of() as pond:
            client = Client(pond)
            client.feed(bad[:cut])
            client.feed(bad[cut:])
            found = client.methods()[-1]
        assert isinstance(found, methods.ConnectionClose)
        expected = expected or found
        assert found == expected
