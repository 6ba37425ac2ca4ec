"""What definitions take along of who may do what, so that a broker that is rebuilt from them lets in nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from millpond.base.errors import PreconditionFailed
from millpond.broker import scram_credentials
from millpond.broker.definitions.exports import exported
from millpond.broker.definitions.imports import Import
from tests.protocols.kafka.harness import Pond, pond_of
from tests.security.world import ANN, HOME, PASSWORD, SASL_AUTHENTICATE, SASL_HANDSHAKE, TOPIC, World, world_of


@pytest.fixture
def document() -> Iterator[dict[str, Any]]:
    with world_of() as world:
        world.grant("read", "topic", TOPIC)
        world.grant("write", "topic", TOPIC, effect="deny")
        world.grant("alter", "cluster", "")
        world.access.set_scram_credentials(ANN, scram_credentials.of_password(PASSWORD.encode()))
        world.broker.quotas.alter({"user": None, "client-id": "c"}, {"consumer_byte_rate": 5.0})
        yield exported(world.broker)


def test_acls_scram_credentials_and_quotas_come_along(document: dict[str, Any]) -> None:
    with pond_of(login_required=True) as pond:
        Import(pond.broker, document).run()
        again = exported(pond.broker)
        for category in ("users", "permissions", "acls", "quotas", "queues"):
            assert again[category] == document[category], category
        assert len(again["acls"]) == 4
        check_logs_in_by_scram(pond)
        # A second time nothing is there twice.
        Import(pond.broker, document).run()
        assert exported(pond.broker)["acls"] == document["acls"]


def check_logs_in_by_scram(pond: Pond) -> None:
    from scramp import ScramClient

    scram, client = ScramClient(["SCRAM-SHA-512"], ANN, PASSWORD), pond.client()
    client.call(SASL_HANDSHAKE, 1, mechanism="SCRAM-SHA-512")
    first = client.call(SASL_AUTHENTICATE, 2, auth_bytes=scram.get_client_first().encode())
    scram.set_server_first(first.auth_bytes.decode())
    last = client.call(SASL_AUTHENTICATE, 2, auth_bytes=scram.get_client_final().encode())
    assert last.error_code.value == 0


def test_each_queue_says_its_type_as_in_rabbitmq(document: dict[str, Any]) -> None:
    assert {queue["name"]: queue["type"] for queue in document["queues"]} == {
        "work": "classic", "empty": "classic", "dead": "classic", "events": "stream",
    }  # fmt: skip


ACL = {"user": ANN, "vhost": HOME, "resource_type": "topic", "pattern": TOPIC, "operation": "read"}
SCRAM = {"mechanism": "SCRAM-SHA-256", "iterations": 4096, "salt": "aa" * 16, "stored_key": "bb" * 32,
         "server_key": "cc" * 32}  # fmt: skip


@pytest.mark.parametrize(
    ("category", "one"),
    [
        ("acls", {**ACL, "operation": "everything"}),
        ("acls", {**ACL, "operation": "configure"}),
        ("acls", {**ACL, "effect": "maybe"}),
        ("acls", {**ACL, "resource_type": "queue"}),
        ("acls", {**ACL, "pattern_type": "regex"}),
        ("acls", {**ACL, "pattern": ""}),
        ("acls", {**ACL, "user": "x" * 300}),
        ("acls", {**ACL, "vhost": "absent"}),
        ("acls", {**ACL, "host": 5}),
        ("quotas", {"entity": {}, "quotas": {"consumer_byte_rate": 1}}),
        ("quotas", {"entity": {"user": 5}, "quotas": {"consumer_byte_rate": 1}}),
        ("quotas", {"entity": {"user": "a"}, "quotas": {"consumer_byte_rate": "1"}}),
        ("quotas", {"entity": {"user": "a"}, "quotas": {"unheard": 1}}),
        ("quotas", {"entity": {"user": "a"}, "quotas": {}}),
        ("users", {"name": "u", "scram_credentials": "secret"}),
        *(("users", {"name": "u", "scram_credentials": [{**SCRAM, **wrong}]}) for wrong in (
            {"mechanism": "PLAIN"}, {"mechanism": []}, {"iterations": 1}, {"iterations": "4096"}, {"iterations": True},
            {"salt": ""}, {"salt": "zz"}, {"stored_key": "bb"}, {"server_key": None}, {"server_key": "secret"})),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_changes_nothing(category: str, one: dict[str, Any]) -> None:
    with world_of() as world:
        before = exported(world.broker)
        with pytest.raises(PreconditionFailed) as caught:
            Import(world.broker, {"users": [{"name": "first"}], category: [one]} if category != "users" else
                   {"users": [{"name": "first"}, one]})  # fmt: skip
        assert "secret" not in str(caught.value)
        assert exported(world.broker) == before


def test_a_new_password_takes_the_place_of_credentials(document: dict[str, Any]) -> None:
    with world_of() as world:
        user = {"name": ANN, "password_hash": "", "scram_credentials": [SCRAM]}
        Import(world.broker, {"users": [user]}).run()
        assert world.access.scram_credential(ANN, "SCRAM-SHA-256").stored_key == bytes.fromhex("bb" * 32)
        world.access.set_password_hash(ANN, world.access.hash_password(b"new"))
        assert ANN not in world.access.list_scram_credentials()


def test_the_document_of_a_virtual_host_says_nothing_of_users(standing_world: World) -> None:
    answer = standing_world.look("/api/definitions/%2F")
    assert not {"users", "acls", "quotas", "permissions"} & set(answer)


@pytest.fixture
def standing_world() -> Iterator[World]:
    with world_of() as made:
        yield made
