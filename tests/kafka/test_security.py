"""Clients that log in, and what they may then do. One broker serves the module, on which a login is demanded."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiokafka
import confluent_kafka
import kafka as kafka_python
import pika
import pytest
import trustme
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import KAFKA_ARGUMENTS, BrokerProcess, run_operator_command
from tests.support.pika_client import channel_refused
from tests.support.waiting import DEADLINE_S, eventually

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PASSWORD = "correct horse, battery=staple"


class SecuredBroker:
    """A broker with users, whose clients must log in."""

    def __init__(self, process: BrokerProcess, authority: Path, issuer: trustme.CA) -> None:
        self.process = process
        self.authority = authority
        self.issuer = issuer

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
        yield SecuredBroker(process, folder / "ca.pem", authority)


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


# --- What they may do -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(secured: SecuredBroker) -> AdminClient:
    """The client of an administrator."""
    return AdminClient(secured.librdkafka(secured.user(tags="administrator")))


def allow(root: AdminClient, user: str, kind: ResourceType, name: str, operation: AclOperation, **more: Any) -> None:
    binding = AclBinding(
        kind, name, more.get("pattern", ResourcePatternType.LITERAL), f"User:{user}", "*", operation,
        more.get("permission", AclPermissionType.ALLOW),
    )  # fmt: skip
    for created in root.create_acls([binding]).values():
        created.result(DEADLINE_S)


def produced(secured: SecuredBroker, user: str, topic: str, **more: Any) -> int:
    """Produce one record; the error's code, 0 for none."""
    told: list[KafkaError | None] = []
    producer = confluent_kafka.Producer(secured.librdkafka(user, **more))
    producer.produce(topic, b"x", on_delivery=lambda error, _: told.append(error))
    assert producer.flush(DEADLINE_S) == 0
    return 0 if told[0] is None else int(told[0].code())


def consumer_error(secured: SecuredBroker, user: str, topic: str, group: str) -> int:
    """The first error that a consumer is told, or 0 for a record."""
    consumer = confluent_kafka.Consumer(
        secured.librdkafka(user, group_id=group, auto_offset_reset="earliest", enable_partition_eof="false")
    )
    consumer.subscribe([topic])
    try:
        message = consumer.poll(DEADLINE_S)
        assert message is not None
        error = message.error()
        return 0 if error is None else int(error.code())
    finally:
        consumer.close()


def test_who_has_no_permission_may_not_produce_consume_nor_create(
    secured: SecuredBroker, root: AdminClient, topic: str
) -> None:
    user = secured.user(permissions=None)
    root.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE_S)
    assert produced(secured, user, topic) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    allow(root, user, ResourceType.TOPIC, topic, AclOperation.WRITE)
    assert produced(secured, user, topic) == 0
    allow(root, user, ResourceType.TOPIC, topic, AclOperation.READ)
    assert consumer_error(secured, user, topic, "group") == KafkaError.GROUP_AUTHORIZATION_FAILED
    allow(root, user, ResourceType.GROUP, "gr", AclOperation.READ, pattern=ResourcePatternType.PREFIXED)
    assert consumer_error(secured, user, topic, "group") == 0
    admin = AdminClient(secured.librdkafka(user))
    with pytest.raises(KafkaException) as refused:
        admin.create_topics([NewTopic("another", 1, 1)])["another"].result(DEADLINE_S)
    assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    allow(root, user, ResourceType.TOPIC, topic, AclOperation.WRITE, permission=AclPermissionType.DENY)
    assert produced(secured, user, topic) == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_acls_are_described_and_deleted(secured: SecuredBroker, root: AdminClient, topic: str) -> None:
    user = secured.user(permissions=None)
    allow(root, user, ResourceType.TOPIC, topic, AclOperation.READ)
    allow(root, user, ResourceType.GROUP, topic, AclOperation.READ)
    of_user = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, f"User:{user}", None, AclOperation.ANY, AclPermissionType.ANY
    )
    found = root.describe_acls(of_user).result(DEADLINE_S)
    assert {(acl.restype, acl.name, acl.operation) for acl in found} == {
        (ResourceType.TOPIC, topic, AclOperation.READ),
        (ResourceType.GROUP, topic, AclOperation.READ),
    }
    (deletion,) = root.delete_acls([of_user]).values()
    assert len(deletion.result(DEADLINE_S)) == 2
    assert root.describe_acls(of_user).result(DEADLINE_S) == []


