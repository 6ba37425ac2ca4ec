"""A longer campaign of hostile requests of Kafka's protocol. A failure names its seed, which
`MILLPOND_FUZZ_SEED=... python -m pytest tests/protocols/kafka/test_fuzz.py -k seeded` runs again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import pytest

from tests.protocols.kafka import fuzzing

VARIABLE = "MILLPOND_TEST_BACKLOG"
SECONDS = 60.0


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Thousands of refused clients are not worth a line each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.skipif(VARIABLE not in os.environ, reason="a minute of attacks runs with `make faults`")
@pytest.mark.timeout(SECONDS + 120)
def test_a_minute_of_attacks() -> None:
    give_up_at = time.monotonic() + SECONDS
    while time.monotonic() < give_up_at:
        seed = int.from_bytes(os.urandom(4), "big")
        try:
            fuzzing.run_seed(seed)
        except BaseException as error:
            error.add_note(f"again with MILLPOND_FUZZ_SEED={seed}")
            raise
