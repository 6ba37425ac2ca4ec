"""Whole conversations with a broker that has no socket: frames and requests, cut into pieces anywhere.

    seed of the chance that cuts, u8 | mode u8 | what the client sends

The broker is a new one for each input, so that what comes of an input depends on nothing else.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

from faults.fuzz.targets.target import target
from millpond.protocols.amqp import methods
from tests.protocols.amqp import harness as amqp
from tests.protocols.amqp.hostile import fuzzing as amqp_fuzzing
from tests.protocols.kafka import fuzzing as kafka_fuzzing
from tests.protocols.kafka import harness as kafka

_HEAD_BYTES = 2
# Where a conversation begins.
_GREETING, _OPEN = 0, 1
_PIECES_MAX = 6
_CHANNELS = 2
_KAFKA_TOPIC = "t"
_PRODUCE, _FETCH = 0, 1


class _Bugs(logging.Handler):
    """What the broker admits to be a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None or "bug" in record.getMessage():
            self.found.append(logging.Formatter().format(record))


@contextmanager
def _no_bug() -> Iterator[None]:
    bugs = _Bugs()
    logger = logging.getLogger("millpond")
    logger.addHandler(bugs)
    was_propagating, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(bugs)
        logger.propagate = was_propagating
    # What the broker has caught itself is found here only.
    assert not bugs.found, bugs.found[0]


