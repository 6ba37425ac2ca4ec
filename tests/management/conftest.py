"""A broker with its management API, a client of both, and users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.pytest_plugin import BackgroundBroker
from tests.support import management
from tests.support.management import Call


@pytest.fixture(scope="module")
def pond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundBroker]:
    """A broker with data and the management API. One for all tests of a module: its first request imports FastAPI."""
    broker = BackgroundBroker(data_dir=tmp_path_factory.mktemp("pond"), admin="127.0.0.1:0")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def data(pond: BackgroundBroker) -> Path:
    folder: Path = pond._settings["data_dir"]
    return folder


@pytest.fixture
def channel(pond: BackgroundBroker) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        yield connection.channel()


@pytest.fixture
def call(pond: BackgroundBroker) -> Call:
    return partial(management.request, pond.address("admin"))


@pytest.fixture
def user(call: Call) -> Iterator[Callable[..., str]]:
    """Makes users, with permissions in "/" where they are given; gives back the login."""
    names: list[str] = []

    def make(name: str, tags: str, permission: tuple[str, str, str] | None = None) -> str:
        names.append(name)
        assert call("PUT", f"/api/users/{name}", {"password": "secret", "tags": tags}).status == 201
        if permission is not None:
            body = dict(zip(("configure", "write", "read"), permission, strict=True))
            assert call("PUT", f"/api/permissions/%2F/{name}", body).status == 201
        return f"{name}:secret"

    yield make
    for name in names:
        call("DELETE", f"/api/users/{name}")
