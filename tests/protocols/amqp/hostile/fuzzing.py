"""Hostile conversations from a seed: random methods with random fields, and valid conversations that are damaged.

What comes of any of them: clean answers of the protocol, bounded memory, and a broker that serves the next client.
"""

from __future__ import annotations

from decimal import Decimal
from random import Random

from millpond.base.limits import FRAME_BYTES_MAX
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.methods import METHODS, Method
from millpond.protocols.amqp.properties import encode_properties
from tests.protocols.amqp.harness import (
    BODY,
    HEADER,
    HEARTBEAT,
    METHOD,
    PLAIN_GUEST,
    PROTOCOL_HEADER,
    Client,
    Pond,
    frame,
    header_frame,
    method_frame,
    publish_frames,
)

# Few names, so that what one method makes the next one meets.
QUEUES = ["q", "q", "q", "full", "ttl", "dead", "", "none", "amq.x", "q\r\n", "\0", "é" * 127, "x" * 255]
EXCHANGES = ["", "amq.topic", "amq.headers", "amq.direct", "amq.fanout", "e", "e", "f", "none", "x" * 255]
KEYS = ["q", "q", "full", "ttl", "dead", "none", "a.b", "#", "*.b.#", "", ".", "x" * 255]
TAGS = ["", "c", "c", "d", "x" * 255]
TYPES = ["direct", "fanout", "topic", "headers", "", "x-none"]
NUMBERS = [0, 0, 1, 1, 2, 3, 5, 10, 255, 256, 32767, 32768, 65535, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]
MESSAGE_BYTES_MAX = 100_000
BYTES_OF_TYPE = {"Octet": 1, "Short": 2, "Long": 4, "LongLong": 8}
CHANNELS = 3
TURNS_OF_MEMORY = 4


def random_value(random: Random, depth: int = 0) -> object:
    choice = random.randrange(13 if depth < 3 else 10)
    if choice == 10:
        return [random_value(random, depth + 1) for _ in range(random.randrange(4))]
    if choice >= 11:
        return random_table(random, depth + 1)
    simple = (
        None, True, random.choice(NUMBERS), -random.randrange(1 << 40), 1.5, float("nan"), "q", "reject-publish",
        b"\xff\0", Decimal("1.5"),
    )  # fmt: skip
    return simple[choice]


def random_table(random: Random, depth: int = 0) -> dict[str, object]:
    names = [
        "x-max-length", "x-max-length-bytes", "x-message-ttl", "x-overflow", "x-dead-letter-exchange",
        "x-dead-letter-routing-key", "x-queue-type", "x-match", "alternate-exchange", "x-death", "count", "queue",
        "reason", "a", "", "CC", "\udcff",
    ]  # fmt: skip
    return {random.choice(names): random_value(random, depth) for _ in range(random.randrange(4))}


def random_deaths(random: Random) -> dict[str, object]:
    """Headers of a message that claims to have died before."""
    deaths = [
        {
            "queue": random.choice(QUEUES),
            "reason": random.choice(["rejected", "expired", "maxlen", "", 5]),
            "count": random.choice(NUMBERS),
            "time": random.choice(NUMBERS),
        }
        for _ in range(random.randrange(3))
    ]
    return {"x-death": deaths, "x-first-death-reason": random_value(random)}


def random_properties(random: Random) -> bytes:
    choice = random.randrange(6)
    if choice < 3:
        return b"\0\0"
    if choice == 3:
        return random.randbytes(random.randrange(12))
    headers = random_deaths(random) if random.random() < 0.5 else random_table(random)
    return encode_properties(
        headers=headers,
        expiration=random.choice([None, None, "0", "1", "x", "-1", "9" * 200]),
        delivery_mode=random.choice([None, 1, 2, 255]),
        user_id=random.choice([None, None, "guest", "other"]),
        priority=random.choice([None, 0, 255]),
    )