def _pieces(seed: int, data: bytes) -> list[bytes]:
    chance = random.Random(seed)
    if len(data) < 2:
        return [data]
    cuts = sorted(chance.randrange(1, len(data)) for _ in range(chance.randrange(_PIECES_MAX)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# --- AMQP -------------------------------------------------------------------------------------------------------------


def _amqp_seeds() -> list[bytes]:
    greeting = b"".join(
        [
            amqp.PROTOCOL_HEADER,
            amqp.method_frame(
                0, methods.ConnectionStartOk(client_properties={}, mechanism="PLAIN", response=amqp.PLAIN_GUEST)
            ),
            amqp.method_frame(0, methods.ConnectionTuneOk(channel_max=10, frame_max=4096, heartbeat=0)),
            amqp.method_frame(0, methods.ConnectionOpen(virtual_host="/")),
            amqp.method_frame(1, methods.ChannelOpen()),
            amqp.method_frame(1, methods.ChannelClose(reply_code=200, reply_text="bye")),
            amqp.method_frame(0, methods.ConnectionClose(reply_code=200, reply_text="bye")),
        ]
    )
    work = [
        [methods.QueueDeclare(queue="q", arguments={"x-max-length": 5, "x-dead-letter-exchange": ""}),
         methods.ConfirmSelect()],
        [methods.QueueDeclare(queue="s", durable=True, arguments={"x-queue-type": "stream"}),
         methods.BasicQos(prefetch_count=5),
         methods.BasicConsume(queue="s", arguments={"x-stream-offset": "first"})],
        [methods.QueueDeclare(queue="q"), methods.BasicConsume(queue="q", consumer_tag="c"),
         methods.BasicAck(delivery_tag=1)],
        [methods.TxSelect(), methods.QueueDeclare(queue="q"), methods.TxCommit(), methods.TxRollback()],
        [methods.ExchangeDeclare(exchange="e", type="topic"), methods.QueueDeclare(queue="q"),
         methods.QueueBind(queue="q", exchange="e", routing_key="a.#"), methods.ExchangeDelete(exchange="e")],
    ]  # fmt: skip
    chance = random.Random(5)
    seeds = [bytes([0, _GREETING]) + greeting]
    for number, sent in enumerate(work):
        frames = b"".join(amqp.method_frame(1, method) for method in sent)
        frames += amqp.publish_frames(1, "q", b"body", mandatory=True)
        frames += amqp.method_frame(1, methods.BasicGet(queue="q"))
        seeds.append(bytes([number, _OPEN]) + frames)
    for number in range(12):
        parts = b"".join(amqp_fuzzing.random_part(chance) for _ in range(6))
        seeds.append(bytes([number, _OPEN]) + parts[:3000])
    return seeds


@target("amqp-connection", _amqp_seeds, memory_bytes=16 << 20)
def converse_by_amqp(data: bytes) -> object:
    """Frames, from the greeting on or on open channels; the broker's answers are looked at too, and it still serves."""
    if len(data) < _HEAD_BYTES:
        return None
    with _no_bug(), amqp.pond_of() as pond:
        client = amqp.Client(pond)
        if data[1] % 2 == _OPEN:
            client.open(channels=_CHANNELS)
        shown = []
        for piece in _pieces(data[0], data[_HEAD_BYTES:]):
            client.feed(piece)
            # Nothing of the name that the broker makes up for a queue.
            if client.output() == amqp.PROTOCOL_HEADER:
                # No greeting of AMQP's: the broker has said what it speaks, which is no frame, and closed.
                assert client.transport.is_closed
                break
            shown += [(frame.kind, frame.channel, frame.payload[:4]) for frame in client.frames()]
        if not client.transport.is_closed:
            client.drop()
        other = pond.client(channels=1)
        other.declare(1, "served")
        other.publish(1, "served")
        assert other.ready(1, "served") == 1, "another client is not served"
        other.drop()
        return shown


# --- Kafka ------------------------------------------------------------------------------------------------------------


def _kafka_seeds() -> list[bytes]:
    chance = random.Random(6)
    seeds: list[bytes] = []
    registered = kafka_fuzzing.apis()
    for number, api in enumerate(registered):
        for version in {api.least, api.most}:
            bodies = kafka_fuzzing.sample_bodies(api.key, version)
            requests = b"".join(kafka.request_bytes(api.key, version, at, body) for at, body in enumerate(bodies))
            seeds.append(bytes([number, 0]) + requests[:3000])
    batch = kafka.batch_of((b"k", b"v"), (None, None), codec=1)
    for version in (4, 8, 9, 12):
        body = kafka.encoded_request(_PRODUCE, version, kafka.produce_tree({_KAFKA_TOPIC: {0: batch}}))
        produce = kafka.request_bytes(_PRODUCE, version, 1, body)
        body = kafka.encoded_request(_FETCH, version, kafka.fetch_tree({_KAFKA_TOPIC: {0: 0}}))
        seeds.append(bytes([version, 0]) + produce + kafka.request_bytes(_FETCH, version, 2, body))
    return [*seeds, *[bytes([at, 0]) + kafka_fuzzing.random_request(chance, at)[2][:3000] for at in range(8)]]


@target("kafka-connection", _kafka_seeds, memory_bytes=16 << 20)
def converse_by_kafka(data: bytes) -> object:
    """Requests as bytes; answers are whole, and the broker serves the next client and gives all memory back."""
    if len(data) < _HEAD_BYTES:
        return None
    with _no_bug():
        pond = kafka.Pond(memory_budget=64 << 20)
        try:
            pond.topic(_KAFKA_TOPIC, 2)
            client = pond.client()
            shown = []
            for piece in _pieces(data[0], data[_HEAD_BYTES:]):
                client.feed(piece)
                # Nothing of ids that the broker makes up.
                shown += [(answer.correlation_id, len(answer.payload)) for answer in client.answers()]
            kafka_fuzzing.check_serves(pond)
            return shown
        finally:
            pond.close()


# --- Logging in -------------------------------------------------------------------------------------------------------

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_HANDSHAKE, _AUTHENTICATE = 17, 36


def _login_seeds() -> list[bytes]:
    first = b"n,,n=guest,r=rOprNGfwEbeRWgbNEkqO"
    final = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    return [
        *[
            _tokens(0, version, [token])
            for version in (0, 1)
            for token in (b"\0guest\0guest", b"guest\0guest\0wrong", b"")
        ],
        *[_tokens(number, version, [first, final]) for version in (0, 1) for number in (1, 2)],
        *[
            _tokens(1, 1, [token, final])
            for token in (b"y,,n=a=2Cb=3D,r=x", b"p=tls-unique,,n=a,r=x", b"n,a=b,n=guest,r=x,m=y")
        ],
    ]


def _tokens(mechanism: int, version: int, tokens: list[bytes]) -> bytes:
    return bytes([mechanism, version]) + b"".join(len(token).to_bytes(2, "big") + token for token in tokens)


@target("kafka-login", _login_seeds, memory_bytes=16 << 20)
def log_in_to_kafka(data: bytes) -> object:
    """mechanism u8 | version of the handshake u8 | tokens, each with its length before it, u16"""
    if len(data) < _HEAD_BYTES:
        return None
    with _no_bug():
        pond = kafka.Pond(login_required=True)
        try:
            client = pond.client()
            version = data[1] % 2
            body = kafka.encoded_request(_HANDSHAKE, version, {"mechanism": _MECHANISMS[data[0] % len(_MECHANISMS)]})
            client.feed(kafka.request_bytes(_HANDSHAKE, version, 0, body))
            shown = [len(client.answers())]
            position = _HEAD_BYTES
            while position + 2 <= len(data) and not client.transport.is_closed:
                size = int.from_bytes(data[position : position + 2], "big")
                token = data[position + 2 : position + 2 + size]
                position += 2 + size
                if version == 0:
                    client.feed(len(token).to_bytes(4, "big") + token)
                else:
                    body = kafka.encoded_request(_AUTHENTICATE, 1, {"auth_bytes": token})
                    client.feed(kafka.request_bytes(_AUTHENTICATE, 1, 1, body))
                shown.append(len(client.answers()))
                # Who is refused is told so a moment later.
                pond.advance(10_000)
                shown.append(len(client.answers()))
            is_in = client.connection.user != ""
            assert not is_in or b"guest" in data, "somebody is let in who has not said who he is"
            return shown, is_in
        finally:
            pond.close()
