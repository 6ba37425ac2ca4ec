"""A broker without a socket for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.protocols.amqp.harness import Client, Pond, pond_of


@pytest.fixture
def pond() -> Iterator[Pond]:
    with pond_of() as opened:
        yield opened


@pytest.fixture
def client(pond: Pond) -> Client:
    """A connection with channels 1 and 2 open."""
    return pond.client(channels=2)
