"""A whole broker without a socket, a thread or a clock, for clients that speak Kafka's protocol.

`Pond` is a broker that keeps nothing, on a clock that stands still; `DurablePond` one with a journal, on a disk of the
test's own, on which nothing is durable before the test wants it. `Client` is one connection. What a client sends takes
effect at once; what the broker answers is there after the end of the turn, which `Client.answers` runs.

    client.call(METADATA, 12, topics=None)             request and response, by kio's definitions
    client.send(PRODUCE, 9, acks=-1, ...)              the request only; `client.take()` is the next answer
    client.feed(b"...")                                bytes
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from crc32c import crc32c
from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader, entity_writer

from millpond.base.clock import ManualClock
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.limits import KAFKA_REQUEST_BYTES_MAX, MESSAGE_BYTES_MAX
from millpond.broker.access import Access
from millpond.broker.broker import DEFAULT_VHOST, Broker
from millpond.broker.commits import Alarms, Commits
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS
from millpond.broker.groups.store import GroupSettings
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.queues.page_store import PageStore
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.topic import Topic
from millpond.broker.streams.topics import Topics
from millpond.broker.turn import Turn
from millpond.catalog.catalog import Catalog
from millpond.protocols.kafka import messages, registry
from millpond.protocols.kafka.connection import Connection, KafkaSettings
from millpond.protocols.transport import Transport
from millpond.storage import compression
from millpond.storage.record_batch import BatchBuilder, RecordReader
from tests.broker.life import Life

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS, INIT_PRODUCER_ID = 0, 1, 2, 3, 18, 22
CLIENT_ID = "test"
# Of no topic.
UNKNOWN_ID = b"\x01" * 16
HOST, PORT = "127.0.0.1", 9092
# Turns that a broker may take to come to rest.
TURNS_MAX = 10_000

Record = tuple[bytes | None, bytes | None]


class Answer(NamedTuple):
    """A response: what follows its size and correlation id."""

    correlation_id: int
    payload: bytes


class MemoryTransport(Transport):
    """What a client would have received so far, and what was done to its socket."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_closed = False
        self.is_aborted = False
        self.is_reading = True

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "something was written to a closed socket"
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def peer_host(self) -> str | None:
        return HOST

    def peer_port(self) -> int:
        return 40_000

    def local_address(self) -> tuple[str, int]:
        return (HOST, PORT)

    def is_tls(self) -> bool:
        return False


class Waters:
    """What `Pond` and `DurablePond` share: a broker, and the settings of its listener."""

    def __init__(self, broker: Broker, clock: ManualClock, **options: Any) -> None:
        self.broker = broker
        self.clock = clock
        self.apis = registry.load(int(options.get("connections_max", 10_000)))
        self.settings = KafkaSettings(
            str(options.get("user", "guest")),
            DEFAULT_VHOST,
            int(options.get("request_bytes_max", KAFKA_REQUEST_BYTES_MAX)),
            bool(options.get("auto_create_topics", True)),
            int(options.get("partitions", 1)),
            None,
            "cluster",
            bool(options.get("login_required", False)),
        )

    def rest(self) -> None:
        """End turns until nothing is due."""
        raise NotImplementedError

    @property
    def topics(self) -> Topics:
        return self.broker.vhost(DEFAULT_VHOST).topics

    def topic(self, name: str, partitions: int = 1, **configs: str) -> Topic:
        """Make a topic; of its configuration `_` stands for `.`."""
        overrides: dict[str, str | None] = {key.replace("_", "."): value for key, value in configs.items()}
        return self.topics.create(name, partitions, overrides)

    def partition(self, topic: str, number: int = 0) -> Partition:
        return self.topics.by_name[topic].partitions[number]

    def client(self) -> Client:
        return Client(self)

    def advance(self, duration_ms: int) -> None:
        """Let time pass, and come to rest."""
        self.clock.advance(duration_ms)
        self.rest()


