"""A socket that speaks Kafka's protocol request by request, for what no client would send or show.

Requests and responses are kio's. Record batches are read here as far as a test looks: their header.
"""

from __future__ import annotations

import io
import socket
import struct
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from kafka.record.default_records import DefaultRecordBatchBuilder
from kio.schema.fetch.v4.request import FetchPartition, FetchRequest, FetchTopic
from kio.schema.produce.v7.response import PartitionProduceResponse, ProduceResponse
from kio.serial import entity_reader, entity_writer

from tests.support.waiting import DEADLINE_S

# Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and greatest timestamp,
# producer id, producer epoch, base sequence, count.
BATCH_HEADER = struct.Struct(">qiibIhiqqqhii")
CODEC_NAMES = ("none", "gzip", "snappy", "lz4", "zstd")


@dataclass(frozen=True)
class Batch:
    base_offset: int
    leader_epoch: int
    codec: str
    append_time: bool
    last_offset: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int


def batches_in(data: bytes) -> list[Batch]:
    """The headers of the whole record batches in `data`; a last one that is cut off is left out."""
    found: list[Batch] = []
    position = 0
    while len(data) - position >= BATCH_HEADER.size:
        header = BATCH_HEADER.unpack_from(data, position)
        base, length, epoch, magic, _, attributes, delta, _, greatest, producer, producer_epoch, sequence, count = (
            header
        )
        position += 12 + length
        if position > len(data):
            break
        assert magic == 2
        codec, append_time = CODEC_NAMES[attributes & 7], bool(attributes & 8)
        found.append(
            Batch(base, epoch, codec, append_time, base + delta, greatest, producer, producer_epoch, sequence, count)
        )
    return found


class RawKafka:
    def __init__(self, servers: str) -> None:
        host, _, port = servers.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self._correlation_id = 0

    def __enter__(self) -> RawKafka:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: Any) -> Any:
        self.send(request)
        return self.receive(request)

    def send(self, request: Any) -> None:
        self._correlation_id += 1
        header_type = request.__header_schema__
        header = header_type(
            request_api_key=request.__api_key__,
            request_api_version=request.__version__,
            correlation_id=self._correlation_id,
            client_id="raw",
        )
        payload = io.BytesIO()
        entity_writer(header_type)(payload, header)
        entity_writer(type(request))(payload, request)
        self.send_frame(payload.getvalue())

    def send_frame(self, payload: bytes) -> None:
        self.socket.sendall(struct.pack(">i", len(payload)) + payload)

    def receive(self, request: Any) -> Any:
        """The answer to `request`, which is the next one that has not been received."""
        module = import_module(type(request).__module__.removesuffix(".request") + ".response")
        response_type = getattr(module, type(request).__name__.removesuffix("Request") + "Response")
        payload = self.receive_frame()
        _, size = entity_reader(response_type.__header_schema__)(payload, 0)
        response, _ = entity_reader(response_type)(payload, size)
        return response

    def receive_frame(self) -> bytes:
        (length,) = struct.unpack(">i", self._receive_exactly(4))
        return self._receive_exactly(length)

    def _receive_exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            assert part, "the broker closed the connection"
            parts += part
        return bytes(parts)

    def closed_by_broker(self) -> bool:
        """Whether the next thing from the broker is the end of the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def batch_of(
    *values: bytes | None,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    timestamp_ms: int = 0,
    codec: str = "none",
    key: bytes | None = b"key",
) -> bytes:
    """A record batch as a producer sends it."""
    builder = DefaultRecordBatchBuilder(
        2, CODEC_NAMES.index(codec), False, producer_id, producer_epoch, base_sequence, 1 << 30
    )
    for number, value in enumerate(values):
        builder.append(number, timestamp_ms or int(time.time() * 1000), key, value, [])
    return bytes(builder.build())


def produce_payload(topic: str, batch: bytes, *, partition: int = 0, acks: int = -1, correlation_id: int = 1) -> bytes:
    """A Produce request of version 7 with these bytes for its records, whatever they are."""
    name = topic.encode()
    return b"".join(
        (
            struct.pack(">hhih3s", 0, 7, correlation_id, 3, b"raw"),
            struct.pack(">hhii", -1, acks, 10_000, 1),
            struct.pack(">h", len(name)),
            name,
            struct.pack(">iii", 1, partition, len(batch)),
            batch,
        )
    )


def produce_batch(connection: RawKafka, topic: str, batch: bytes, **options: int) -> PartitionProduceResponse:
    """Produce `batch` as it is, and what the broker says to it."""
    connection.send_frame(produce_payload(topic, batch, **options))
    payload = connection.receive_frame()
    _, size = entity_reader(ProduceResponse.__header_schema__)(payload, 0)
    response, _ = entity_reader(ProduceResponse)(payload, size)
    return response.responses[0].partition_responses[0]


def fetch_request(
    topic: str,
    *offsets: int,
    min_bytes: int = 1,
    max_bytes: int = 50 << 20,
    partition_max_bytes: int = 50 << 20,
    max_wait_s: float = 3 * DEADLINE_S,
) -> FetchRequest:
    """A fetch of the partitions 0, 1, ... from these offsets. It waits longer than a test does."""
    partitions = tuple(
        FetchPartition(partition=number, fetch_offset=offset, partition_max_bytes=partition_max_bytes)
        for number, offset in enumerate(offsets)
    )
    return FetchRequest(
        max_wait=timedelta(seconds=max_wait_s),
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        topics=(FetchTopic(topic=topic, partitions=partitions),),
    )


def fetch_batches(servers: str, topic: str, offset: int = 0) -> list[Batch]:
    """The batches of partition 0 as they are stored, from `offset` to the end."""
    found: list[Batch] = []
    with RawKafka(servers) as connection:
        while True:
            answer = connection.ask(fetch_request(topic, offset, max_wait_s=0))
            [partition] = answer.responses[0].partitions
            assert partition.error_code == 0, partition.error_code
            batches = batches_in(bytes(partition.records or b""))
            if not batches:
                return found
            found += batches
            offset = batches[-1].last_offset + 1