def test_users_are_made_by_their_scram_credentials(secured: SecuredBroker, root: AdminClient, topic: str) -> None:
    user = f"user-{uuid.uuid4().hex[:10]}"
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    root.alter_user_scram_credentials(
        [UserScramCredentialUpsertion(user, credential, PASSWORD.encode())]
    )[user].result(DEADLINE_S)  # fmt: skip
    described = root.describe_user_scram_credentials([user])[user].result(DEADLINE_S)
    assert [(one.mechanism, one.iterations) for one in described.scram_credential_infos] == [
        (ScramMechanism.SCRAM_SHA_256, 4096)
    ]
    allow(root, user, ResourceType.TOPIC, topic, AclOperation.ALL)
    assert produced(secured, user, topic, mechanism="SCRAM-SHA-256") == 0
    root.alter_user_scram_credentials([UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_256)])[user].result(
        DEADLINE_S
    )


@pytest.mark.parametrize("way", ["restart", "kill"])
def test_acls_and_scram_credentials_survive(secured: SecuredBroker, root: AdminClient, topic: str, way: str) -> None:
    user = f"user-{uuid.uuid4().hex[:10]}"
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 5000)
    root.alter_user_scram_credentials(
        [UserScramCredentialUpsertion(user, credential, PASSWORD.encode())]
    )[user].result(DEADLINE_S)  # fmt: skip
    prefix = topic[:-4]
    allow(root, user, ResourceType.TOPIC, prefix, AclOperation.ALL, pattern=ResourcePatternType.PREFIXED)
    allow(root, user, ResourceType.TOPIC, f"{topic}-not", AclOperation.WRITE, permission=AclPermissionType.DENY)
    of_user = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, f"User:{user}", None, AclOperation.ANY, AclPermissionType.ANY
    )

    def shown() -> set[str]:
        return {str(acl) for acl in root.describe_acls(of_user).result(DEADLINE_S)}

    before = shown()
    assert len(before) == 2
    if way == "kill":
        secured.process.kill()
        secured.process.start()
    else:
        secured.process.restart()
    assert shown() == before
    described = root.describe_user_scram_credentials([user])[user].result(DEADLINE_S)
    assert [(one.mechanism, one.iterations) for one in described.scram_credential_infos] == [
        (ScramMechanism.SCRAM_SHA_512, 5000)
    ]
    assert produced(secured, user, topic, mechanism="SCRAM-SHA-512") == 0
    denied = produced(secured, user, f"{topic}-not", mechanism="SCRAM-SHA-512")
    assert denied == KafkaError.TOPIC_AUTHORIZATION_FAILED


def certified(secured: SecuredBroker, folder: Path, name: str) -> dict[str, Any]:
    """The settings of a client that shows a certificate, and nothing else."""
    certificate = secured.issuer.issue_cert(f"{name}.example", common_name=name, organization_name="Pond")
    certificate.private_key_pem.write_to_path(str(folder / "client-key.pem"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(folder / "client.pem"), append=number > 0)
    return {
        "bootstrap.servers": secured.tls,
        "security.protocol": "SSL",
        "ssl.ca.location": str(secured.authority),
        "ssl.certificate.location": str(folder / "client.pem"),
        "ssl.key.location": str(folder / "client-key.pem"),
        "log_level": 0,
    }


def test_a_certificate_is_a_login(secured: SecuredBroker, root: AdminClient, topic: str, tmp_path: Path) -> None:
    name = f"worker-{uuid.uuid4().hex[:8]}"
    settings = certified(secured, tmp_path, name)
    # trustme puts an organizational unit there as well.
    pem = (tmp_path / "client.pem").read_bytes()
    user = x509.load_pem_x509_certificate(pem).subject.rfc4514_string()
    assert f"CN={name}" in user
    secured.api("PUT", f"users/{quote(user, safe='')}", {"password_hash": "", "tags": ""})
    for allowed in (False, True):
        if allowed:
            permission = {"configure": "", "write": f"^{topic}$", "read": ""}
            secured.api("PUT", f"permissions/{quote('/', safe='')}/{quote(user, safe='')}", permission)
        else:
            root.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE_S)
        told: list[KafkaError | None] = []
        producer = confluent_kafka.Producer(settings)
        producer.produce(topic, b"x", on_delivery=lambda error, _, told=told: told.append(error))
        assert producer.flush(DEADLINE_S) == 0
        codes = [None if error is None else error.code() for error in told]
        assert codes == [None if allowed else KafkaError.TOPIC_AUTHORIZATION_FAILED]


