"""The targets of the campaign's fuzzing, over their seeds and some mutations of them, and what fuzzing has found."""

from __future__ import annotations

import base64
import logging
import random
from collections.abc import Iterator

import pytest

from faults.fuzz.conversations import changed, conversation
from faults.fuzz.mutate import mutations
from faults.fuzz.targets import TARGETS, Target
from faults.fuzz.targets.target import judge

SEED = 1
# A conversation has a broker of its own, which takes some milliseconds.
MUTATIONS = 200
MUTATIONS_OF_SLOW = 15
SEEDS_MAX = 40
SLOW = {"amqp-connection", "kafka-connection", "kafka-login", "definitions", "record-compaction", "segment-file"}
# What was found once: target, input in base64.
FOUND = [
    # A deletion of a time so long ago that compaction's delete horizon made its batch one that nobody could read.
    (
        "record-compaction",
        "AAAAAAAAAAAAAABBAAAAAAJ0oWhyAAAAAAAAAAAAAAAAAAUAAAAAAAAABf//////////////////AAAAAR4A/f////////9/AAJrAQA=",
    ),
    # A control batch whose records make no sense, which compaction read beyond its end.
    (
        "record-compaction",
        "AAAAAAAAAAAAAABiAAAAAAJjlG/IQK0eAACAOgAAAAZrZXkKdmFstGUCEG1pbGxwb25kCgEBZZYAAFrbviAAAAAA",
    ),
]

AMQP = b"AMQP\0\0\x09\x01" + b"\x01\0\0\0\0\0\x04\0\x0a\0\x0b\xce" + b"\x08\0\0\0\0\0\0\xce"
KAFKA = b"\0\0\0\x0e\0\x12\0\0\0\0\0\1\0\4test" * 2


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What decoders of damaged things say of them is not worth a line each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


# Python says so of an administrator's pattern that it may read otherwise one day.
@pytest.mark.filterwarnings("ignore:Possible (nested set|set):FutureWarning")
@pytest.mark.parametrize("one", TARGETS.values(), ids=lambda one: one.name)
def test_a_decoder_refuses_or_reads(one: Target) -> None:
    chance = random.Random(f"{SEED}/{one.name}")
    seeds = list(one.seeds())
    for data in chance.sample(seeds, min(len(seeds), SEEDS_MAX)):
        judge(one, data)
    made = mutations(seeds, chance)
    for _ in range(MUTATIONS_OF_SLOW if one.name in SLOW else MUTATIONS):
        data = next(made)
        try:
            judge(one, data)
        except Exception as error:
            error.add_note(f"python -m faults.fuzz.replay {one.name} {base64.b64encode(data).decode()}")
            raise


@pytest.mark.parametrize(("name", "encoded"), FOUND)
def test_what_was_found_once_is_read_or_refused(name: str, encoded: str) -> None:
    judge(TARGETS[name], base64.b64decode(encoded))


@pytest.mark.parametrize(
    ("protocol", "data", "count"), [("amqp", AMQP, 3), ("kafka", KAFKA, 2), ("http", b"a\r\nb\r\n", 2)]
)
def test_a_conversation_is_taken_apart_and_changed_by_its_seed(protocol: str, data: bytes, count: int) -> None:
    one = conversation(protocol, data)
    assert len(one.units) == count
    assert one.data == data
    made = [changed(one, [one], random.Random(number)) for number in range(50)]
    assert made == [changed(one, [one], random.Random(number)) for number in range(50)]
    assert len(set(made)) > 25
