"""Clients that log in, and what they may then do. One broker serves the module, on which a login is demanded."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiokafka
import confluent_kafka
import kafka as kafka_python
import pytest
import trustme
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from tests.support.broker_process import KAFKA_ARGUMENTS, BrokerProcess
from tests.support.waiting import DEADLINE_S, eventually

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PASSWORD = "correct horse, battery=staple"


class SecuredBroker:
    """A broker with users, whose clients must log in."""

    def __init__(self, process: BrokerProcess, authority: Path) -> None:
        self.process = process
        self.authority = authority

    @property
    def plain(self) -> str:
        return self.process.kafka_address

    @property
    def tls(self) -> str:
        return self.process.listeners["kafka_tls"]

    def api(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://{self.process.listeners['admin']}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            text = response.read()
        return json.loads(text) if text else None

    def user(self, *, permissions: tuple[str, str, str] | None = (".*", ".*", ".*"), tags: str = "") -> str:
        name = f"user-{uuid.uuid4().hex[:10]}"
        self.api("PUT", f"users/{name}", {"password": PASSWORD, "tags": tags})
        if permissions is not None:
            configure, write, read = permissions
            body = {"configure": configure, "write": write, "read": read}
            self.api("PUT", f"permissions/{quote('/', safe='')}/{name}", body)
        return name

    def librdkafka(
        self, user: str, *, password: str = PASSWORD, mechanism: str = "PLAIN", tls: bool = False, **more: Any
    ) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "bootstrap.servers": self.tls if tls else self.plain,
            "security.protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
            "sasl.mechanisms": mechanism,
            "sasl.username": user,
            "sasl.password": password,
            "log_level": 0,
            "reconnect.backoff.max.ms": 500,
        }
        if tls:
            settings["ssl.ca.location"] = str(self.authority)
        return {**settings, **{key.replace("_", "."): value for key, value in more.items()}}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(folder / "chain.pem"), append=number > 0)
    process = BrokerProcess(
        folder / "broker",
        kafka=True,
        arguments=[
            *KAFKA_ARGUMENTS,
            *("--admin", "127.0.0.1:0"),
            *("--kafka-tls", "127.0.0.1:0"),
            *("--kafka-login", "required"),
            *("--tls-certificate", str(folder / "chain.pem")),
            *("--tls-key", str(folder / "key.pem")),
            *("--tls-ca", str(folder / "ca.pem")),
        ],
    )
    with process:
        yield SecuredBroker(process, folder / "ca.pem")


@pytest.fixture(scope="module")
def alice(secured: SecuredBroker) -> str:
    """A user who may do anything but administer."""
    return secured.user()


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid.uuid4().hex[:12]}"


def round_trip_confluent(secured: SecuredBroker, user: str, mechanism: str, tls: bool, topic: str) -> bytes | None:
    failures: list[object] = []
    producer = confluent_kafka.Producer(secured.librdkafka(user, mechanism=mechanism, tls=tls))
    producer.produce(topic, b"logged in", on_delivery=lambda error, _: failures.append(error))
    assert producer.flush(DEADLINE_S) == 0
    assert failures == [None]
    consumer = confluent_kafka.Consumer(
        secured.librdkafka(user, mechanism=mechanism, tls=tls, group_id=topic, auto_offset_reset="earliest")
    )
    consumer.subscribe([topic])
    try:
        message = consumer.poll(DEADLINE_S)
        assert message is not None
        assert message.error() is None, message.error()
        return message.value()
    finally:
        consumer.close()


def round_trip_aiokafka(secured: SecuredBroker, user: str, mechanism: str, tls: bool, topic: str) -> bytes | None:
    settings: dict[str, Any] = {
        "bootstrap_servers": secured.tls if tls else secured.plain,
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": PASSWORD,
        "ssl_context": ssl.create_default_context(cafile=str(secured.authority)) if tls else None,
    }

    async def run() -> bytes | None:
        async with aiokafka.AIOKafkaProducer(**settings) as producer:
            await producer.send_and_wait(topic, b"logged in")
        consumer = aiokafka.AIOKafkaConsumer(topic, group_id=topic, auto_offset_reset="earliest", **settings)
        async with consumer:
            record = await asyncio.wait_for(consumer.getone(), DEADLINE_S)
            return record.value

    return asyncio.run(run())


def round_trip_kafka_python(secured: SecuredBroker, user: str, mechanism: str, tls: bool, topic: str) -> bytes | None:
    settings: dict[str, Any] = {
        "bootstrap_servers": secured.tls if tls else secured.plain,
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": PASSWORD,
    }
    if tls:
        settings["ssl_cafile"] = str(secured.authority)
    producer = kafka_python.KafkaProducer(**settings)
    try:
        producer.send(topic, b"logged in").get(DEADLINE_S)
    finally:
        producer.close(DEADLINE_S)
    consumer = kafka_python.KafkaConsumer(
        topic, group_id=topic, auto_offset_reset="earliest", consumer_timeout_ms=int(DEADLINE_S * 1000), **settings
    )
    try:
        return next(iter(consumer)).value
    finally:
        consumer.close()


ROUND_TRIPS = {
    "confluent-kafka": round_trip_confluent,
    "aiokafka": round_trip_aiokafka,
    "kafka-python": round_trip_kafka_python,
}


@pytest.mark.parametrize("client", ROUND_TRIPS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_each_client_logs_in_by_each_mechanism(
    secured: SecuredBroker, alice: str, topic: str, client: str, mechanism: str, tls: bool
) -> None:
    round_trip: Callable[[SecuredBroker, str, str, bool, str], bytes | None] = ROUND_TRIPS[client]
    assert round_trip(secured, alice, mechanism, tls, topic) == b"logged in"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", ["alice", "nobody"])
def test_a_wrong_password_and_an_unknown_user_are_refused_alike(
    secured: SecuredBroker, alice: str, mechanism: str, user: str
) -> None:
    errors: list[KafkaError] = []
    settings = secured.librdkafka(alice if user == "alice" else "nobody", password="wrong", mechanism=mechanism)
    admin = AdminClient({**settings, "error_cb": errors.append})

    def refused() -> bool:
        admin.poll(0.05)
        return any(error.code() == KafkaError._AUTHENTICATION for error in errors)

    eventually(refused, "the client is told that it may not log in")
    text = next(error.str() for error in errors if error.code() == KafkaError._AUTHENTICATION)
    if mechanism == "PLAIN":
        assert "Authentication failed: Invalid username or password" in text
    else:
        assert f"invalid credentials with SASL mechanism {mechanism}" in text
    assert "wrong" not in secured.process.log.replace("wrong name or password", "")


def test_who_does_not_log_in_is_disconnected_where_that_is_demanded(secured: SecuredBroker) -> None:
    admin = AdminClient({"bootstrap.servers": secured.plain, "log_level": 0})
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=1)
    assert "from a client that has not logged in" in secured.process.log
