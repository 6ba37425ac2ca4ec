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
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.conftest import EXTERNAL_KAFKA_VARIABLE
from tests.support.broker_process import KAFKA_ARGUMENTS, BrokerProcess
from tests.support.foreign_client import Player, actions_on, names_in
from tests.support.java import FETCH_DEADLINE_S, compiled, fetched, java

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*.java"))
SECURITY = HERE / "Security.java"
RESTARTS = HERE / "Restarts.java"
SHARED = [HERE / f"{name}.java" for name in ("Scenarios", "Groups", "ShareGroups", "Transactions")]
# What depends on how the connection is encrypted: the rest is the same over TLS.
OVER_TLS = [name for name in names_in(SECURITY) if any(word in name for word in ("records", "password", "SCRAM"))]
# Another broker with logins: HOST:PORT for SASL, HOST:PORT for SASL over TLS, the file of its authority, the
# administrator and the password, with spaces between them.
SECURED_VARIABLE = "MILLPOND_TEST_KAFKA_SECURED"

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


@dataclass(frozen=True)
class Secured:
    """A broker that demands a login, and an administrator who may do everything there."""

    address: str
    tls_address: str
    authority: Path
    user: str
    password: str

    def settings(self, *, tls: bool) -> list[str]:
        login = f'username="{self.user}" password="{self.password}"'
        settings = [
            f"security.protocol={'SASL_SSL' if tls else 'SASL_PLAINTEXT'}",
            "sasl.mechanism=PLAIN",
            f"sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {login};",
        ]
        return [*settings, "ssl.truststore.type=PEM", f"ssl.truststore.location={self.authority}"] if tls else settings


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if SECURED_VARIABLE in os.environ:
        address, tls_address, authority_file, user, password = os.environ[SECURED_VARIABLE].split()
        yield Secured(address, tls_address, Path(authority_file), user, password)
        return
    if EXTERNAL_KAFKA_VARIABLE in os.environ:
        pytest.skip(f"{EXTERNAL_KAFKA_VARIABLE} names a broker without logins, and {SECURED_VARIABLE} none with them")
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(folder / "chain.pem"), append=number > 0)
    arguments = [
        *KAFKA_ARGUMENTS,
        *("--kafka-tls", "127.0.0.1:0", "--kafka-login", "required"),
        *("--tls-certificate", str(folder / "chain.pem"), "--tls-key", str(folder / "key.pem")),
    ]
    with BrokerProcess(folder / "broker", kafka=True, arguments=arguments) as process:
        tls_address = process.listeners["kafka_tls"]
        yield Secured(process.kafka_address, tls_address, folder / "authority.pem", "guest", "guest")


# Who has not logged in does not administrate the cluster.
@pytest.mark.parametrize("name", [*names_in(HERE / "Administration.java"), *names_in(SECURITY)])
def test_scenario_with_a_login(name: str, player: Player, secured: Secured) -> None:
    player.play(secured.address, name, *secured.settings(tls=False))


@pytest.mark.parametrize("name", OVER_TLS)
def test_scenario_with_a_login_over_tls(name: str, player: Player, secured: Secured) -> None:
    player.play(secured.tls_address, name, *secured.settings(tls=True))
