"""ACLs and logins without a socket: what they say, who may change them, and input that no client sends."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from millpond.base.limits import KAFKA_LOGIN_REQUEST_BYTES_MAX, LOGIN_DELAY_MS_MAX, SASL_TOKEN_BYTES_MAX
from millpond.broker import scram_credentials
from millpond.broker.access import ADMINISTRATOR, DEFAULT_HASH
from millpond.catalog.rows import PermissionRow
from millpond.protocols.kafka import errors
from millpond.protocols.kafka.apis.acls import OPERATIONS, shown_permission
from tests.protocols.kafka.harness import API_VERSIONS, INIT_PRODUCER_ID, METADATA, Client, Pond, batch_of

SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
DESCRIBE_ACLS, CREATE_ACLS, DELETE_ACLS = 29, 30, 31
DESCRIBE_SCRAM, ALTER_SCRAM = 50, 51
CREATE_TOPICS, DELETE_TOPICS, CREATE_PARTITIONS, LIST_OFFSETS = 19, 20, 37, 2
HEARTBEAT, JOIN_GROUP, DESCRIBE_GROUPS, DELETE_GROUPS, FIND_COORDINATOR, LIST_GROUPS = 12, 11, 15, 42, 10, 16
DESCRIBE_CLUSTER, DESCRIBE_TOPIC_PARTITIONS = 60, 75
TOPIC, GROUP, CLUSTER = 2, 3, 4
# What stands for operations that were not asked for.
NOT_TOLD = -(1 << 31)
ALLOW, DENY = 3, 2
CODES = {name: code for code, name in OPERATIONS.items()}
PASSWORD = b"guest"


@pytest.fixture
def pond() -> Iterator[Pond]:
    made = Pond()
    yield made
    made.close()


@pytest.fixture
def strict() -> Iterator[Pond]:
    """A broker whose clients must log in."""
    made = Pond(login_required=True)
    yield made
    made.close()


def log_in(client: Client, name: str = "guest", password: bytes = PASSWORD) -> Any:
    client.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
    return client.call(SASL_AUTHENTICATE, 2, auth_bytes=b"\0" + name.encode() + b"\0" + password)


def user(pond: Pond, name: str, *, tags: tuple[str, ...] = (), patterns: tuple[str, str, str] | None = None) -> Client:
    """A client of a user who has logged in, with the default password."""
    pond.broker.access.put_user(name, DEFAULT_HASH, tags)
    if patterns is not None:
        pond.broker.access.set_permission(name, "/", *patterns)
    client = pond.client()
    assert code(log_in(client, name)) == 0
    return client


def code(response: Any) -> int:
    return int(response.error_code.value)


def acl(
    principal: str, operation: str, name: str = "*", *, resource: int = TOPIC, pattern: int = 3, effect: int = ALLOW,
    host: str = "*",
) -> dict[str, object]:  # fmt: skip
    return {
        "resource_type": resource, "resource_name": name, "resource_pattern_type": pattern, "principal": principal,
        "host": host, "operation": CODES[operation], "permission_type": effect,
    }  # fmt: skip


def allow(client: Client, *acls: dict[str, object]) -> list[int]:
    return [code(result) for result in client.call(CREATE_ACLS, 3, creations=list(acls)).results]


def wanted(**given: object) -> dict[str, object]:
    return {
        "resource_type_filter": 1, "resource_name_filter": None, "pattern_type_filter": 1, "principal_filter": None,
        "host_filter": None, "operation": 1, "permission_type": 1, **given,
    }  # fmt: skip


def described(client: Client, **given: object) -> set[tuple[str, str, str]]:
    response = client.call(DESCRIBE_ACLS, 3, **wanted(**given))
    assert code(response) == 0, response
    return {
        (one.principal, OPERATIONS[one.operation], found.resource_name)
        for found in response.resources
        for one in found.acls
    }


def produce_code(client: Client, topic: str) -> int:
    return code(client.produce(topic, batch_of(b"x")))


# --- Logging in -------------------------------------------------------------------------------------------------------


def test_nothing_but_a_login_is_listened_to_where_it_is_demanded(strict: Pond) -> None:
    client = strict.client()
    assert code(client.call(API_VERSIONS, 3, client_software_name="x", client_software_version="1")) == 0
    assert client.connection.user == ""
    assert code(log_in(client)) == 0
    assert client.connection.user == "guest"
    assert code(client.call(METADATA, 12, topics=None).topics[0]) == 0 if strict.topics.by_name else True
    other = strict.client()
    other.send(METADATA, 12, topics=None)
    assert other.transport.is_closed


def test_who_does_not_log_in_in_time_is_disconnected(strict: Pond) -> None:
    client = strict.client()
    client.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
    strict.advance(10_001)
    assert client.transport.is_closed


def test_who_has_logged_in_stays(strict: Pond) -> None:
    client = strict.client()
    log_in(client)
    strict.advance(20_000)
    assert client.is_alive()


@pytest.mark.parametrize("password", [b"wrong", b""])
def test_a_wrong_password_is_told_and_the_connection_closed(pond: Pond, password: bytes) -> None:
    client = pond.client()
    client.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
    client.send(SASL_AUTHENTICATE, 2, auth_bytes=b"\0guest\0" + password)
    assert client.take_all() == []
    pond.advance(100)
    assert code(client.take()) == errors.SASL_AUTHENTICATION_FAILED
    assert client.transport.is_closed


def test_old_clients_send_their_steps_without_headers(strict: Pond) -> None:
    client = strict.client()
    client.call(SASL_HANDSHAKE, 0, mechanism="PLAIN")
    token = b"\0guest\0guest"
    client.feed(struct.pack(">i", len(token)) + token)
    strict.rest()
    assert bytes(client.transport.sent[-4:]) == bytes(4)
    assert client.connection.user == "guest"


def test_a_bare_step_that_is_wrong_is_answered_by_the_end_of_the_connection(strict: Pond) -> None:
    client = strict.client()
    client.call(SASL_HANDSHAKE, 0, mechanism="PLAIN")
    token = b"\0guest\0wrong"
    client.feed(struct.pack(">i", len(token)) + token)
    assert client.answers() == []
    strict.advance(100)
    assert client.transport.is_closed
    assert client.answers() == []


def test_a_mechanism_that_is_not_spoken_is_refused_with_those_that_are(pond: Pond) -> None:
    client = pond.client()
    response = client.call(SASL_HANDSHAKE, 1, mechanism="GSSAPI")
    assert code(response) == errors.UNSUPPORTED_SASL_MECHANISM
    assert response.mechanisms == ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    assert client.transport.is_closed


def test_a_step_before_the_handshake_and_a_second_handshake_are_refused(pond: Pond) -> None:
    first, second, third = pond.client(), pond.client(), pond.client()
    assert code(first.call(SASL_AUTHENTICATE, 2, auth_bytes=b"\0guest\0guest")) == errors.ILLEGAL_SASL_STATE
    assert first.transport.is_closed
    second.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
    assert code(second.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")) == errors.ILLEGAL_SASL_STATE
    assert second.transport.is_closed
    log_in(third)
    assert code(third.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")) == errors.ILLEGAL_SASL_STATE
    assert third.is_alive()


def test_whoever_has_begun_to_log_in_does_nothing_else(pond: Pond) -> None:
    client = pond.client()
    client.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
    client.send(METADATA, 12, topics=None)
    assert client.transport.is_closed


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        b"guest",
        b"root\0guest\0guest",
        b"\xff\0\xff\0\xff",
        b"n,,",
        b"n,,n=guest",
        b"p=tls-unique,,n=guest,r=x",
        b"n,,n==,r=x",
        b"c=biws,r=x,p=eA==",
        b"n" * SASL_TOKEN_BYTES_MAX,
        b"n" * (SASL_TOKEN_BYTES_MAX + 1),
    ],
)
def test_tokens_that_make_no_sense_are_refused(pond: Pond, mechanism: str, token: bytes) -> None:
    client = pond.client()
    client.call(SASL_HANDSHAKE, 1, mechanism=mechanism)
    client.send(SASL_AUTHENTICATE, 2, auth_bytes=token)
    pond.rest()
    pond.advance(100)
    assert code(client.take()) == errors.SASL_AUTHENTICATION_FAILED
    assert client.transport.is_closed


def test_a_request_larger_than_a_login_is_not_waited_for(strict: Pond) -> None:
    client = strict.client()
    client.feed(struct.pack(">ihhih", KAFKA_LOGIN_REQUEST_BYTES_MAX + 1, SASL_AUTHENTICATE, 2, 1, -1))
    assert client.transport.is_closed


def test_a_hundred_failed_logins_leave_nothing_behind(strict: Pond) -> None:
    clients = [strict.client() for _ in range(100)]
    for client in clients:
        client.call(SASL_HANDSHAKE, 1, mechanism="SCRAM-SHA-256")
        client.send(SASL_AUTHENTICATE, 2, auth_bytes=b"n,,n=nobody,r=abc")
    strict.rest()
    for client in clients:
        assert client.take().auth_bytes.startswith(b"r=abc")
        client.send(SASL_AUTHENTICATE, 2, auth_bytes=b"c=biws,r=abc,p=eA==")
    strict.rest()
    # Most of them are refused unseen, and all of them later than one would be.
    strict.advance(100)
    assert not all(client.transport.is_closed for client in clients)
    strict.advance(2 * LOGIN_DELAY_MS_MAX)
    assert all(code(client.take()) == errors.SASL_AUTHENTICATION_FAILED for client in clients)
    assert strict.broker.connections == {}
    assert code(log_in(strict.client())) == 0


def test_users_who_are_not_there_have_a_salt_that_stays(pond: Pond) -> None:
    def first_answer(name: str) -> bytes:
        client = pond.client()
        client.call(SASL_HANDSHAKE, 1, mechanism="SCRAM-SHA-256")
        answer = client.call(SASL_AUTHENTICATE, 2, auth_bytes=f"n,,n={name},r=abc".encode()).auth_bytes
        return bytes(answer.split(b",", 1)[1])

    assert first_answer("nobody") == first_answer("nobody") != first_answer("somebody")
    assert first_answer("guest").rpartition(b",")[2] == first_answer("nobody").rpartition(b",")[2]


def test_a_user_who_is_deleted_is_disconnected(strict: Pond) -> None:
    client = user(strict, "alice")
    strict.broker.delete_user("alice")
    assert client.transport.is_closed


# --- ACLs -------------------------------------------------------------------------------------------------------------


def test_only_an_administrator_who_has_logged_in_may_see_and_change_acls(pond: Pond) -> None:
    anonymous, plain = pond.client(), user(pond, "alice", patterns=(".*", ".*", ".*"))
    for client in (anonymous, plain):
        assert allow(client, acl("User:alice", "read")) == [errors.CLUSTER_AUTHORIZATION_FAILED]
        assert code(client.call(DESCRIBE_ACLS, 3, **wanted())) == errors.CLUSTER_AUTHORIZATION_FAILED
        (result,) = client.call(DELETE_ACLS, 3, filters=[wanted()]).filter_results
        assert code(result) == errors.CLUSTER_AUTHORIZATION_FAILED
        assert code(client.call(DESCRIBE_SCRAM, 0, users=None)) == errors.CLUSTER_AUTHORIZATION_FAILED
    administrator = user(pond, "root", tags=(ADMINISTRATOR,))
    assert allow(administrator, acl("User:alice", "alter", "kafka-cluster", resource=CLUSTER)) == [0]
    assert allow(plain, acl("User:bob", "read")) == [0]


def test_what_is_allowed_is_allowed_and_what_is_denied_is_denied(pond: Pond) -> None:
    pond.topic("orders")
    administrator, alice = user(pond, "root", tags=(ADMINISTRATOR,)), user(pond, "alice")
    assert produce_code(alice, "orders") == errors.TOPIC_AUTHORIZATION_FAILED
    assert allow(administrator, acl("User:alice", "write", "ord", pattern=4)) == [0]
    assert produce_code(alice, "orders") == 0
    assert code(alice.fetch("orders", 0)) == errors.TOPIC_AUTHORIZATION_FAILED
    # To write implies to describe.
    assert [topic.name for topic in alice.call(METADATA, 12, topics=None).topics] == ["orders"]
    assert allow(administrator, acl("User:*", "all", "orders", effect=DENY)) == [0]
    assert produce_code(alice, "orders") == errors.TOPIC_AUTHORIZATION_FAILED
    assert alice.call(METADATA, 12, topics=None).topics == ()


def test_a_denial_counts_against_rabbitmqs_patterns_too(pond: Pond) -> None:
    pond.topic("orders")
    administrator = user(pond, "root", tags=(ADMINISTRATOR,))
    alice = user(pond, "alice", patterns=(".*", ".*", ".*"))
    assert produce_code(alice, "orders") == 0
    allow(administrator, acl("User:alice", "write", "orders", effect=DENY))
    assert produce_code(alice, "orders") == errors.TOPIC_AUTHORIZATION_FAILED
    assert code(alice.fetch("orders", 0)) == 0


def bits(*operations: str) -> int:
    return sum(1 << CODES[operation] for operation in operations)


def test_clients_are_told_what_they_may_do_when_they_ask(pond: Pond) -> None:
    pond.topic("orders")
    administrator = user(pond, "root", tags=(ADMINISTRATOR,), patterns=(".*", ".*", ".*"))
    of_topics = ("read", "write", "create", "delete", "alter", "describe", "describe_configs", "alter_configs")
    of_groups = ("read", "delete", "describe", "describe_configs", "alter_configs")
    # The cluster's own actions are for brokers.
    of_cluster = ("create", "alter", "describe", "describe_configs", "alter_configs", "idempotent_write")
    everything = (bits(*of_topics), bits(*of_groups), bits(*of_cluster))
    assert told_operations(administrator) == everything
    alice = user(pond, "alice", patterns=("", "", "^orders$"))
    allow(administrator, acl("User:alice", "describe", "kafka-cluster", resource=CLUSTER))
    allow(administrator, acl("User:alice", "write", "orders"), acl("User:alice", "delete", "orders", resource=GROUP))
    allow(administrator, acl("User:alice", "read", "orders", effect=DENY))
    assert told_operations(alice) == (
        bits("write", "describe", "describe_configs"),
        bits("read", "delete", "describe", "describe_configs"),
        # Who may write to anything may do so idempotently.
        bits("describe", "idempotent_write"),
    )
    bob = user(pond, "bob", patterns=("", "", "^orders$"))
    cluster = bob.call(DESCRIBE_CLUSTER, 1, include_cluster_authorized_operations=True, endpoint_type=1)
    assert cluster.cluster_authorized_operations == 0, "bob may not even know of the cluster"


def told_operations(client: Client) -> tuple[int, int, int]:
    """What a client is told that it may do to the topic "orders", to the group "orders", and to the cluster."""
    topics = [{"name": "orders", "topic_id": None}]
    asked = {"include_topic_authorized_operations": True, "include_cluster_authorized_operations": True}
    metadata = client.call(METADATA, 10, topics=topics, **asked)
    partitions = client.call(
        DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": "orders"}], response_partition_limit=10, cursor=None
    )
    groups = client.call(DESCRIBE_GROUPS, 5, groups=["orders"], include_authorized_operations=True).groups
    cluster = client.call(DESCRIBE_CLUSTER, 1, include_cluster_authorized_operations=True, endpoint_type=1)
    topic = metadata.topics[0].topic_authorized_operations
    assert partitions.topics[0].topic_authorized_operations == topic
    assert cluster.cluster_authorized_operations == metadata.cluster_authorized_operations
    return topic, groups[0].authorized_operations, cluster.cluster_authorized_operations


def test_clients_are_not_told_what_they_may_do_unless_they_ask(pond: Pond) -> None:
    pond.topic("orders")
    client = pond.client()
    metadata = client.call(METADATA, 12, topics=None, include_topic_authorized_operations=False)
    cluster = client.call(DESCRIBE_CLUSTER, 1, include_cluster_authorized_operations=False, endpoint_type=1)
    assert metadata.topics[0].topic_authorized_operations == NOT_TOLD
    assert cluster.cluster_authorized_operations == NOT_TOLD


def test_an_acl_holds_for_its_host_only(pond: Pond) -> None:
    pond.topic("orders")
    administrator, alice = user(pond, "root", tags=(ADMINISTRATOR,)), user(pond, "alice")
    allow(administrator, acl("User:alice", "write", host="10.0.0.1"))
    assert produce_code(alice, "orders") == errors.TOPIC_AUTHORIZATION_FAILED
    allow(administrator, acl("User:alice", "write", host="127.0.0.1"))
    assert produce_code(alice, "orders") == 0


def test_acls_are_described_and_deleted_by_filters(pond: Pond) -> None:
    root = user(pond, "root", tags=(ADMINISTRATOR,))
    allow(
        root,
        acl("User:alice", "read", "orders"),
        acl("User:alice", "read", "ord", pattern=4),
        acl("User:bob", "write", "*"),
        acl("User:bob", "read", "crew", resource=GROUP),
    )
    assert described(root, principal_filter="User:alice") == {
        ("User:alice", "read", "orders"),
        ("User:alice", "read", "ord"),
    }
    # MATCH: all that have a say about the topic.
    matching = described(root, resource_type_filter=TOPIC, resource_name_filter="orders", pattern_type_filter=2)
    assert {row for row in matching if row[0] != "User:guest"} == {
        ("User:alice", "read", "orders"),
        ("User:alice", "read", "ord"),
        ("User:bob", "write", "*"),
    }
    (result,) = root.call(DELETE_ACLS, 3, filters=[wanted(principal_filter="User:bob")]).filter_results
    assert len(result.matching_acls) == 2
    assert described(root, principal_filter="User:bob") == set()
    assert len(described(root, principal_filter="User:alice")) == 2


def test_rabbitmqs_permissions_are_shown_where_an_acl_can_say_the_same(pond: Pond) -> None:
    root = user(pond, "root", tags=(ADMINISTRATOR,))
    pond.broker.access.put_user("alice", None)
    pond.broker.access.set_permission("alice", "/", "a|b", r"^shop\.", "^orders$")
    assert described(root, principal_filter="User:alice", resource_type_filter=TOPIC) == {
        ("User:alice", "write", "shop."),
        ("User:alice", "read", "orders"),
    }
    root.call(DELETE_ACLS, 3, filters=[wanted(principal_filter="User:alice")])
    assert pond.broker.access.list_permissions("alice") == [PermissionRow("alice", "/", "a|b", r"^shop\.", "^orders$")]


@pytest.mark.parametrize("regex", ["", "orders", "^a.b$", "^(a|b)$", "^a+$", "^a\\d$", "^$"])
def test_patterns_that_an_acl_cannot_say_are_not_shown(regex: str) -> None:
    assert list(shown_permission(PermissionRow("u", "/", regex, regex, regex))) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"resource_type": 1},
        {"resource_type": 99},
        {"resource_name": ""},
        {"resource_name": "x" * 300},
        {"resource_pattern_type": 1},
        {"operation": 1},
        {"operation": 0},
        {"permission_type": 1},
        {"principal": "alice"},
        {"principal": "User:"},
        {"principal": "Group:x"},
        {"resource_type": CLUSTER, "resource_name": "other"},
    ],
)
def test_acls_that_cannot_be_are_refused(pond: Pond, wrong: dict[str, object]) -> None:
    root = user(pond, "root", tags=(ADMINISTRATOR,))
    assert allow(root, {**acl("User:alice", "read", "orders"), **wrong})[0] != 0
    assert described(root, principal_filter="User:alice") == set()


def test_who_may_do_nothing_is_told_so_by_each_api_and_changes_nothing(pond: Pond) -> None:
    pond.topic("orders")
    nobody = user(pond, "nobody")
    topics = [{"name": "new", "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}]
    (created,) = nobody.call(CREATE_TOPICS, 7, topics=topics, timeout=1000, validate_only=False).topics
    assert code(created) == errors.TOPIC_AUTHORIZATION_FAILED
    (deleted,) = nobody.call(DELETE_TOPICS, 6, topics=[{"name": "orders", "topic_id": None}], timeout=1).responses
    assert code(deleted) == errors.TOPIC_AUTHORIZATION_FAILED
    assert set(pond.topics.by_name) == {"orders"}
    assert code(nobody.call(INIT_PRODUCER_ID, 4, transactional_id=None)) == errors.CLUSTER_AUTHORIZATION_FAILED
    heartbeat = nobody.call(HEARTBEAT, 4, group_id="crew", generation_id=1, member_id="m")
    assert code(heartbeat) == errors.GROUP_AUTHORIZATION_FAILED
    (group,) = nobody.call(DESCRIBE_GROUPS, 5, groups=["crew"]).groups
    assert code(group) == errors.GROUP_AUTHORIZATION_FAILED
    (group,) = nobody.call(DELETE_GROUPS, 2, groups_names=["crew"]).results
    assert code(group) == errors.GROUP_AUTHORIZATION_FAILED
    (found,) = nobody.call(FIND_COORDINATOR, 4, key_type=0, coordinator_keys=["crew"]).coordinators
    assert code(found) == errors.GROUP_AUTHORIZATION_FAILED
    assert nobody.call(LIST_GROUPS, 4).groups == ()


def test_to_write_to_any_topic_is_enough_for_an_idempotent_producer(pond: Pond) -> None:
    root, alice = user(pond, "root", tags=(ADMINISTRATOR,)), user(pond, "alice")
    allow(root, acl("User:alice", "write", "orders"))
    assert code(alice.call(INIT_PRODUCER_ID, 4, transactional_id=None)) == 0


# --- SCRAM credentials ------------------------------------------------------------------------------------------------


def upsertion(name: str, mechanism: int = 1, iterations: int = 4096) -> dict[str, object]:
    return {
        "name": name, "mechanism": mechanism, "iterations": iterations, "salt": b"s" * 16, "salted_password": b"p" * 32,
    }  # fmt: skip


def alter(client: Client, *, deletions: Any = (), upsertions: Any = ()) -> dict[str, int]:
    response = client.call(ALTER_SCRAM, 0, deletions=list(deletions), upsertions=list(upsertions))
    return {result.user: code(result) for result in response.results}


def test_credentials_make_a_user_without_password_and_permissions(pond: Pond) -> None:
    root = user(pond, "root", tags=(ADMINISTRATOR,))
    assert alter(root, upsertions=[upsertion("new")]) == {"new": 0}
    access = pond.broker.access
    assert (access.exists("new"), access.has_vhost("new", "/"), access.verify_password("new", b"p" * 32)) == (
        True, False, False,
    )  # fmt: skip
    (told,) = root.call(DESCRIBE_SCRAM, 0, users=[{"name": "new"}]).results
    assert [(one.mechanism, one.iterations) for one in told.credential_infos] == [(1, 4096)]


def test_credentials_that_cannot_be_are_refused(pond: Pond) -> None:
    root = user(pond, "root", tags=(ADMINISTRATOR,))
    assert alter(root, upsertions=[upsertion("a", iterations=4095)]) == {"a": errors.UNACCEPTABLE_CREDENTIAL}
    assert alter(root, upsertions=[upsertion("a", iterations=16385)]) == {"a": errors.UNACCEPTABLE_CREDENTIAL}
    assert alter(root, upsertions=[upsertion("a", 9)]) == {"a": errors.UNSUPPORTED_SASL_MECHANISM}
    assert alter(root, upsertions=[upsertion("")]) == {"": errors.UNACCEPTABLE_CREDENTIAL}
    assert alter(root, upsertions=[upsertion("a"), upsertion("a", 2)]) == {"a": errors.DUPLICATE_RESOURCE}
    assert alter(root, deletions=[{"name": "a", "mechanism": 1}]) == {"a": errors.RESOURCE_NOT_FOUND}
    assert not pond.broker.access.exists("a")


def test_a_new_password_replaces_the_credentials_of_the_old_one(pond: Pond) -> None:
    access = pond.broker.access
    access.put_user("alice", DEFAULT_HASH, (), scram_credentials.of_password(b"guest"))
    old = access.scram_credential("alice", scram_credentials.SHA256)
    # The same password with other tags leaves them.
    access.put_user("alice", DEFAULT_HASH, ("monitoring",))
    assert access.scram_credential("alice", scram_credentials.SHA256) == old
    access.put_user("alice", access.hash_password(b"new"))
    assert "alice" not in access.list_scram_credentials()