class Pond(Waters):
    """A broker that keeps nothing, so that everything is durable at once. Its time passes and its turns end only when
    the test says so."""

    def __init__(
        self, *, memory_budget: int = 1 << 30, group_settings: GroupSettings = DEFAULT_SETTINGS, **options: Any
    ) -> None:
        clock = ManualClock()
        self._due: list[Callable[[], None]] = []
        # What would run on a thread: (task, what to do with its result).
        self.blocking: list[tuple[Callable[[], object], Callable[[object], None]]] = []
        turn = Turn(self._due.append)
        alarms = Alarms()
        self.catalog = Catalog(None)
        self.catalog.open()
        broker = Broker(
            turn,
            clock,
            Ledger(),
            MemoryBudget(memory_budget),
            PageStore(None, "", self._due.append),
            self.catalog,
            Access(self.catalog),
            alarms,
            Commits(alarms),
            lambda task, done: self.blocking.append((task, done)),
            MESSAGE_BYTES_MAX,
            group_settings=group_settings,
        )
        broker.create_vhost(DEFAULT_VHOST)
        broker.access.create_default_user()
        self.catalog.commit()
        super().__init__(broker, clock, **options)

    def rest(self) -> None:
        for _ in range(TURNS_MAX):
            # What is to happen at once, but not in the middle of a turn.
            self.clock.advance(0)
            if self._due:
                due, self._due[:] = list(self._due), []
                for callback in due:
                    callback()
            elif self.blocking:
                task, done = self.blocking.pop(0)
                done(task())
            else:
                return
        raise AssertionError(f"the broker does not come to rest in {TURNS_MAX} turns")

    def close(self) -> None:
        self.catalog.close()
        self.broker.store.close()


class DurablePond(Waters):
    """A broker with a journal and logs, on a disk that exists in memory only. `disk.hold_syncs()` keeps everything that
    follows from being durable until `disk.release_syncs()`."""

    def __init__(
        self,
        folder: Path,
        *,
        disk: FaultyFilesystem | None = None,
        catalog: Path | None = None,
        memory_budget: int = 1 << 30,
        **options: Any,
    ) -> None:
        self.disk = disk or FaultyFilesystem(1)
        self.life = Life(self.disk, catalog or folder / "catalog", budget=memory_budget)
        # What a life before had of users is not loaded.
        self.life.broker.access.create_default_user()
        super().__init__(self.life.broker, self.life.clock, **options)

    def rest(self) -> None:
        """End the turn, and do what threads have posted by now. What is being made durable goes on being that."""
        self.clock.advance(0)
        self.life.end_turn()
        self.life.pump()

    def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Be the event loop until the condition holds."""

        def holds() -> bool:
            self.rest()
            return condition()

        self.life.pump_until(holds, what)

    def settle(self) -> None:
        """Until all that was done is durable and what was to be written to logs is written."""
        self.life.settle_down()
        self.rest()

    def write_out(self, partition: Partition) -> None:
        """Have the log take all of a partition, and memory forget it."""
        self.settle()
        self.broker.streams.write(partition, everything=True)
        self.until(lambda: partition.written_end == partition.end_offset, "the log")
        partition.drop_written(0)
        assert not partition.hot

    def close(self) -> None:
        self.disk.release_syncs()
        self.life.abandon()


class Client:
    """One connection. It checks that every answer is whole and comes in its turn."""

    def __init__(self, pond: Waters) -> None:
        self.pond = pond
        self.transport = MemoryTransport()
        self.connection = Connection(pond.broker, self.transport, pond.settings, pond.apis)
        self._parsed = 0
        self._answers: list[Answer] = []
        self._next_id = 1
        # What was sent and is to be answered, in its order: (correlation id, api key, version).
        self._asked: list[tuple[int, int, int]] = []

    # --- bytes

    def feed(self, data: bytes) -> None:
        """Bytes arrive at the broker. The turn does not end."""
        self.connection.receive(data)

    def answers(self) -> list[Answer]:
        """What came since the last call, after the end of the turn."""
        self.pond.rest()
        sent = self.transport.sent
        while len(sent) - self._parsed >= 4:
            size = int.from_bytes(sent[self._parsed : self._parsed + 4], "big")
            end = self._parsed + 4 + size
            assert end <= len(sent), "an answer is not whole"
            payload = bytes(sent[self._parsed + 4 : end])
            self._answers.append(Answer(int.from_bytes(payload[:4], "big"), payload[4:]))
            self._parsed = end
        assert self._parsed == len(sent), "an answer is not whole"
        found, self._answers = self._answers, []
        return found

    # --- requests and responses

    def send(self, api_key: int, version: int, **tree: object) -> int:
        """Send a request; its correlation id."""
        data, correlation_id = self.request(api_key, version, **tree)
        self.feed(data)
        return correlation_id

    def request(self, api_key: int, version: int, **tree: object) -> tuple[bytes, int]:
        """A request as bytes, and its correlation id; `take` then knows that its answer is to come."""
        correlation_id = self._next_id
        self._next_id += 1
        if api_key in (PRODUCE, FETCH) and version >= 13:
            tree = {key: self._with_ids(value) if isinstance(value, list) else value for key, value in tree.items()}
        if api_key != PRODUCE or tree.get("acks") != 0:
            self._asked.append((correlation_id, api_key, version))
        return request_bytes(api_key, version, correlation_id, encoded_request(api_key, version, tree)), correlation_id

    def _with_ids(self, topics: list[Any]) -> list[Any]:
        """Newer versions name topics by their ids. One that there is not has an id all the same."""
        found = self.pond.broker.vhosts["/"].topics.by_name
        named: list[Any] = []
        for topic in topics:
            name = topic.get("topic", topic.get("name"))
            named.append({**topic, "topic_id": found[name].id if name in found else UNKNOWN_ID})
        return named

    def take_all(self) -> list[Any]:
        """All responses that have come, by kio's definitions. They are those to the oldest requests, in their order."""
        taken: list[Any] = []
        for answer in self.answers():
            correlation_id, api_key, version = self._asked.pop(0)
            assert answer.correlation_id == correlation_id, "an answer is not in its turn"
            taken.append(decoded_response(api_key, version, answer.payload))
        return taken

    def take(self) -> Any:
        """The one response that has come."""
        taken = self.take_all()
        assert len(taken) == 1, f"{len(taken)} answers; closed: {self.transport.is_closed}"
        return taken[0]

    def call(self, api_key: int, version: int, **tree: object) -> Any:
        """A request and its answer."""
        self.send(api_key, version, **tree)
        return self.take()

    # --- the usual ones

    def produce(self, topic: str, batch: bytes | None, *, partition: int = 0, acks: int = -1, version: int = 9) -> Any:
        """Produce to one partition; its response."""
        response = self.call(PRODUCE, version, **produce_tree({topic: {partition: batch}}, acks=acks))
        return response.responses[0].partition_responses[0]

    def fetch(self, topic: str, offset: int, *, partition: int = 0, version: int = 12, **options: int) -> Any:
        """Fetch from one partition, without waiting; its response."""
        response = self.call(FETCH, version, **fetch_tree({topic: {partition: offset}}, **options))
        return response.responses[0].partitions[0]

    # --- what ends it

    def is_alive(self) -> bool:
        """Whether the connection is open and answers."""
        if self.transport.is_closed:
            return False
        self.send(API_VERSIONS, 0)
        return len(self.take_all()) == 1

    def drop(self) -> None:
        """The socket is gone."""
        self.transport.is_closed = True
        self.connection.lost()
        self.pond.rest()


