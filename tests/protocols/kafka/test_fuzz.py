"""Hostile input at random. MILLPOND_FUZZ_SECONDS lets the seeded fuzzer run for longer; a failure names its seed.

MILLPOND_FUZZ_SECONDS=600 python -m pytest tests/protocols/kafka/test_fuzz.py -k seeded
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

from tests.protocols.kafka import fuzzing
from tests.protocols.kafka.harness import pond_of

SECONDS = float(os.environ.get("MILLPOND_FUZZ_SECONDS", "4"))
SEED = os.environ.get("MILLPOND_FUZZ_SEED")
QUIET = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Thousands of refused clients are not worth a line each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@QUIET
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_bytes_without_any_sense(chunks: list[bytes]) -> None:
    with pond_of() as pond:
        client = pond.client()
        for chunk in chunks:
            client.feed(chunk)
        client.answers()
        fuzzing.check_serves(pond)


@pytest.mark.parametrize("api", fuzzing.apis(), ids=lambda api: api.name)
def test_a_request_that_ends_too_early_closes_its_connection_only(api: fuzzing.Api) -> None:
    pond = fuzzing.prepared()
    for version in range(api.least, api.most + 1):
        for body in fuzzing.sample_bodies(api.key, version):
            for size in range(0, len(body), max(1, len(body) // 60)):
                assert fuzzing.is_closed_by(pond, api.key, version, body[:size]), f"{version}: {size} of {len(body)}"
    fuzzing.check_serves(pond)
    pond.close()


@pytest.mark.timeout(SECONDS + 120)
def test_seeded_attacks_until_the_time_is_up() -> None:
    if SEED is not None:
        fuzzing.run_seed(int(SEED))
        return
    give_up_at = time.monotonic() + SECONDS
    # The same seeds first in each run, then others.
    seed = 0
    while time.monotonic() < give_up_at:
        try:
            fuzzing.run_seed(seed)
        except BaseException as error:
            error.add_note(f"again with MILLPOND_FUZZ_SEED={seed}")
            raise
        seed = seed + 1 if seed < 500 else int.from_bytes(os.urandom(4), "big") + 501