def test_a_certificate_of_nobody_s_is_no_login(secured: SecuredBroker, tmp_path: Path) -> None:
    admin = AdminClient(certified(secured, tmp_path, "nobody"))
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=1)


def test_a_deleted_user_is_disconnected_and_comes_back_no_more(secured: SecuredBroker, topic: str) -> None:
    user = secured.user()
    failures: list[KafkaError] = []
    settings = {**secured.librdkafka(user), "error_cb": failures.append}
    producer = confluent_kafka.Producer(settings)
    producer.produce(topic, b"x")
    assert producer.flush(DEADLINE_S) == 0
    secured.api("DELETE", f"users/{user}")

    def refused() -> bool:
        producer.poll(0.05)
        return any(error.code() == KafkaError._AUTHENTICATION for error in failures)

    eventually(refused, "the client cannot log in again")


# --- Quotas -----------------------------------------------------------------------------------------------------------


def test_a_producer_is_told_to_wait(secured: SecuredBroker, topic: str) -> None:
    user = secured.user()
    secured.api("PUT", "quotas", {"entity": {"user": user}, "quotas": {"producer_byte_rate": 10_000}})
    told: list[float] = []
    settings = {**secured.librdkafka(user), "throttle_cb": lambda event: told.append(event.throttle_time)}
    producer = confluent_kafka.Producer(settings)
    producer.produce(topic, b"x" * 105_000)
    assert producer.flush(DEADLINE_S) == 0

    def throttled() -> bool:
        producer.poll(0.05)
        return any(told)

    eventually(throttled, "the client is told to wait")
    secured.api("PUT", "quotas", {"entity": {"user": user}, "quotas": {"producer_byte_rate": None}})
    assert not [one for one in secured.api("GET", "quotas") if one["entity"].get("user") == user]


def test_quotas_by_the_command_line(secured: SecuredBroker, root: AdminClient) -> None:
    def run(*arguments: str) -> list[str]:
        return run_operator_command(secured.process.data, "quota", *arguments).splitlines()

    user = f"user-{uuid.uuid4().hex[:10]}"
    run("set", "--user", user, "--producer-byte-rate", "1000000", "--consumer-byte-rate", "2000000")
    run("set", "--user", user, "--client-id", "reports", "--consumer-byte-rate", "500")
    run("set", "--default-client", "--producer-byte-rate", "9000000")
    lines = {tuple(line.split("\t")[:2]): [float(rate or 0) for rate in line.split("\t")[2:]] for line in run("list")}
    assert lines[(user, "")] == [1e6, 2e6]
    assert lines[(user, "reports")] == [0, 500]
    assert lines[("", "<default>")] == [9e6, 0]
    secured.process.restart()
    told = [one for one in secured.api("GET", "quotas") if one["entity"].get("user") == user]
    assert len(told) == 2
    run("clear", "--user", user)
    run("clear", "--default-client")
    assert [line.split("\t")[:2] for line in run("list")] == [[user, "reports"]]
    run("clear", "--user", user, "--client-id", "reports")
    assert run("list") == []