def random_method(random: Random, kind: type[Method] | None = None) -> Method:
    kind = kind or random.choice(list(METHODS.values()))
    fields: dict[str, object] = {}
    for name, type_name in kind.layout:
        if type_name == "Bit":
            fields[name] = random.random() < 0.3
        elif type_name == "Table":
            fields[name] = random_table(random) if random.random() < 0.4 else {}
        elif type_name == "LongString":
            fields[name] = random.choice([b"", PLAIN_GUEST, random.randbytes(random.randrange(20))])
        elif type_name == "ShortString":
            pool = {"queue": QUEUES, "exchange": EXCHANGES, "source": EXCHANGES, "destination": EXCHANGES}
            pool |= {"routing_key": KEYS, "consumer_tag": TAGS, "type": TYPES}
            fields[name] = random.choice(pool.get(name, ["", "/", "PLAIN"]))
        else:
            bits = 8 * BYTES_OF_TYPE[type_name]
            fields[name] = random.choice(NUMBERS) & ((1 << bits) - 1)
    if "prefetch_size" in fields and random.random() < 0.9:
        fields["prefetch_size"] = 0
    return kind(**fields)


# What keeps a conversation going, more often than all the rest.
USUAL: list[type[Method]] = [
    methods.QueueDeclare,
    methods.QueueBind,
    methods.QueueDelete,
    methods.QueuePurge,
    methods.ExchangeDeclare,
    methods.ExchangeBind,
    methods.ExchangeDelete,
    methods.BasicConsume,
    methods.BasicConsume,
    methods.BasicCancel,
    methods.BasicGet,
    methods.BasicGet,
    methods.BasicAck,
    methods.BasicAck,
    methods.BasicNack,
    methods.BasicNack,
    methods.BasicReject,
    methods.BasicRecover,
    methods.BasicQos,
    methods.TxSelect,
    methods.TxCommit,
    methods.TxRollback,
    methods.ConfirmSelect,
    methods.ChannelClose,
    methods.ChannelOpen,
]


def random_part(random: Random) -> bytes:
    """A frame, or the frames of a message."""
    channel = random.choice([1, 1, 1, 2, 2, 3, 3, 0, 9]) if random.random() < 0.1 else random.randrange(1, CHANNELS + 1)
    choice = random.random()
    if choice < 0.35:
        data = publish_frames(
            channel,
            random.choice(KEYS),
            random.randbytes(random.choice([0, 1, 10, 200, 5000])),
            exchange=random.choice(EXCHANGES[:7]) if random.random() < 0.9 else random.choice(EXCHANGES),
            mandatory=random.random() < 0.3,
            properties=random_properties(random),
            frame_max=random.choice([4096, 64]),
        )
    elif choice < 0.9:
        data = method_frame(channel, random_method(random, random.choice(USUAL)))
    elif choice < 0.95:
        data = method_frame(random.choice([0, channel]), random_method(random))
    elif choice < 0.97:
        data = header_frame(channel, random.choice(NUMBERS), random_properties(random))
    else:
        kind = random.choice([METHOD, HEADER, BODY, HEARTBEAT, random.randrange(256)])
        data = frame(kind, random.choice([0, channel]), random.randbytes(random.randrange(30)))
    return data


def topology() -> list[bytes]:
    """Queues whose messages move by themselves."""
    arguments: dict[str, dict[str, object]] = {
        "q": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"},
        "full": {"x-max-length": 2, "x-overflow": "reject-publish-dlx", "x-dead-letter-exchange": "amq.fanout"},
        "ttl": {"x-message-ttl": 5, "x-dead-letter-exchange": "amq.headers", "x-max-length": 3},
        "dead": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q", "x-max-length-bytes": 20_000},
    }
    parts = [method_frame(1, methods.QueueDeclare(queue=name, arguments=each)) for name, each in arguments.items()]
    parts += [
        method_frame(1, methods.QueueBind(queue=name, exchange=exchange, routing_key="a.#"))
        for name in arguments
        for exchange in ("amq.topic", "amq.fanout", "amq.headers", "amq.direct")
    ]
    return parts


def damaged(parts: list[bytes], random: Random) -> bytes:
    """The parts with some of them lost, doubled, moved or cut, some lengths changed, some bits flipped."""
    parts = list(parts)
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(len(parts))
        choice = random.randrange(7)
        if choice == 0:
            parts[at] = parts[at][: random.randrange(len(parts[at]) + 1)]
        elif choice == 1:
            parts.insert(random.randrange(len(parts)), parts[at])
        elif choice == 2:
            parts.insert(random.randrange(len(parts)), parts.pop(at))
        elif choice == 3:
            length = random.choice([0, 1, 3, 4, len(parts[at]), FRAME_BYTES_MAX - 8, FRAME_BYTES_MAX, 0xFFFFFFFF])
            parts[at] = parts[at][:3] + length.to_bytes(4, "big") + parts[at][7:]
        elif choice == 4:
            parts[at] = parts[at][:1] + random.choice([0, 1, 2, 3, 9, 0xFFFF]).to_bytes(2, "big") + parts[at][3:]
        elif choice == 5 and len(parts) > 1:
            del parts[at]
        elif parts[at]:
            data = bytearray(parts[at])
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            parts[at] = bytes(data)
        parts = [part for part in parts if part] or [b"\0"]
    return b"".join(parts)


