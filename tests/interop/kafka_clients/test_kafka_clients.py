"""Apache Kafka's own Java clients. What is tried out is written in their own language, beside this file.

- `Scenarios.java`: producers, consumers and classic groups as most services use them.
- `Groups.java`: consumer groups of both protocols, and of one that becomes the other while it works.
- `ShareGroups.java`: share groups, and their administration.
- `Transactions.java`: transactional producers, readers of what is committed, and what an operator does with them.
- `Administration.java`: the admin client.
- `Security.java`: logging in with PLAIN and SCRAM, with and without TLS; ACLs and quotas of who is logged in.
- `Restarts.java`: the broker is killed in the middle.
- `old/Scenarios.java`: transactions of clients from before Kafka 4, which speak an older protocol with the broker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.foreign_client import Player, actions_on, names_in
from tests.support.java import FETCH_DEADLINE_S, compiled, fetched, java

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*.java"))
SECURITY = HERE / "Security.java"
RESTARTS = HERE / "Restarts.java"
SHARED = [HERE / f"{name}.java" for name in ("Scenarios", "Groups", "ShareGroups", "Transactions", "Administration")]

pytestmark = pytest.mark.timeout(2 * FETCH_DEADLINE_S)


@pytest.fixture(scope="session")
def player(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    jars = fetched(HERE / "pom.xml", packages / "kafka_clients")
    player = Player(java(compiled(SOURCES, jars, tmp_path_factory.mktemp("classes")), "Scenarios"))
    yield player
    player.close()


@pytest.fixture(scope="session")
def old_player(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    old = HERE / "old"
    jars = fetched(old / "pom.xml", packages / "kafka_clients_old")
    player = Player(java(compiled([old / "Scenarios.java"], jars, tmp_path_factory.mktemp("classes")), "Scenarios"))
    yield player
    player.close()


@pytest.mark.parametrize("name", [name for source in SHARED for name in names_in(source)])
def test_scenario(name: str, player: Player, kafka: str) -> None:
    player.play(kafka, name)


@pytest.mark.parametrize("name", names_in(HERE / "old" / "Scenarios.java"))
def test_scenario_with_an_old_client(name: str, old_player: Player, kafka: str) -> None:
    old_player.play(kafka, name)


@pytest.mark.parametrize("name", names_in(RESTARTS))
def test_restart(name: str, player: Player, kafka_process: BrokerProcess) -> None:
    player.play(kafka_process.kafka_address, name, actions=actions_on(kafka_process))
