"""Hostile input at random. MILLPOND_FUZZ_SECONDS lets the seeded fuzzer run for longer; a failure names its seed.

MILLPOND_FUZZ_SECONDS=600 python -m pytest tests/protocols/amqp/hostile/test_fuzz.py -k seeded
MILLPOND_FUZZ_SEED=12345 ...    one seed again
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.protocols.amqp.harness import PROTOCOL_HEADER, Client, pond_of
from tests.protocols.amqp.hostile import fuzzing
from tests.protocols.amqp.hostile.test_chunks import conversation

SECONDS = float(os.environ.get("MILLPOND_FUZZ_SECONDS", "4"))
SEED = os.environ.get("MILLPOND_FUZZ_SEED")
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Thousands of refused clients are not worth a line each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@QUIET
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_bytes_without_any_sense_after_the_protocol_header(chunks: list[bytes]) -> None:
    with pond_of(message_bytes_max=fuzzing.MESSAGE_BYTES_MAX) as pond:
        client = Client(pond)
        client.feed(PROTOCOL_HEADER)
        for chunk in chunks:
            client.feed(chunk)
        client.frames()
        fuzzing.check_bounds(client)
        fuzzing.check_serves(pond, [client])


@QUIET
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_bytes_without_any_sense_on_an_open_connection(chunks: list[bytes]) -> None:
    with pond_of(message_bytes_max=fuzzing.MESSAGE_BYTES_MAX) as pond:
        client = pond.client(channels=2)
        for chunk in chunks:
            client.feed(chunk)
        client.frames()
        fuzzing.check_bounds(client)
        fuzzing.check_serves(pond, [client])


@QUIET
@given(st.integers(0, 1 << 32))
def test_damaged_conversations(seed: int) -> None:
    fuzzing.run_handshake_seed(seed, conversation())


@QUIET
@given(st.integers(0, 1 << 32))
def test_random_methods(seed: int) -> None:
    fuzzing.run_seed(seed)


@pytest.mark.timeout(SECONDS + 120)
def test_seeded_attacks_until_the_time_is_up() -> None:
    parts = conversation()
    if SEED is not None:
        fuzzing.run_seed(int(SEED))
        fuzzing.run_handshake_seed(int(SEED), parts)
        return
    give_up_at = time.monotonic() + SECONDS
    # The same seeds first in each run, then others.
    seed = 0
    while time.monotonic() < give_up_at:
        try:
            fuzzing.run_seed(seed)
            fuzzing.run_handshake_seed(seed, parts)
        except BaseException as error:
            error.add_note(f"again with MILLPOND_FUZZ_SEED={seed}")
            raise
        seed = seed + 1 if seed < 500 else int.from_bytes(os.urandom(4), "big") + 501
