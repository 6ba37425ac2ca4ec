"""A broker with something of every kind in it, clients of every protocol, and a picture of all that it holds.

No sockets and no threads: Kafka's and AMQP's clients push bytes into one broker, and the management API is asked as an
ASGI application. A user has exactly the rights that a test gives, so that one missing right is the only difference
between an operation that is refused and one that is done.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from argon2 import PasswordHasher
from fastapi import FastAPI

from millpond.admin import groups as group_views
from millpond.admin import shares as share_views
from millpond.admin import transactions as transaction_views
from millpond.admin.application import application
from millpond.admin.gate import Gate
from millpond.admin.views import Node
from millpond.base.limits import GROUP_INITIAL_REBALANCE_DELAY_MS, HANDSHAKE_TIMEOUT_MS
from millpond.broker.access import ADMINISTRATOR, CLUSTER_NAME, Access
from millpond.broker.definitions.exports import exported
from millpond.broker.groups.group import Group
from millpond.broker.policies import OPERATOR_POLICY, POLICY, checked_policy
from millpond.broker.vhost import VirtualHost
from millpond.catalog.rows import RuleRow
from millpond.protocols.amqp import methods
from millpond.protocols.amqp import registry as amqp_registry
from millpond.protocols.amqp.connection import ConnectionSettings
from millpond.server.administration import _amqp_properties
from tests.broker.group_members import assignment, subscription
from tests.protocols.amqp import harness as amqp
from tests.protocols.kafka import harness as kafka
from tests.protocols.kafka.harness import batch_of, produce_tree

PASSWORD = "correct horse"
HOME, ELSEWHERE = "/", "elsewhere"
ROOT = "root"
# Whose rights the tests change.
ANN = "ann"
# What there is.
TOPIC, OTHER_TOPIC, STREAM = "orders", "quiet", "events"
CREW, IDLE, MODERN, SHARERS, IDLE_SHARERS = "crew", "idle", "modern", "sharers", "idle-sharers"
TRANSACTION = "moving"
MEMBER = "m"
SECRET_VALUE = b"of nobody else's business"
QUEUE, EMPTY_QUEUE, DEAD_QUEUE = "work", "empty", "dead"
DIRECT, FANOUT, TOPICAL = "ex-direct", "ex-fanout", "ex-topic"

SASL_HANDSHAKE, SASL_AUTHENTICATE, JOIN_GROUP, SYNC_GROUP = 17, 36, 11, 14
OFFSET_COMMIT, CONSUMER_HEARTBEAT, SHARE_HEARTBEAT, SHARE_FETCH = 8, 68, 76, 78
INIT_PRODUCER_ID, ADD_PARTITIONS, ALTER_CONFIGS = 22, 24, 44
TRANSACTIONAL = 0x10


@cache
def cheap_hash() -> str:
    """A real argon2id hash of PASSWORD that takes no time, as logging in is no subject here."""
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


@dataclass
class Reply:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class AmqpWaters:
    """What a client of the AMQP harness wants of its pond, on the broker of another one."""

    def __init__(self, pond: kafka.Pond) -> None:
        self._pond = pond
        self.broker = pond.broker
        self.handlers = amqp_registry.load(10_000)
        self.settings = ConnectionSettings(131_072, 2_047, 60, HANDSHAKE_TIMEOUT_MS)

    def rest(self) -> None:
        self._pond.rest()


class World:
    """The broker, its users ROOT (an administrator) and ANN, and all that the tests try to change."""

    def __init__(self) -> None:
        self.pond = kafka.Pond(login_required=True)
        self.broker = self.pond.broker
        self.access: Access = self.broker.access
        self.amqp_waters: Any = AmqpWaters(self.pond)
        # Whether time passes while a request is waited for.
        self.clock_runs = False
        self._runner = asyncio.Runner()
        self._logins = ThreadPoolExecutor(1)
        self.broker.create_vhost(ELSEWHERE)
        self.add_user(ROOT, (ADMINISTRATOR,))
        self.access.set_permission(ROOT, HOME, ".*", ".*", ".*")
        self.add_user(ANN)
        self.root = self.kafka_client(ROOT)
        self._fill_amqp()
        self._fill_topics()
        self._fill_groups()
        self._fill_transaction()
        self._fill_rules()
        self.pond.rest()

    def close(self) -> None:
        self._runner.close()
        self._logins.shutdown()
        self.pond.close()

    @cached_property
    def routes(self) -> FastAPI:
        """The management API, which takes longer to make than all the rest."""
        node = Node(
            name="millpond@test",
            started_ms=self.broker.clock.monotonic_ms(),
            addresses=lambda: {"amqp": ("127.0.0.1", 5672)},
            rabbitmq_version="4.0.0",
            disk_free=lambda: None,
            disk_free_min=0,
            connections_max=10_000,
        )
        return application(self.broker, node, _amqp_properties)

    # --- users and rights

    def add_user(self, name: str, tags: Sequence[str] = ()) -> None:
        self.access.put_user(name, cheap_hash(), tags)

    def grant(self, operation: str, resource: str, name: str, *, user: str = ANN, effect: str = "allow") -> None:
        """One of Kafka's rows."""
        pattern = CLUSTER_NAME if resource == "cluster" else name
        self.access.add_rule(RuleRow(user, HOME, resource, "literal", pattern, operation, effect))

    def revoke_all(self, user: str = ANN) -> None:
        for rule in self.access.list_rules(HOME):
            if rule.user == user:
                self.access.delete_rule(rule)
        for vhost in (HOME, ELSEWHERE):
            self.access.clear_permission(user, vhost)
            self.access.clear_topic_permissions(user, vhost)
        self.access.set_tags(user, ())

    def forget_failures(self) -> None:
        """What has failed before has no consequence: the clock stands still, and nobody would wait to the end."""
        self.access.failed_logins.__init__()  # type: ignore[misc]

    # --- clients

    def kafka_client(self, user: str = ANN) -> kafka.Client:
        client = self.pond.client()
        client.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
        answer = client.call(SASL_AUTHENTICATE, 2, auth_bytes=f"\0{user}\0{PASSWORD}".encode())
        assert answer.error_code.value == 0, answer
        return client

    def amqp_client(self, user: str = ANN, vhost: str = HOME, *, opens: bool = True) -> amqp.Client:
        """A client that has logged in; with `opens` it has the virtual host and channel 1 open."""
        client = amqp.Client(self.amqp_waters)
        client.start(response=f"\0{user}\0{PASSWORD}".encode())
        tune = client.expect(methods.ConnectionTune)
        client.send(0, methods.ConnectionTuneOk(channel_max=tune.channel_max, frame_max=tune.frame_max, heartbeat=0))
        if opens:
            client.call(0, methods.ConnectionOpen(virtual_host=vhost), methods.ConnectionOpenOk)
            client.open_channel(1)
        return client

    def ask(
        self, method: str, path: str, body: object = None, *, user: str | None = ANN, password: str = PASSWORD
    ) -> Reply:
        """A request to the management API by a user with a password; None for one without a login."""
        headers = []
        if user is not None:
            login = base64.b64encode(f"{user}:{password}".encode())
            headers.append((b"authorization", b"Basic " + login))
        return self._request(
            Gate(self.routes, self.access, self._logins, False, self.broker.clock), method, path, body, headers
        )

    def look(self, path: str) -> Any:
        """What the owner of the data directory sees at a path."""
        reply = self._request(
            Gate(self.routes, self.access, self._logins, True, self.broker.clock), "GET", path, None, []
        )
        assert reply.status == 200, (path, reply)
        return reply.json

    def _request(self, gate: Gate, method: str, path: str, body: object, headers: list[tuple[bytes, bytes]]) -> Reply:
        content = b"" if body is None else json.dumps(body).encode()
        raw_path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": raw_path, "raw_path": raw_path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"content-length", str(len(content)).encode()), *headers],
            "client": ("127.0.0.1", 40_000), "server": ("127.0.0.1", 15672), "state": {},
        }  # fmt: skip
        status, parts = 0, bytearray()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status, parts
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts += message.get("body", b"")

        async def run() -> None:
            task = asyncio.ensure_future(gate(scope, receive, send))
            while not task.done():
                self.pond.rest()
                if self.clock_runs:
                    self.pond.advance(1)
                await asyncio.sleep(0)
            await task

        self._runner.run(run())
        self.pond.rest()
        return Reply(status, bytes(parts))

    # --- what there is

    def snapshot(self) -> dict[str, Any]:
        """All that can be changed: what the management API shows of it, made without asking it, and what it does not
        show."""
        broker = self.broker
        taken: dict[str, Any] = {"definitions": exported(broker), "quotas": broker.quotas.items()}
        for vhost in broker.vhosts.values():
            shares = vhost.shares
            taken[vhost.name] = {
                "queues": {
                    queue.name: (int(queue.ready), int(queue.unsettled), int(queue.consumer_count))
                    for queue in vhost.all_queues()
                },
                "exchanges": sorted(vhost.router.exchanges),
                "topics": {
                    name: [
                        (int(one.start_offset), int(one.end_offset), repr(sorted(one.producers.known)))
                        for one in topic.partitions
                    ]
                    for name, topic in vhost.topics.by_name.items()
                },
                "groups": [self._group(vhost, group) for group in vhost.groups.groups()],
                "shares": [
                    (share_views._listed(vhost, group), [share_views._partition(p) for p in group.partitions.values()])
                    for group in shares.groups.values()
                ],
                "share configurations": {name: dict(shares.configs(name)) for name in sorted(shares.configured())},
                "transactions": [
                    (transaction_views._listed(vhost, one), list(one.partitions), list(one.groups))
                    for one in vhost.transactions.all()
                ],
                "operator policies": list(map(repr, vhost.policies.rows(OPERATOR_POLICY))),
            }
        # In a form of which nothing is a part that goes on changing.
        return {key: json.loads(json.dumps(value, default=repr)) for key, value in taken.items()}

    def _group(self, vhost: VirtualHost, group: Group) -> list[Any]:
        if group.modern is None:
            members = [group_views._member(group, one) for one in group.members.values()]
        else:
            members = [group_views._modern_member(vhost, group.modern, one) for one in group.modern.members.values()]
        return [group_views._listed(vhost, group), members, group_views._offsets(vhost, group)]

    def _fill_amqp(self) -> None:
        client = self.amqp_client(ROOT)
        for name, kind in ((DIRECT, "direct"), (FANOUT, "fanout"), (TOPICAL, "topic")):
            declare = methods.ExchangeDeclare(exchange=name, type=kind, durable=True)
            client.call(1, declare, methods.ExchangeDeclareOk)
        for name in (QUEUE, EMPTY_QUEUE, DEAD_QUEUE):
            client.declare(1, name, durable=True)
        client.declare(1, STREAM, durable=True, arguments={"x-queue-type": "stream"})
        client.call(1, methods.QueueBind(queue=QUEUE, exchange=DIRECT, routing_key="k"), methods.QueueBindOk)
        client.call(1, methods.ExchangeBind(destination=FANOUT, source=DIRECT, routing_key="k"), methods.ExchangeBindOk)
        for name in (QUEUE, QUEUE, STREAM):
            client.publish(1, name, SECRET_VALUE)
        assert client.frames() == []
        client.drop()

    def _fill_topics(self) -> None:
        self.pond.topic(TOPIC, 2)
        self.pond.topic(OTHER_TOPIC)
        for _ in range(3):
            assert self.root.produce(TOPIC, batch_of(SECRET_VALUE)).error_code.value == 0

    def _fill_groups(self) -> None:
        root = self.root
        joined = {"group_id": CREW, "session_timeout": 1_800_000, "rebalance_timeout": 60_000, "member_id": "",
                  "protocol_type": "consumer",
                  "protocols": [{"name": "range", "metadata": subscription(TOPIC)}]}  # fmt: skip
        root.send(JOIN_GROUP, 3, **joined)
        assert root.take_all() == []
        self.pond.advance(GROUP_INITIAL_REBALANCE_DELAY_MS)
        member = root.take()
        assert member.error_code.value == 0
        self.crew_member, self.crew_generation = str(member.member_id), int(member.generation_id)
        root.call(
            SYNC_GROUP, 5, group_id=CREW, generation_id=self.crew_generation, member_id=self.crew_member,
            protocol_type="consumer", protocol_name="range",
            assignments=[{"member_id": self.crew_member, "assignment": assignment(TOPIC, 0)}],
        )  # fmt: skip
        for topic in (TOPIC, OTHER_TOPIC):
            root.call(OFFSET_COMMIT, 9, **commit_tree(IDLE, topic))
        joins = {"member_epoch": 0, "subscribed_topic_names": [TOPIC, OTHER_TOPIC]}
        told = root.call(
            CONSUMER_HEARTBEAT, 1, group_id=MODERN, member_id=MEMBER, rebalance_timeout=600_000, topic_partitions=[],
            **joins,
        )  # fmt: skip
        assert told.error_code.value == 0
        self.modern_epoch = int(told.member_epoch)
        for group in (SHARERS, IDLE_SHARERS):
            told = root.call(SHARE_HEARTBEAT, 1, group_id=group, member_id=MEMBER, **joins)
            assert told.error_code.value == 0
            self.share_epoch = int(told.member_epoch)
            configs = [{"name": "share.auto.offset.reset", "config_operation": 0, "value": "earliest"}]
            resources = [{"resource_type": 32, "resource_name": group, "configs": configs}]
            root.call(ALTER_CONFIGS, 1, resources=resources, validate_only=False)
            reader = self.kafka_client(ROOT)
            reader.call(SHARE_FETCH, 2, **self.share_fetch_tree(group, 0))
            reader.call(SHARE_FETCH, 2, **self.share_fetch_tree(group, 1))
            if group == IDLE_SHARERS:
                reader.call(SHARE_FETCH, 2, **{**self.share_fetch_tree(group, -1), "topics": []})
                left = {"member_epoch": -1, "subscribed_topic_names": None}
                root.call(SHARE_HEARTBEAT, 1, group_id=group, member_id=MEMBER, **left)

    def _fill_transaction(self) -> None:
        begun = self.root.call(
            INIT_PRODUCER_ID, 4, transactional_id=TRANSACTION, transaction_timeout=600_000, producer_id=-1,
            producer_epoch=-1,
        )  # fmt: skip
        self.producer = (int(begun.producer_id), int(begun.producer_epoch))
        assert begun.error_code.value == 0
        added = self.root.call(ADD_PARTITIONS, 3, **self.add_partitions_tree(0))
        assert "41" not in str(added.results_by_topic_v3_and_below)
        batch = batch_of(SECRET_VALUE, producer=(*self.producer, 0), attributes=TRANSACTIONAL)
        written = self.root.call(0, 9, **produce_tree({TOPIC: {0: batch}}, transactional_id=TRANSACTION))
        assert written.responses[0].partition_responses[0].error_code.value == 0

    def _fill_rules(self) -> None:
        self.grant("read", "topic", OTHER_TOPIC, user="somebody")
        self.broker.quotas.alter({"user": "somebody"}, {"producer_byte_rate": 1024.0})
        home, parameters = self.broker.vhosts[HOME], self.broker.parameters
        for name, kind in (("p", POLICY), ("o", OPERATOR_POLICY)):
            home.put_policy(checked_policy(HOME, name, kind, "^x", {"max-length": 1}, 0, "all"))
        parameters.put_global("g", 1)
        parameters.put_vhost_limit(HOME, "max-queues", 1_000)
        parameters.put_user_limits(ROOT, {"max-connections": 1_000})
        parameters.put(HOME, "shovel", "s", {"src": "x"})
        self.access.set_topic_permission(ROOT, HOME, TOPICAL, ".*", ".*")

    # --- requests that several tests need

    def add_partitions_tree(self, *numbers: int) -> dict[str, Any]:
        return {
            "v3_and_below_transactional_id": TRANSACTION,
            "v3_and_below_producer_id": self.producer[0],
            "v3_and_below_producer_epoch": self.producer[1],
            "v3_and_below_topics": [{"name": TOPIC, "partitions": list(numbers)}],
        }

    def share_fetch_tree(self, group: str, epoch: int, *, member: str = MEMBER) -> dict[str, Any]:
        partition = {"partition_index": 0, "acknowledgement_batches": []}
        return {
            "group_id": group, "member_id": member, "share_session_epoch": epoch, "max_wait": 0, "min_bytes": 1,
            "max_bytes": 1 << 20, "max_records": 1, "batch_size": 1,
            "topics": [{"topic_id": self.pond.topics.by_name[TOPIC].id, "partitions": [partition]}],
        }  # fmt: skip


def commit_tree(group: str, topic: str, offset: int = 1) -> dict[str, Any]:
    partition = {"partition_index": 0, "committed_offset": offset, "committed_leader_epoch": 0,
                 "committed_metadata": ""}  # fmt: skip
    return {
        "group_id": group, "generation_id_or_member_epoch": -1, "member_id": "",
        "topics": [{"name": topic, "partitions": [partition]}],
    }  # fmt: skip


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two pictures differ, for people."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{place}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{place}[{number}]")]
    return [f"{place}: {before!r} -> {after!r}"]


@contextmanager
def world_of() -> Iterator[World]:
    world = World()
    try:
        yield world
    finally:
        world.close()