def test_a_consumer_is_told_to_wait_and_gets_everything(secured: SecuredBroker, topic: str) -> None:
    user = secured.user()
    producer = confluent_kafka.Producer(secured.librdkafka(user))
    for _ in range(3):
        producer.produce(topic, b"x" * 4_000)
        assert producer.flush(DEADLINE_S) == 0
    secured.api("PUT", "quotas", {"entity": {"user": user}, "quotas": {"consumer_byte_rate": 1_000}})
    told: list[float] = []
    consumer = confluent_kafka.Consumer(
        {
            **secured.librdkafka(user, group_id=topic, auto_offset_reset="earliest"),
            "throttle_cb": lambda event: told.append(event.throttle_time),
            "fetch.message.max.bytes": 4_100,
        }
    )
    consumer.subscribe([topic])
    got: list[object] = []

    def all_are_there() -> bool:
        message = consumer.poll(0.2)
        if message is not None:
            assert message.error() is None
            got.append(message.value())
        return len(got) == 3 and any(told)

    try:
        eventually(all_are_there, "all records, and to be told to wait", deadline_s=40)
    finally:
        consumer.close()


# --- Topics by way of AMQP --------------------------------------------------------------------------------------------


@contextmanager
def amqp_channel(secured: SecuredBroker, user: str) -> Iterator[BlockingChannel]:
    host, _, port = secured.process.listeners["amqp"].rpartition(":")
    credentials = pika.PlainCredentials(user, PASSWORD)
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port), "/", credentials))
    try:
        yield connection.channel()
    finally:
        connection.close()


def deny(root: AdminClient, user: str, topic: str, operation: AclOperation) -> None:
    allow(root, user, ResourceType.TOPIC, topic, operation, permission=AclPermissionType.DENY)


@pytest.mark.parametrize("is_denied", [False, True], ids=["no permission", "denied by an ACL"])
def test_who_may_not_read_a_topic_makes_no_queue_over_it(
    secured: SecuredBroker, root: AdminClient, topic: str, is_denied: bool
) -> None:
    user = secured.user(permissions=(".*",) * 3 if is_denied else ("^mine", "^mine", "^mine"))
    root.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE_S)
    if is_denied:
        deny(root, user, topic, AclOperation.READ)
    arguments = {"x-queue-type": "share", "x-source-topic": topic, "x-stream-offset": "first"}
    with amqp_channel(secured, user) as channel, channel_refused(403):
        channel.queue_declare(f"mine-{topic}", durable=True, arguments=arguments)


def test_who_may_not_write_to_a_topic_binds_nothing_to_a_queue_over_it(
    secured: SecuredBroker, root: AdminClient, topic: str
) -> None:
    user = secured.user(permissions=("^mine", "^mine", f"^(mine|{topic})"))
    root.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE_S)
    name = f"mine-{topic}"
    with amqp_channel(secured, user) as channel:
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "share", "x-source-topic": topic})
        channel.exchange_declare(f"mine-x-{topic}")
        with channel_refused(403):
            channel.queue_bind(name, f"mine-x-{topic}", "k")


def test_what_an_acl_denies_of_a_topic_is_denied_by_whatever_name(
    secured: SecuredBroker, root: AdminClient, topic: str
) -> None:
    user = secured.user()
    root.create_topics([NewTopic(topic, 2, 1)])[topic].result(DEADLINE_S)
    with amqp_channel(secured, user) as channel:
        channel.queue_declare(f"queue-{topic}", exclusive=True)
        channel.exchange_declare(f"exchange-{topic}", auto_delete=True)
        channel.queue_bind(f"queue-{topic}", topic, "k")
        deny(root, user, topic, AclOperation.READ)
        deny(root, user, topic, AclOperation.WRITE)
        for refused in (
            lambda one: one.queue_bind(f"queue-{topic}", topic, "other"),
            lambda one: one.exchange_bind(f"exchange-{topic}", topic, "other"),
            lambda one: one.exchange_bind(topic, f"exchange-{topic}", "other"),
            lambda one: one.queue_bind(topic, f"exchange-{topic}", "other"),
            lambda one: one.queue_bind(f"{topic}-0", f"exchange-{topic}", "other"),
            lambda one: (one.confirm_delivery(), one.basic_publish(topic, "k", b"x")),
            lambda one: (one.basic_qos(prefetch_count=1), one.basic_consume(f"{topic}-0", print)),
            lambda one: one.basic_get(f"{topic}-0"),
        ):
            with channel_refused(403):
                refused(channel.connection.channel())