# --- Requests and responses as bytes ----------------------------------------------------------------------------------


def is_flexible(api_key: int, version: int) -> bool:
    return bool(load_request_schema(api_key, version).__flexible__)


def encoded_request(api_key: int, version: int, tree: Mapping[str, object]) -> bytes:
    """The body of a request. What the tree leaves out is the default; what the version does not have is left out."""
    schema: Any = load_request_schema(api_key, version)
    buffer = io.BytesIO()
    entity_writer(schema)(buffer, messages._builder(schema)(tree))
    return buffer.getvalue()


def request_bytes(
    api_key: int, version: int, correlation_id: int, body: bytes, *, client_id: str | None = CLIENT_ID
) -> bytes:
    """A whole request, with its size."""
    header = struct.pack(">hhi", api_key, version, correlation_id)
    header += (
        struct.pack(">h", -1) if client_id is None else struct.pack(">h", len(client_id.encode())) + client_id.encode()
    )
    if is_flexible(api_key, version):
        header += b"\0"
    return struct.pack(">i", len(header) + len(body)) + header + body


def decoded_response(api_key: int, version: int, payload: bytes) -> Any:
    """A response by kio's definitions. All of it must have been read."""
    schema: Any = load_response_schema(api_key, version)
    start = 0
    if schema.__flexible__ and api_key != API_VERSIONS:
        assert payload[:1] == b"\0", "tagged fields in a header"
        start = 1
    response, size = entity_reader(schema)(payload, start)
    assert start + size == len(payload), "a response is followed by something"
    return response


def produce_tree(
    topics: Mapping[str, Mapping[int, bytes | None]], *, acks: int = -1, transactional_id: str | None = None
) -> dict[str, object]:
    return {
        "transactional_id": transactional_id,
        "acks": acks,
        "timeout": 30_000,
        "topic_data": [
            {
                "name": name,
                "partition_data": [{"index": index, "records": batch} for index, batch in partitions.items()],
            }
            for name, partitions in topics.items()
        ],
    }


