"""Brokers without sockets for every test, one that keeps nothing and one with a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocols.kafka.harness import Client, DurablePond, Pond, pond_of


@pytest.fixture
def pond() -> Iterator[Pond]:
    with pond_of() as opened:
        yield opened


@pytest.fixture
def client(pond: Pond) -> Client:
    return pond.client()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[DurablePond]:
    opened = DurablePond(tmp_path)
    yield opened
    opened.close()
