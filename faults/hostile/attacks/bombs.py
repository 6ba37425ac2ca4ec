"""Batches of a few bytes that become very many when they are decompressed."""

from __future__ import annotations

import gzip
import random
import struct
import time

import cramjam

from faults.hostile import wire
from faults.hostile.attacks.registry import attack
from faults.hostile.target import Target

MIB = 1 << 20
CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def _compressed(codec: str, data: bytes) -> bytes:
    if codec == "gzip":
        return gzip.compress(data, 9)
    if codec == "snappy":
        return bytes(cramjam.snappy.compress_raw(data))
    if codec == "lz4":
        return bytes(cramjam.lz4.compress(data))
    return bytes(cramjam.zstd.compress(data))


def _bombs(size: int) -> list[bytes]:
    """Of each codec, one record of zeros with a key."""
    plain = wire.record(0, bytes(size), b"key")
    return [wire.batch(_compressed(codec, plain), 1, codec=number) for codec, number in CODECS.items()]


@attack("decompression bombs in batches: kept, routed, compacted, recompressed, read by AMQP", memory_mib=320)
def bombs(target: Target, chance: random.Random, scale: float) -> str:
    names = ["hostile.plain", "hostile.routed", "hostile.compacted", "hostile.recompressed", "hostile.read"]
    kafka = wire.Kafka(target)
    kafka.ask(19, 2, wire.create_topics(["hostile.plain", "hostile.routed", "hostile.read"]))
    compacted = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.0", "segment.bytes": "1048576"}
    kafka.ask(19, 2, wire.create_topics(["hostile.compacted"], configs=compacted))
    kafka.ask(19, 2, wire.create_topics(["hostile.recompressed"], configs={"compression.type": "uncompressed"}))
    amqp = wire.Amqp(target)
    amqp.open()
    amqp.call(wire.queue_declare(1, "hostile.routed.queue", 4), 50, 11)
    amqp.call(wire.queue_bind(1, "hostile.routed.queue", "hostile.routed", "#"), 50, 21)
    amqp.call(wire.prefetch(1, 10), 60, 11)
    offset = wire.short("x-stream-offset") + b"S" + wire.long(b"first")
    amqp.call(wire.consume(1, "hostile.read", "", 0, offset), 60, 21)
    sent = wire_bytes = refused = 0
    # Just allowed, more than anybody decompresses at once, and far beyond all limits.
    for size in (8 * MIB, 30 * MIB, 60 * MIB, int(1024 * MIB * scale)):
        for data in _bombs(max(size, MIB)) if size <= 64 * MIB else _bombs_at_small_cost(size):
            for name in names:
                answer = kafka.ask(0, 7, wire.produce(name, data))
                (code,) = struct.unpack_from(">h", answer, 4 + 2 + len(name) + 8)
                refused += code != 0
                sent += 1
                wire_bytes += len(data)
        if scale < 0.5 and size >= 30 * MIB:
            break
    time.sleep(0.5 * scale)
    amqp.call(wire.queue_delete(1, "hostile.routed.queue"), 50, 41)
    kafka.ask(20, 1, wire.delete_topics(names))
    return f"{sent} batches of {wire_bytes >> 10:,} KiB in all, up to {int(1024 * scale)} MiB each, {refused} refused"


def _bombs_at_small_cost(size: int) -> list[bytes]:
    """The same of those codecs whose frames may be put one after the other: nothing so large is compressed here."""
    piece = bytes(8 * MIB)
    count = size // len(piece)
    return [
        wire.batch(gzip.compress(piece) * count, 1, codec=1),
        wire.batch(bytes(cramjam.zstd.compress(piece)) * count, 1, codec=4),
    ]