def fetch_tree(
    topics: Mapping[str, Mapping[int, int]],
    *,
    max_wait: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 50_000_000,
    partition_max_bytes: int = 1_000_000,
    leader_epoch: int = -1,
    session_id: int = 0,
    session_epoch: int = -1,
    isolation_level: int = 0,
    forgotten: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, object]:
    """A fetch of the partitions from the offsets on."""
    return {
        "replica_id": -1,
        "max_wait": max_wait,
        "min_bytes": min_bytes,
        "max_bytes": max_bytes,
        "isolation_level": isolation_level,
        "session_id": session_id,
        "session_epoch": session_epoch,
        "topics": [
            {
                "topic": name,
                "partitions": [
                    {
                        "partition": index,
                        "current_leader_epoch": leader_epoch,
                        "fetch_offset": offset,
                        "last_fetched_epoch": -1,
                        "log_start_offset": -1,
                        "partition_max_bytes": partition_max_bytes,
                    }
                    for index, offset in partitions.items()
                ],
            }
            for name, partitions in topics.items()
        ],
        "forgotten_topics_data": [
            {"topic": name, "partitions": list(partitions)} for name, partitions in (forgotten or {}).items()
        ],
        "rack_id": "",
    }


# --- Record batches ---------------------------------------------------------------------------------------------------


def batch_of(
    *values: bytes | Record,
    timestamp_ms: int = 1_700_000_000_000,
    codec: int = 0,
    producer: tuple[int, int, int] = (-1, -1, -1),
    attributes: int = 0,
) -> bytes:
    """A batch as a client makes it. A value alone has no key; `producer` is id, epoch and base sequence."""
    builder = BatchBuilder()
    for delta, value in enumerate(values):
        key, content = value if isinstance(value, tuple) else (None, value)
        builder.append_with_headers(delta, timestamp_ms, key, content, [])
    batch = bytearray(builder.finish(0, max(0, len(values) - 1)))
    if codec:
        batch[61:] = compression.compress(codec, bytes(batch[61:]))
    return with_fields(
        bytes(batch),
        attributes=attributes | codec,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
    )


_FIELDS = {
    "base_offset": (0, ">q"),
    "leader_epoch": (12, ">i"),
    "magic": (16, ">b"),
    "attributes": (21, ">h"),
    "last_offset_delta": (23, ">i"),
    "base_timestamp": (27, ">q"),
    "max_timestamp": (35, ">q"),
    "producer_id": (43, ">q"),
    "producer_epoch": (51, ">h"),
    "base_sequence": (53, ">i"),
    "record_count": (57, ">i"),
}


def with_fields(batch: bytes, *, length: int | None = None, crc: int | None = None, **fields: int) -> bytes:
    """The batch with some fields of its header changed, and length and checksum as they must be, or as given."""
    changed = bytearray(batch)
    for name, value in fields.items():
        position, layout = _FIELDS[name]
        struct.pack_into(layout, changed, position, value)
    struct.pack_into(">i", changed, 8, len(changed) - 12 if length is None else length)
    struct.pack_into(">I", changed, 17, crc32c(bytes(changed[21:])) if crc is None else crc)
    return bytes(changed)


def split_batches(data: bytes | None) -> list[bytes]:
    """The batches that a fetch has brought, which must be whole."""
    batches: list[bytes] = []
    position = 0
    while data and position < len(data):
        end = position + 12 + int.from_bytes(data[position + 8 : position + 12], "big")
        assert end <= len(data), "a batch is not whole"
        batches.append(data[position:end])
        position = end
    return batches


def records_of(data: bytes | None) -> list[tuple[int, bytes | None]]:
    """(offset, value) of all records that a fetch has brought."""
    found: list[tuple[int, bytes | None]] = []
    for batch in split_batches(data):
        reader = RecordReader(plain(batch))
        while reader.next():
            found.append((int(reader.offset), reader.value))
    return found


def plain(batch: bytes) -> bytes:
    """The batch with its records decompressed."""
    codec = int.from_bytes(batch[21:23], "big") & 7
    if codec == 0:
        return batch
    records = compression.decompress(codec, batch[61:], 1 << 27)
    attributes = int.from_bytes(batch[21:23], "big") & ~7
    return with_fields(batch[:61] + records, attributes=attributes)


@contextmanager
def pond_of(**options: Any) -> Iterator[Pond]:
    pond = Pond(**options)
    try:
        yield pond
    finally:
        pond.close()
