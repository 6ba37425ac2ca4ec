"""Every API of Kafka's protocol against every right that it asks for.

A line of the matrix is a request and what Apache Kafka's broker asks of who sends it, in the order in which it looks.
For each right that is missing the answer is that right's refusal and nothing has changed; with exactly the rights
listed the request is done.

Source: Apache Kafka, KafkaApis.scala and "Authorization and ACLs".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest

from millpond.protocols.kafka import registry
from tests.broker.group_members import assignment, subscription
from tests.protocols.kafka.harness import Client, batch_of, fetch_tree, produce_tree
from tests.security.world import (
    ANN,
    CREW,
    ELSEWHERE,
    HOME,
    IDLE,
    IDLE_SHARERS,
    MEMBER,
    MODERN,
    OTHER_TOPIC,
    SECRET_VALUE,
    SHARERS,
    TOPIC,
    TRANSACTION,
    TRANSACTIONAL,
    World,
    commit_tree,
    differences,
    world_of,
)

registry.load(1)

ON_TOPIC, ON_GROUP, ON_CLUSTER, ON_TRANSACTION = 29, 30, 31, 53
REFUSALS = {ON_TOPIC, ON_GROUP, ON_CLUSTER, ON_TRANSACTION}
CODE_OF_KIND = {"topic": ON_TOPIC, "group": ON_GROUP, "cluster": ON_CLUSTER, "transactional_id": ON_TRANSACTION}
# AddPartitionsToTxn: what could be added, had it not been asked for together with what cannot.
OPERATION_NOT_ATTEMPTED = 55
# The answer says nothing of what may not be known, and no error either.
HIDDEN = 0

Tree = dict[str, Any]
Right = tuple[str, str, str]


@dataclass(frozen=True)
class Need:
    """One thing that is looked at: any of these rights is enough. `code` is the refusal."""

    rights: tuple[Right, ...]
    code: int


def need(operation: str, resource: str, name: str = "", *others: Right, code: int | None = None) -> Need:
    return Need(((operation, resource, name), *others), CODE_OF_KIND[resource] if code is None else code)


@dataclass(frozen=True)
class Line:
    """One request. `allowed` are the codes of an answer to who may do this; `hides` is what others must not read."""

    key: int
    version: int
    what: str
    tree: Callable[[World], Tree]
    needs: tuple[Need, ...]
    changes: bool = False
    allowed: frozenset[int] = frozenset({0})
    hides: str = ""
    # Regular expressions do not give it: Kafka's rows do, and the tag of an administrator.
    is_administration: bool = False

    def __str__(self) -> str:
        return f"{registry.APIS[self.key].name}-{self.what}" if self.what else registry.APIS[self.key].name


def line(
    key: int, version: int, tree: Tree | Callable[[World], Tree], *needs: Need, what: str = "", changes: bool = False,
    allowed: int = 0, hides: str = "", is_administration: bool = False,
) -> Line:  # fmt: skip
    made = tree if callable(tree) else lambda world: tree
    return Line(key, version, what, made, needs, changes, frozenset({allowed}), hides, is_administration)


# --- The matrix -------------------------------------------------------------------------------------------------------

PARTITIONS = [{"partition_index": 0}]
GROUP_RESOURCE, TOPIC_RESOURCE, BROKER_RESOURCE = 32, 2, 4
ANYTHING = {"resource_type_filter": 1, "resource_name_filter": None, "pattern_type_filter": 1,
            "principal_filter": "User:somebody", "host_filter": None, "operation": 1, "permission_type": 1}  # fmt: skip
NEW_ACL = {"resource_type": 2, "resource_name": TOPIC, "resource_pattern_type": 3, "principal": "User:ann",
           "host": "*", "operation": 3, "permission_type": 3}  # fmt: skip


def member_of_crew(world: World) -> Tree:
    return {"group_id": CREW, "generation_id": world.crew_generation, "member_id": world.crew_member}


def join(member_id: str = "") -> Tree:
    return {"group_id": "new-crew", "session_timeout": 30_000, "rebalance_timeout": 60_000, "member_id": member_id,
            "protocol_type": "consumer", "protocols": [{"name": "range", "metadata": subscription(TOPIC)}]}  # fmt: skip


def producing(world: World) -> Tree:
    return {"transactional_id": TRANSACTION, "producer_id": world.producer[0], "producer_epoch": world.producer[1]}


def in_transaction(world: World) -> Tree:
    batch = batch_of(b"x", producer=(*world.producer, 1), attributes=TRANSACTIONAL)
    return produce_tree({TOPIC: {0: batch}}, transactional_id=TRANSACTION)


def batched_addition(world: World) -> Tree:
    topics = [{"name": TOPIC, "partitions": [1]}]
    return {"transactions": [{**producing(world), "verify_only": False, "topics": topics}]}


def markers(world: World) -> Tree:
    topics = [{"name": TOPIC, "partition_indexes": [0]}]
    marker = {"producer_id": world.producer[0], "producer_epoch": world.producer[1], "transaction_result": False,
              "topics": topics, "coordinator_epoch": 0}  # fmt: skip
    return {"markers": [marker]}


def txn_commit(world: World) -> Tree:
    partition = {"partition_index": 0, "committed_offset": 2, "committed_leader_epoch": 0, "committed_metadata": ""}
    return {**producing(world), "group_id": IDLE, "generation_id": -1, "member_id": "",
            "topics": [{"name": TOPIC, "partitions": [partition]}]}  # fmt: skip


def by_id(world: World) -> Tree:
    return {"topics": [{"name": None, "topic_id": world.pond.topics.by_name[TOPIC].id}], "timeout": 1_000}


def modern_beat(world: World) -> Tree:
    return {"group_id": MODERN, "member_id": MEMBER, "member_epoch": world.modern_epoch, "topic_partitions": None,
            "subscribed_topic_names": None}  # fmt: skip


def acknowledgement(world: World) -> Tree:
    batches = [{"first_offset": 0, "last_offset": 0, "acknowledge_types": [1]}]
    topic_id = world.pond.topics.by_name[TOPIC].id
    partitions = [{"partition_index": 0, "acknowledgement_batches": batches}]
    # What is refused of one partition goes on with the session all the same, as in Apache Kafka.
    session = world.broker.vhosts[HOME].shares.sessions.of_group(SHARERS)[0]
    return {"group_id": SHARERS, "member_id": MEMBER, "share_session_epoch": session.epoch,
            "topics": [{"topic_id": topic_id, "partitions": partitions}]}  # fmt: skip


def altered(resource: int, name: str, key: str, value: str) -> Tree:
    configs = [{"name": key, "config_operation": 0, "value": value}]
    return {"resources": [{"resource_type": resource, "resource_name": name, "configs": configs}],
            "validate_only": False}  # fmt: skip


def described(resource: int, name: str) -> Tree:
    resources = [{"resource_type": resource, "resource_name": name, "configuration_keys": None}]
    return {"resources": resources, "include_synonyms": False, "include_documentation": False}


def created(name: str = "fresh") -> Tree:
    topic = {"name": name, "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
    return {"topics": [topic], "timeout": 1_000, "validate_only": False}


def joins_modern(group: str, **more: object) -> Tree:
    return {"group_id": group, "member_id": "ann", "member_epoch": 0, "subscribed_topic_names": [TOPIC], **more}


def asked_of(group: str, *topics: Tree) -> Tree:
    return {"groups": [{"group_id": group, "topics": list(topics) or None}]}


SEES_TOPIC = need("describe", "topic", TOPIC)
READS_TOPIC = need("read", "topic", TOPIC)
WRITES_TOPIC = need("write", "topic", TOPIC)
IN_TRANSACTION = need("write", "transactional_id", TRANSACTION)
SEES_CLUSTER = need("describe", "cluster")
ALTERS_CLUSTER = need("alter", "cluster")
CREATES = need("create", "topic", "fresh", ("create", "cluster", ""))
SEES_BOTH = (SEES_TOPIC, need("describe", "topic", OTHER_TOPIC))

MATRIX: tuple[Line, ...] = (
    line(0, 9, lambda _: produce_tree({TOPIC: {0: batch_of(b"x")}}), WRITES_TOPIC, changes=True),
    line(0, 13, lambda _: produce_tree({TOPIC: {0: batch_of(b"x")}}), WRITES_TOPIC, changes=True, what="by-id"),
    line(0, 9, in_transaction, IN_TRANSACTION, WRITES_TOPIC, changes=True, what="transaction"),
    line(1, 12, lambda _: fetch_tree({TOPIC: {0: 0}}), READS_TOPIC, hides=SECRET_VALUE.decode()),
    line(1, 16, lambda _: fetch_tree({TOPIC: {0: 0}}), READS_TOPIC, hides=SECRET_VALUE.decode(), what="by-id"),
    line(2, 7, {"replica_id": -1, "isolation_level": 0,
                "topics": [{"name": TOPIC, "partitions": [{"partition_index": 0, "current_leader_epoch": -1,
                                                           "timestamp": -1}]}]}, SEES_TOPIC),
    line(3, 12, {"topics": [{"topic_id": None, "name": TOPIC}]}, SEES_TOPIC),
    line(3, 12, lambda world: {"topics": [{"topic_id": world.pond.topics.by_name[TOPIC].id, "name": None}]},
         SEES_TOPIC, what="by-id", hides=TOPIC),
    line(3, 12, {"topics": None}, need("describe", "topic", TOPIC, code=HIDDEN), what="all", hides=TOPIC),
    line(3, 12, {"topics": [{"topic_id": None, "name": "fresh"}], "allow_auto_topic_creation": True},
         need("describe", "topic", "fresh"), CREATES, what="creating", changes=True),
    line(8, 9, lambda _: commit_tree(IDLE, TOPIC, 2), need("read", "group", IDLE), READS_TOPIC, changes=True),
    line(9, 8, asked_of(IDLE, {"name": TOPIC, "partition_indexes": [0]}), need("describe", "group", IDLE), SEES_TOPIC),
    line(9, 8, asked_of(IDLE), need("describe", "group", IDLE), need("describe", "topic", TOPIC, code=HIDDEN),
         what="all", hides=TOPIC),
    line(10, 4, {"key_type": 0, "coordinator_keys": [IDLE]}, need("describe", "group", IDLE)),
    line(10, 4, {"key_type": 1, "coordinator_keys": [TRANSACTION]}, need("describe", "transactional_id", TRANSACTION),
         what="transaction"),
    line(11, 9, join(), need("read", "group", "new-crew"), allowed=79, changes=True),
    line(12, 4, member_of_crew, need("read", "group", CREW)),
    line(13, 5, lambda world: {"group_id": CREW, "members": [{"member_id": world.crew_member}]},
         need("read", "group", CREW), changes=True),
    line(14, 5, lambda world: {**member_of_crew(world), "protocol_type": "consumer", "protocol_name": "range",
                               "assignments": [{"member_id": world.crew_member,
                                                "assignment": assignment(TOPIC, 1)}]},
         need("read", "group", CREW)),
    line(15, 5, {"groups": [CREW]}, need("describe", "group", CREW), hides=TOPIC),
    line(16, 4, {}, need("describe", "group", CREW, ("describe", "cluster", ""), code=HIDDEN), hides=CREW),
    line(19, 7, created(), CREATES, changes=True),
    line(20, 6, {"topics": [{"name": TOPIC, "topic_id": None}], "timeout": 1_000}, need("delete", "topic", TOPIC),
         changes=True),
    line(20, 6, by_id, need("delete", "topic", TOPIC), changes=True, what="by-id", hides=TOPIC),
    line(21, 2, {"topics": [{"name": TOPIC, "partitions": [{"partition_index": 0, "offset": 1}]}], "timeout": 1_000},
         need("delete", "topic", TOPIC), changes=True),
    line(22, 4, {"transactional_id": TRANSACTION, "transaction_timeout": 60_000, "producer_id": -1,
                 "producer_epoch": -1}, IN_TRANSACTION, changes=True),
    line(22, 4, {"transactional_id": None, "transaction_timeout": 60_000, "producer_id": -1, "producer_epoch": -1},
         need("idempotent_write", "cluster", "", ("write", "topic", TOPIC)), what="idempotent"),
    line(23, 4, {"replica_id": -1, "topics": [{"topic": TOPIC, "partitions": [
        {"partition": 0, "current_leader_epoch": -1, "leader_epoch": 0}]}]}, SEES_TOPIC),
    line(24, 3, lambda world: world.add_partitions_tree(1), IN_TRANSACTION, WRITES_TOPIC, changes=True),
    line(24, 5, batched_addition, need("cluster_action", "cluster", "", ("alter", "cluster", "")), WRITES_TOPIC,
         changes=True, what="batched"),
    line(25, 4, lambda world: {**producing(world), "group_id": IDLE}, IN_TRANSACTION, need("read", "group", IDLE),
         changes=True),
    line(26, 4, lambda world: {**producing(world), "committed": True}, IN_TRANSACTION, changes=True),
    line(27, 1, markers, need("alter", "cluster", "", ("cluster_action", "cluster", "")), changes=True),
    line(28, 5, txn_commit, IN_TRANSACTION, need("read", "group", IDLE), READS_TOPIC, changes=True),
    line(29, 3, ANYTHING, SEES_CLUSTER, hides=OTHER_TOPIC, is_administration=True),
    line(30, 3, {"creations": [NEW_ACL]}, ALTERS_CLUSTER, changes=True, is_administration=True),
    line(31, 3, {"filters": [ANYTHING]}, ALTERS_CLUSTER, changes=True, is_administration=True),
    line(32, 4, described(TOPIC_RESOURCE, TOPIC), need("describe_configs", "topic", TOPIC)),
    line(32, 4, described(GROUP_RESOURCE, SHARERS), need("describe_configs", "group", SHARERS), what="group"),
    line(32, 4, described(BROKER_RESOURCE, "1"), need("describe_configs", "cluster"), what="broker"),
    line(33, 2, altered(TOPIC_RESOURCE, TOPIC, "retention.ms", "1000"), need("alter_configs", "topic", TOPIC),
         changes=True),
    line(34, 2, {"dirs": [{"path": "/", "topics": [{"name": TOPIC, "partitions": [0]}]}]}, ALTERS_CLUSTER, allowed=57),
    line(35, 4, {"topics": None}, SEES_CLUSTER, hides=TOPIC),
    line(37, 3, {"topics": [{"name": TOPIC, "count": 3, "assignments": None}], "timeout": 1_000,
                 "validate_only": False}, need("alter", "topic", TOPIC), changes=True),
    line(42, 2, {"groups_names": [IDLE]}, need("delete", "group", IDLE), changes=True),
    line(43, 2, {"election_type": 0, "topic_partitions": [{"topic": TOPIC, "partitions": [0]}], "timeout": 1_000},
         ALTERS_CLUSTER, allowed=84),
    line(44, 1, altered(TOPIC_RESOURCE, TOPIC, "retention.ms", "1000"), need("alter_configs", "topic", TOPIC),
         changes=True),
    line(44, 1, altered(GROUP_RESOURCE, SHARERS, "share.auto.offset.reset", "latest"),
         need("alter_configs", "group", SHARERS), changes=True, what="group"),
    line(44, 1, altered(BROKER_RESOURCE, "1", "log.retention.ms", "1000"), need("alter_configs", "cluster"),
         what="broker", allowed=42),
    line(45, 0, {"timeout": 1_000, "topics": [{"name": TOPIC, "partitions": [{"partition_index": 0,
                                                                              "replicas": [1]}]}]}, ALTERS_CLUSTER),
    line(46, 0, {"timeout": 1_000, "topics": None}, SEES_CLUSTER),
    line(47, 0, {"group_id": IDLE, "topics": [{"name": TOPIC, "partitions": PARTITIONS}]},
         need("delete", "group", IDLE), READS_TOPIC, changes=True),
    line(48, 1, {"components": [], "strict": False}, need("describe_configs", "cluster"), hides="somebody",
         is_administration=True),
    line(49, 1, {"entries": [{"entity": [{"entity_type": "user", "entity_name": ANN}],
                              "ops": [{"key": "consumer_byte_rate", "value": 1.0, "remove": False}]}],
                 "validate_only": False}, need("alter_configs", "cluster"), changes=True, is_administration=True),
    line(50, 0, {"users": None}, SEES_CLUSTER, hides="guest", is_administration=True),
    line(51, 0, {"deletions": [], "upsertions": [{"name": ANN, "mechanism": 1, "iterations": 4096, "salt": b"s" * 16,
                                                  "salted_password": b"p" * 32}]},
         ALTERS_CLUSTER, changes=True, is_administration=True),
    line(61, 0, {"topics": [{"name": TOPIC, "partition_indexes": [0]}]}, READS_TOPIC),
    line(65, 0, {"transactional_ids": [TRANSACTION]}, need("describe", "transactional_id", TRANSACTION),
         need("describe", "topic", TOPIC, code=HIDDEN), hides=TOPIC),
    line(66, 0, {"state_filters": [], "producer_id_filters": []},
         need("describe", "transactional_id", TRANSACTION, code=HIDDEN), hides=TRANSACTION),
    line(68, 1, modern_beat, need("read", "group", MODERN)),
    line(68, 1, joins_modern(MODERN, rebalance_timeout=60_000, topic_partitions=[]), need("read", "group", MODERN),
         SEES_TOPIC, what="joining", changes=True),
    line(69, 1, {"group_ids": [MODERN], "include_authorized_operations": False}, need("describe", "group", MODERN),
         *SEES_BOTH, hides=TOPIC),
    line(74, 1, {"resource_types": []}, need("describe_configs", "cluster"), hides=SHARERS),
    line(75, 0, {"topics": [{"name": TOPIC}], "response_partition_limit": 10, "cursor": None}, SEES_TOPIC),
    line(76, 1, lambda world: {"group_id": SHARERS, "member_id": MEMBER, "member_epoch": world.share_epoch,
                               "subscribed_topic_names": None}, need("read", "group", SHARERS)),
    line(76, 1, joins_modern(SHARERS), need("read", "group", SHARERS), SEES_TOPIC, what="joining", changes=True),
    line(77, 1, {"group_ids": [SHARERS], "include_authorized_operations": False}, need("describe", "group", SHARERS),
         *SEES_BOTH, hides=TOPIC),
    line(78, 2, lambda world: world.share_fetch_tree(SHARERS, 0, member="ann"), need("read", "group", SHARERS),
         READS_TOPIC, changes=True, hides=SECRET_VALUE.decode()),
    line(79, 2, acknowledgement, need("read", "group", SHARERS), READS_TOPIC, changes=True),
    line(90, 0, asked_of(SHARERS, {"topic_name": TOPIC, "partitions": [0]}), need("describe", "group", SHARERS),
         SEES_TOPIC),
    line(90, 0, asked_of(SHARERS), need("describe", "group", SHARERS), need("describe", "topic", TOPIC, code=HIDDEN),
         what="all", hides=TOPIC),
    line(91, 0, {"group_id": IDLE_SHARERS, "topics": [{"topic_name": TOPIC, "partitions": [
        {"partition_index": 0, "start_offset": 1}]}]}, need("read", "group", IDLE_SHARERS), READS_TOPIC, changes=True),
    line(92, 0, {"group_id": IDLE_SHARERS, "topics": [{"topic_name": TOPIC}]}, need("delete", "group", IDLE_SHARERS),
         READS_TOPIC, changes=True),
)  # fmt: skip

# APIs that anybody may use who has logged in, or is about to: each with a request.
FOR_ALL: dict[int, tuple[int, Tree]] = {
    17: (1, {"mechanism": "PLAIN"}),
    18: (4, {"client_software_name": "x", "client_software_version": "1"}),
    60: (1, {"include_cluster_authorized_operations": True, "endpoint_type": 1}),
}
# The login itself, of which `test_security.py` and `test_acls.py` speak.
LOGIN = {36}


def test_the_matrix_has_every_api() -> None:
    assert {one.key for one in MATRIX} | set(FOR_ALL) | LOGIN == set(registry.APIS)


# --- What answers say -------------------------------------------------------------------------------------------------

CODE_FIELDS = {"error_code", "partition_error_code"}


def codes_in(answer: Any) -> Iterator[int]:
    """All error codes in an answer, wherever they are."""
    if is_dataclass(answer):
        for field in fields(answer):
            value = getattr(answer, field.name)
            if field.name in CODE_FIELDS:
                yield int(value.value if isinstance(value, enum.Enum) else value)
            else:
                yield from codes_in(value)
    elif isinstance(answer, (list, tuple)):
        for item in answer:
            yield from codes_in(item)


def ask(world: World, client: Client, one: Line) -> Any:
    answer = client.call(one.key, one.version, **one.tree(world))
    client.drop()
    return answer


def check_refused(answer: Any, one: Line, code: int, why: str) -> None:
    codes = set(codes_in(answer)) - {0, OPERATION_NOT_ATTEMPTED}
    assert codes == ({code} if code != HIDDEN else set()), f"{why}: {answer}"
    if one.hides and code != HIDDEN:
        assert one.hides not in repr(without_what_was_asked(answer)), f"{why}: it is told all the same: {answer}"


def without_what_was_asked(answer: Any) -> Any:
    """An answer repeats the names that the client knows already."""
    return [getattr(answer, field.name) for field in fields(answer)] if is_dataclass(answer) else answer


@pytest.fixture(scope="module")
def standing() -> Iterator[World]:
    """What nobody without a right may change: so one is enough for all who try."""
    with world_of() as made:
        yield made


@pytest.fixture(scope="module")
def untouched(standing: World) -> Any:
    return standing.snapshot()


@pytest.fixture(autouse=True)
def without_rights(standing: World) -> Iterator[None]:
    """Whatever a test that fails has left."""
    yield
    standing.revoke_all()


def grant(world: World, needs: tuple[Need, ...], *, but: Need | None = None) -> None:
    """What each need asks for at the least, but for one of them; and all other operations on the same things."""
    for wanted in needs:
        if wanted is not but:
            world.grant(*wanted.rights[0])


def check_nothing_changed(world: World, before: Any, one: Line) -> None:
    world.revoke_all()
    changed = differences(before, world.snapshot())
    assert not changed, f"{one} was refused, and has changed something: {changed}"


@pytest.mark.parametrize("one", MATRIX, ids=str)
def test_a_missing_right_is_refused_and_nothing_changes(standing: World, untouched: Any, one: Line) -> None:
    first = one.needs[0]
    check_refused(ask(standing, standing.kafka_client(), one), one, first.code, "without any right")
    standing.access.set_permission(ANN, ELSEWHERE, ".*", ".*", ".*")
    check_refused(ask(standing, standing.kafka_client(), one), one, first.code, "with rights elsewhere only")
    standing.revoke_all()
    for missing in one.needs:
        grant(standing, one.needs, but=missing)
        for operation, resource, name in wrong_rights(missing):
            standing.grant(operation, resource, name)
        answer = ask(standing, standing.kafka_client(), one)
        check_refused(answer, one, missing.code, f"without {missing.rights}")
        standing.revoke_all()
        # What is denied is denied, whoever allows it.
        standing.access.set_permission(ANN, HOME, ".*", ".*", ".*")
        if one.is_administration:
            standing.access.set_tags(ANN, ("administrator",))
        else:
            grant(standing, one.needs)
        for operation, resource, name in missing.rights:
            standing.grant(operation, resource, name, effect="deny")
        answer = ask(standing, standing.kafka_client(), one)
        if not is_allowed_otherwise(missing):
            check_refused(answer, one, missing.code, f"denied {missing.rights}")
        standing.revoke_all()
    check_nothing_changed(standing, untouched, one)


# An operation -> those that imply it.
IMPLIED_BY = {
    "describe": {"describe", "read", "write", "delete", "alter", "all"},
    "describe_configs": {"describe_configs", "alter_configs", "all"},
}
OPERATIONS = ("read", "write", "create", "delete", "alter", "describe", "describe_configs", "alter_configs",
              "cluster_action", "idempotent_write")  # fmt: skip


def wrong_rights(missing: Need) -> Iterator[Right]:
    """Everything on the same thing that does not give what is missing."""
    for _, resource, name in missing.rights:
        enough = {
            one
            for operation, kind, of in missing.rights
            if (kind, of) == (resource, name)
            for one in IMPLIED_BY.get(operation, {operation})
        }
        # To write to any topic is a right of its own: of this one it would say that it may be described.
        yield from ((operation, resource, name) for operation in OPERATIONS if operation not in enough)


def is_allowed_otherwise(missing: Need) -> bool:
    """To write to any topic at all is enough for an idempotent producer: a topic that is denied says nothing."""
    return missing.rights[0][0] == "idempotent_write"


@pytest.mark.parametrize("one", MATRIX, ids=str)
def test_exactly_the_rights_are_enough(standing: World, untouched: Any, one: Line) -> None:
    if one.changes:
        with world_of() as world:
            grant(world, one.needs)
            before = world.snapshot()
            check_done(world, one)
            # So a picture shows what this does: were it done without the right, it would be seen.
            assert differences(before, world.snapshot())
            again = world
            for wanted in one.needs:
                for right in wanted.rights[1:]:
                    again.revoke_all()
                    grant(again, one.needs, but=wanted)
                    again.grant(*right)
                    answer = ask(again, again.kafka_client(), one)
                    assert not REFUSALS.intersection(codes_in(answer)), f"{right}: {answer}"
        return
    grant(standing, one.needs)
    check_done(standing, one)
    check_nothing_changed(standing, untouched, one)


def check_done(world: World, one: Line) -> None:
    answer = ask(world, world.kafka_client(), one)
    assert set(codes_in(answer)) <= one.allowed | {0}, answer
    assert one.allowed <= set(codes_in(answer)) | {0}, answer
    if one.hides:
        assert one.hides in repr(answer), f"what others may not see is not there: {answer}"


# What RabbitMQ's three patterns give of Kafka's operations.
GIVEN_BY = {
    "configure": {"create", "delete", "alter", "alter_configs", "describe", "describe_configs"},
    "write": {"write", "idempotent_write", "describe", "describe_configs"},
    "read": {"read", "describe", "describe_configs"},
}


@pytest.mark.parametrize("one", MATRIX, ids=str)
def test_each_pattern_of_rabbitmqs_gives_its_operations_and_no_others(
    standing: World, untouched: Any, one: Line
) -> None:
    for kind, given in GIVEN_BY.items():
        patterns = dict.fromkeys(GIVEN_BY, "") | {kind: ".*"}
        missing = [
            wanted for wanted in one.needs if one.is_administration or not any(r[0] in given for r in wanted.rights)
        ]
        if not missing and one.changes:
            # It would be done: that is seen with Kafka's rows.
            continue
        standing.access.set_permission(ANN, HOME, patterns["configure"], patterns["write"], patterns["read"])
        answer = ask(standing, standing.kafka_client(), one)
        if missing:
            check_refused(answer, one, missing[0].code, f"with {kind} only")
        else:
            assert not REFUSALS.intersection(codes_in(answer)), f"with {kind}: {answer}"
    check_nothing_changed(standing, untouched, one)


@pytest.mark.parametrize("key", FOR_ALL)
def test_what_is_for_all_tells_and_changes_nothing(standing: World, untouched: Any, key: int) -> None:
    version, tree = FOR_ALL[key]
    client = standing.pond.client() if key == 17 else standing.kafka_client()
    answer = client.call(key, version, **tree)
    client.drop()
    assert set(codes_in(answer)) <= {0}
    assert TOPIC not in repr(answer)
    assert differences(untouched, standing.snapshot()) == []


@pytest.mark.parametrize("one", [one for one in MATRIX if one.is_administration], ids=str)
def test_administration_is_for_administrators_who_have_logged_in(one: Line) -> None:
    with world_of() as world:
        world.access.set_tags(ANN, ("administrator",))
        check_done(world, one)
