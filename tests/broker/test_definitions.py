"""Whatever a document of definitions holds: it is taken over as a whole, or refused and nothing is changed."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.base.errors import PeerError
from millpond.broker.definitions.exports import exported
from millpond.broker.definitions.imports import Import
from millpond.embedded import Broker

FILES = Path(__file__).parents[1] / "project" / "definitions"
DOCUMENTS = [json.loads(file.read_text()) for file in sorted(FILES.glob("*.json"))]
DOCUMENTS.append(
    {
        "users": [
            {
                "name": "kafka",
                "scram_credentials": [
                    {
                        "mechanism": "SCRAM-SHA-256",
                        "iterations": 4096,
                        "salt": "aa" * 16,
                        "stored_key": "bb" * 32,
                        "server_key": "cc" * 32,
                    }
                ],
            }
        ],
        "vhosts": [{"name": "/"}],
        "acls": [
            {"user": "kafka", "vhost": "/", "resource_type": "topic", "pattern": "a", "operation": "read", "host": "*"}
        ],
        "quotas": [{"entity": {"user": "kafka", "client-id": None}, "quotas": {"producer_byte_rate": 1024.0}}],
    }
)
ROUNDS = 400
LONG = "x" * 300

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1 << 70, 1.5, math.nan, math.inf, "", LONG, "\ud800", "(", "a.*", "é" * 200, "\0",
    [], {}, [1], ["a"], {"a": 1}, {"": {}}, "amq.x", "/", "shop", "queue", "exchange", "topic", "x-consistent-hash",
    "quorum", "stream", {"x-max-length": "a"}, {"x-queue-type": 5}, {"max-queues": 1}, {"ha-mode": "all"},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(document: Any, chance: random.Random) -> Any:
    document = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(list(places(document)))
        place = document
        for key in way:
            place = place[key]
        if chance.random() < 0.2:
            del place[last]
        else:
            place[last] = copy.deepcopy(chance.choice(HOSTILE))
    return document


async def test_a_damaged_document_is_taken_whole_or_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    taken = refused = 0
    async with Broker() as broker:
        assert broker._node is not None
        core = broker._node.broker
        for _ in range(ROUNDS):
            document = mutated(chance.choice(DOCUMENTS), chance)
            before = exported(core)
            try:
                Import(core, document, chance.choice([None, None, "/"])).run()
            except PeerError:
                refused += 1
                assert exported(core) == before
            else:
                taken += 1
                # What was taken can be kept, told, and taken again.
                core.catalog.commit()
                core.catalog.load()
                after = exported(core)
                Import(core, json.loads(json.dumps(after, allow_nan=False))).run()
                assert exported(core) == after
    assert taken > ROUNDS // 10
    assert refused > ROUNDS // 10


def document_of(queue: dict[str, object], default_queue_type: str = "stream") -> dict[str, object]:
    return {
        "vhosts": [{"name": "shop", "default_queue_type": default_queue_type}],
        "queues": [{"name": "q", "vhost": "shop", **queue}],
    }


async def test_a_queue_that_cannot_have_its_virtual_hosts_default_type_is_refused_before_anything_is_changed() -> None:
    async with Broker() as broker:
        assert broker._node is not None
        core = broker._node.broker
        before = exported(core)
        with pytest.raises(PeerError, match="x-max-priority"):
            Import(core, document_of({"arguments": {"x-max-priority": 5}})).run()
        assert exported(core) == before


@pytest.mark.parametrize(
    ("queue", "kind"),
    [({}, "quorum"), ({"type": "classic"}, "classic"), ({"durable": False}, None), ({"type": "stream"}, "stream")],
)
async def test_a_queue_has_the_type_that_is_told_or_its_virtual_hosts_default(
    queue: dict[str, object], kind: str | None
) -> None:
    async with Broker() as broker:
        assert broker._node is not None
        core = broker._node.broker
        Import(core, document_of(queue, "quorum")).run()
        [told] = [one for one in exported(core)["queues"] if one["vhost"] == "shop"]
        assert told["arguments"].get("x-queue-type") == kind