def cut(data: bytes, random: Random) -> list[bytes]:
    """The data in chunks."""
    if random.random() < 0.3 or len(data) < 2:
        return [data]
    cuts = sorted(random.sample(range(1, len(data)), min(len(data) - 1, random.randrange(1, 10))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def open_client(pond: Pond) -> Client:
    return pond.client(channels=CHANNELS)


def attack(pond: Pond, client: Client, chunks: list[bytes], random: Random) -> None:
    """Feed the chunks while turns end and time passes, and check what must hold throughout."""
    for chunk in chunks:
        client.feed(chunk)
        if random.random() < 0.5:
            client.frames()
        if random.random() < 0.2:
            pond.clock.advance(random.choice([1, 10, 1000]))
        if random.random() < 0.05:
            client.connection.pause_writing()
        if random.random() < 0.1:
            client.connection.resume_writing()
        check_bounds(client)
    client.connection.resume_writing()
    client.frames()
    check_bounds(client)


def check_bounds(client: Client) -> None:
    connection = client.connection
    if connection._holds == 0:
        assert len(connection._partial) <= FRAME_BYTES_MAX + 8
    for channel in connection.channels.values():
        assert sum([len(part) for part in channel._body_parts]) <= MESSAGE_BYTES_MAX
        assert len(channel._body_parts) <= MESSAGE_BYTES_MAX // 1024 + 1
        alive = [entry for entry in channel.unsettled if entry is not None]
        settled_later = 0 if channel.transaction is None else len(channel.transaction.entries)
        assert channel.unsettled_count == len(alive) + len(channel.stragglers) + settled_later
        assert channel.next_delivery_tag == channel.unsettled_base + len(channel.unsettled)


def check_serves(pond: Pond, attackers: list[Client]) -> None:
    """Another client publishes and consumes as if nothing had happened, and what attackers held comes back."""
    other = pond.client(channels=1)
    other.call(1, methods.ConfirmSelect(), methods.ConfirmSelectOk)
    other.declare(1, "served", exclusive=True)
    other.publish(1, "served", b"a" * 10_000)
    assert other.expect(methods.BasicAck).delivery_tag == 1
    other.consume(1, "served")
    assert other.bodies() == [b"a" * 10_000]
    other.drop()
    for attacker in attackers:
        attacker.drop()
    vhost = pond.broker.vhost("/")
    pond.clock.advance(100)
    pond.rest()
    for queue in vhost.all_queues():
        assert queue.unsettled == 0, f"{queue.name} waits for somebody who is gone"
        assert not queue.consumers
        assert queue.ready == sum([page.live for page in queue.backlog.pages]), queue.name
        vhost.remove_queue(queue)
    assert pond.broker.memory.used == 0
    assert pond.broker.connections == {}


def run_seed(seed: int) -> None:
    """One whole attack."""
    random = Random(seed)
    pond = Pond(message_bytes_max=MESSAGE_BYTES_MAX)
    try:
        setup = pond.client(channels=1)
        setup.feed(b"".join(topology()))
        setup.frames()
        attackers = []
        for _ in range(random.randrange(1, 4)):
            client = open_client(pond)
            attackers.append(client)
            parts = [random_part(random) for _ in range(random.randrange(1, 80))]
            data = damaged(parts, random) if random.random() < 0.4 else b"".join(parts)
            attack(pond, client, cut(data, random), random)
        check_serves(pond, [setup, *attackers])
    finally:
        pond.close()


def run_handshake_seed(seed: int, parts: list[bytes]) -> None:
    """A damaged conversation from its first byte."""
    random = Random(seed)
    pond = Pond(message_bytes_max=MESSAGE_BYTES_MAX)
    try:
        client = Client(pond)
        data = damaged(parts, random)
        if random.random() < 0.2:
            data = PROTOCOL_HEADER + random.randbytes(random.randrange(200))
        for chunk in cut(data, random):
            client.feed(chunk)
        if client.output() != PROTOCOL_HEADER:
            client.frames()
        check_bounds(client)
        check_serves(pond, [client])
    finally:
        pond.close()
