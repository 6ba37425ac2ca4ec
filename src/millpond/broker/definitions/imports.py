"""A document into a broker.

An import is planned first and done then: whatever is wrong with the document is found before anything is changed, and
what is done is done in one turn, and so in one transaction of the catalog. Queues, exchanges and bindings that exist
are never changed; users, permissions, policies and parameters are replaced.

Read are the files of RabbitMQ 3.6 and later. Leniently, with a warning in the log: names that begin with "amq." are
passed over, as RabbitMQ does; so are the `ha-` keys of policies, which RabbitMQ 4 has no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import LimitExceeded, PeerError, PreconditionFailed
from millpond.base.limits import ACCESS_RULES_MAX, NAME_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX, QUOTA_ENTITIES_MAX
from millpond.broker import password_hashes, scram_credentials
from millpond.broker.access import ALLOW, ANY, DENY, LITERAL, PREFIX, RULE_OPERATIONS, RULE_RESOURCES
from millpond.broker.arguments import check_queue_arguments, checked_default_queue_type, queue_type
from millpond.broker.definitions.document import DefinedObject, listed
from millpond.broker.exchanges.exchange import Exchange
from millpond.broker.exchanges.registry import create_exchange, predeclared_exchanges
from millpond.broker.exchanges.topic_source import START_ARGUMENT, TopicSource
from millpond.broker.parameters import GLOBAL, OPERATOR_POLICIES, USER_LIMITS, VHOST_LIMITS, Key
from millpond.broker.policies import OPERATOR_POLICY, POLICY, Policies, checked_policy
from millpond.broker.queues.registry import QUEUE_TYPES
from millpond.broker.queues.settings import TYPE_CLASSIC, TYPE_SHARE, TYPE_STREAM
from millpond.broker.scram_credentials import ScramCredential
from millpond.broker.shares.share_queue import check_source
from millpond.broker.streams.subscription import starting_place
from millpond.broker.streams.topic_settings import checked_config
from millpond.broker.streams.topics import check_topic_name
from millpond.broker.vhost import RESERVED_PREFIX
from millpond.catalog.rows import DESTINATION_EXCHANGE, DESTINATION_QUEUE, RuleRow

if TYPE_CHECKING:
    from millpond.broker.broker import Broker

logger = logging.getLogger(__name__)


# The hash of a password, and what SCRAM needs of it.
HashedPassword = tuple[str, tuple[ScramCredential, ...]]


def hashed_passwords(document: object, hash_password: Callable[[bytes], str]) -> dict[str, HashedPassword]:
    """The hashes of the passwords that a document has in clear, by user, for `Import`. Blocks for their time."""
    hashes = {}
    for one in listed(document, "users"):
        if "password" in one.fields:
            password = one.text("password").encode(errors="surrogatepass")
            if password:
                hashes[one.text("name")] = hash_password(password), scram_credentials.of_password(password)
    return hashes


class Import:
    """A document, checked against a broker that does not change between `Import(...)` and `run`.

    `vhost` is the virtual host that the document is of; None: the document is of a whole broker. Raises
    PreconditionFailed that names the object which cannot be imported.
    """

    def __init__(
        self,
        broker: Broker,
        document: object,
        vhost: str | None = None,
        passwords: Mapping[str, HashedPassword] | None = None,
    ) -> None:
        self._broker: Final = broker
        self._document: Final = document
        self._into: Final = vhost
        self._passwords: Final = passwords or {}
        self._steps: Final[list[Callable[[], object]]] = []
        # What will be there when the steps that are planned so far have run.
        self._vhosts: Final = set(broker.vhosts)
        self._users: Final = {row.name for row in broker.access.exported_users()}
        self._exchanges: Final[dict[tuple[str, str], Exchange]] = {
            (where.name, exchange.name): exchange
            for where in broker.vhosts.values()
            for exchange in where.router.exchanges.values()
        }
        self._default_types: Final = {where.name: where.default_queue_type for where in broker.vhosts.values()}
        self._queues: Final = {(where.name, name) for where in broker.vhosts.values() for name in where.queues}
        # How many partitions each has.
        self._topics: Final = {
            (where.name, topic.name): len(topic.partitions)
            for where in broker.vhosts.values()
            for topic in where.topics.by_name.values()
        }
        self._passed_over: Final[set[tuple[str, str, str]]] = set()
        # What is set anew or for the first time: policies by virtual host and kind, parameters by their keys.
        self._policies: Final[dict[tuple[str, str], set[str]]] = {}
        self._parameters: Final[set[Key]] = set()
        self._rules: Final = {rule for name in broker.vhosts for rule in broker.access.list_rules(name)}
        self._quota_entities: Final[set[tuple[tuple[str, str | None], ...]]] = {
            tuple(sorted(entity.items(), key=str)) for entity, _ in broker.quotas.items()
        }
        self._queues_max: Final = {name: int(where.queues_max) for name, where in broker.vhosts.items()}
        if vhost is None:
            self._plan("users", self._user)
            self._plan("vhosts", self._vhost)
            self._plan("permissions", self._permission)
            self._plan("topic_permissions", self._topic_permission)
            self._plan("acls", self._acl)
            self._plan("quotas", self._quota)
            self._plan("global_parameters", self._global_parameter)
        self._plan("parameters", self._parameter)
        self._plan("policies", self._policy)
        self._plan("exchanges", self._exchange)
        self._plan("queues", self._queue)
        self._plan("topics", self._topic)
        # Those over topics, which are all known now.
        self._plan("queues", self._share_queue)
        self._plan("bindings", self._binding)
        self._check_limits()

    def run(self) -> None:
        """Do it. Nothing in it can fail but the disk."""
        for step in self._steps:
            step()
        self._broker.turn.touch()

    def _plan(self, category: str, planned: Callable[[DefinedObject], None]) -> None:
        for one in listed(self._document, category):
            try:
                one.check()
                planned(one)
            except PeerError as error:
                raise PreconditionFailed(f"{one.shown(self._into)}: {str(error).strip()}") from error

    def _then(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def _vhost_of(self, one: DefinedObject) -> str:
        if self._into is not None:
            return self._into
        if "vhost" not in one.fields:
            raise PreconditionFailed("names no virtual host: import definitions of one virtual host into that one")
        name = one.text("vhost")
        if name not in self._vhosts:
            raise PreconditionFailed(f'Please create virtual host "{name}" prior to importing definitions.')
        return name

    # --- Users and virtual hosts ----------------------------------------------------------------------------------

    def _user(self, one: DefinedObject) -> None:
        name, access, parameters = one.name(), self._broker.access, self._broker.parameters
        tags = one.fields.get("tags", "administrator" if one.fields.get("administrator") is True else "")
        tags = tags.split(",") if isinstance(tags, str) else tags
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise PreconditionFailed("tags are a text or a list of texts")
        names = tuple(tag.strip() for tag in tags if tag.strip())
        if one.text("password", "") and one.text("password_hash", ""):
            raise PreconditionFailed("both a password and a password_hash are given")
        stored, scram = self._passwords.get(name, (None, ()))
        if stored is None:
            stored = password_hashes.from_definitions(
                one.text("password_hash", ""), one.text("hashing_algorithm", "") or None
            )
            given = one.fields.get("scram_credentials") or []
            if not isinstance(given, list):
                raise PreconditionFailed("scram_credentials is a list")
            scram = tuple(scram_credentials.from_definitions(fields) for fields in given)
        access.check_user(name, stored, names)
        limits = one.fields.get("limits") or {}
        parameters.check_user_limits(limits)
        if limits:
            self._parameters.add((GLOBAL, USER_LIMITS, name))
        self._users.add(name)
        self._then(lambda: access.put_user(name, stored, names, scram))
        self._then(lambda: parameters.put_user_limits(name, dict(limits)))

    def _vhost(self, one: DefinedObject) -> None:
        name, broker = one.name(), self._broker
        if name not in self._vhosts:
            self._vhosts.add(name)
            self._exchanges.update(((name, exchange.name), exchange) for exchange in predeclared_exchanges())
        metadata = one.fields.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise PreconditionFailed("metadata is an object")
        told = DefinedObject("metadata", {**one.fields, **metadata})
        # What the document does not say stays as it is.
        current = broker.vhosts.get(name)
        description = told.text("description", current.description if current is not None else "")
        kind = checked_default_queue_type(
            told.text("default_queue_type", current.default_queue_type if current is not None else "")
        )
        self._default_types[name] = kind
        tags = told.fields.get("tags", list(current.tags) if current is not None else None) or []
        tags = tags.split(",") if isinstance(tags, str) else tags
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise PreconditionFailed("tags are a text or a list of texts")
        self._then(lambda: broker.create_vhost(name))
        self._then(lambda: broker.describe_vhost(name, description, tuple(tags), kind))

    def _permission(self, one: DefinedObject) -> None:
        user, vhost, access = one.text("user"), self._vhost_of(one), self._broker.access
        if user not in self._users:
            raise PreconditionFailed(f"no user '{user}'")
        patterns = one.text("configure"), one.text("write"), one.text("read")
        access.check_patterns(*patterns)
        self._then(lambda: access.set_permission(user, vhost, *patterns))

    def _topic_permission(self, one: DefinedObject) -> None:
        user, vhost, exchange = one.text("user"), self._vhost_of(one), one.text("exchange")
        access = self._broker.access
        if user not in self._users:
            raise PreconditionFailed(f"no user '{user}'")
        write, read = one.text("write"), one.text("read")
        access.check_patterns(write, read)
        # The exchange need not be there: left out, they would not hold its users when it is declared later.
        self._then(lambda: access.set_topic_permission(user, vhost, exchange, write, read))

    def _acl(self, one: DefinedObject) -> None:
        """One of Kafka's, whose user need not exist."""
        vhost, access = self._vhost_of(one), self._broker.access
        rule = RuleRow(
            one.text("user"),
            vhost,
            one.text("resource_type"),
            one.text("pattern_type", LITERAL),
            one.text("pattern"),
            one.text("operation"),
            one.text("effect", ALLOW),
            one.text("host", ANY),
        )
        for value, known in (
            (rule.resource_type, RULE_RESOURCES),
            (rule.pattern_type, (LITERAL, PREFIX)),
            (rule.operation, RULE_OPERATIONS),
            (rule.effect, (ALLOW, DENY)),
        ):
            if value not in known:
                raise PreconditionFailed(f"'{value[:80]}' is none of {', '.join(known)}")
        access.check_rule(rule)
        self._rules.add(rule)
        if len(self._rules) > ACCESS_RULES_MAX:
            raise LimitExceeded(f"there are at most {ACCESS_RULES_MAX} permissions")
        self._then(lambda: access.add_rule(rule))

    def _quota(self, one: DefinedObject) -> None:
        quotas = self._broker.quotas
        entity, values = one.table("entity"), one.table("quotas")
        if not all(name is None or isinstance(name, str) for name in entity.values()):
            raise PreconditionFailed("an entity has names, or null")
        if not values or not all(isinstance(value, (int, float)) for value in values.values()):
            raise PreconditionFailed("quotas are numbers")
        names: dict[str, str | None] = {
            kind: name for kind, name in entity.items() if name is None or isinstance(name, str)
        }
        numbers: dict[str, float | None] = {
            key: float(value) for key, value in values.items() if isinstance(value, (int, float))
        }
        quotas.check(names, numbers)
        self._quota_entities.add(tuple(sorted(names.items(), key=str)))
        if len(self._quota_entities) > QUOTA_ENTITIES_MAX:
            raise LimitExceeded(f"there are quotas of at most {QUOTA_ENTITIES_MAX} entities")
        self._then(lambda: quotas.alter(names, numbers))

    # --- Parameters and policies ----------------------------------------------------------------------------------

    def _global_parameter(self, one: DefinedObject) -> None:
        name, value, parameters = one.name(), one.fields.get("value"), self._broker.parameters
        # What the other cluster calls itself, and what it remembers of itself, is not ours.
        if name != "cluster_name" and not name.startswith("internal"):
            self._parameters.add((GLOBAL, "", name))
            self._then(lambda: parameters.put_global(name, value))

    def _parameter(self, one: DefinedObject) -> None:
        name, vhost, component = one.name(), self._vhost_of(one), one.text("component")
        value = one.fields.get("value")
        if component == OPERATOR_POLICIES and isinstance(value, dict) and isinstance(value.get("definition"), dict):
            value = {**value, "definition": _without_mirroring(value["definition"], one)}
            if not value["definition"]:
                return
        parameters = self._broker.parameters
        parameters.check(vhost, component, name, value)
        if component == VHOST_LIMITS and isinstance(value, dict):
            self._queues_max[vhost] = int(value.get("max-queues", -1))
        if component == OPERATOR_POLICIES:
            self._policies.setdefault((vhost, OPERATOR_POLICY), set()).add(name)
        else:
            self._parameters.add((vhost, component, name))
        self._then(lambda: parameters.put(vhost, component, name, value))

    def _policy(self, one: DefinedObject) -> None:
        name, vhost, fields = one.name(), self._vhost_of(one), one.fields
        definition = fields.get("definition")
        if isinstance(definition, dict) and definition:
            definition = _without_mirroring(definition, one)
            if not definition:
                return
        row = checked_policy(
            vhost, name, POLICY, fields.get("pattern"), definition, fields.get("priority"), fields.get("apply-to")
        )
        self._policies.setdefault((vhost, POLICY), set()).add(name)
        self._then(lambda: self._broker.vhost(vhost).put_policy(row))

    # --- Exchanges, queues, bindings ------------------------------------------------------------------------------

    def _exchange(self, one: DefinedObject) -> None:
        name, vhost = one.text("name"), self._vhost_of(one)
        if (vhost, name) in self._exchanges:
            return
        if name.startswith(RESERVED_PREFIX):
            self._pass_over("exchange", vhost, name)
            return
        name = one.name()
        if vhost in self._broker.vhosts and self._broker.vhosts[vhost].sources.is_bound(name):
            raise PreconditionFailed("there is a topic of this name that has bindings")
        durable, auto_delete, internal = one.flag("durable", True), one.flag("auto_delete"), one.flag("internal")
        kind, arguments = one.text("type"), one.table("arguments")
        if not isinstance(arguments.get("alternate-exchange", ""), str):
            raise PreconditionFailed("invalid type for arg 'alternate-exchange'")
        # It only answers for the one to come, which is made by its virtual host.
        self._exchanges[vhost, name] = create_exchange(name, kind, durable, auto_delete, internal, arguments)
        self._then(
            lambda: self._broker.vhost(vhost).declare_exchange(name, kind, durable, auto_delete, internal, arguments)
        )

    def _queue(self, one: DefinedObject) -> None:
        name, vhost = one.name(), self._vhost_of(one)
        if name.startswith(RESERVED_PREFIX):
            self._pass_over("queue", vhost, name)
            return
        if (vhost, name) in self._queues:
            return
        durable, auto_delete = one.flag("durable", True), one.flag("auto_delete")
        arguments = self._queue_arguments(one, vhost, durable, auto_delete)
        if queue_type(arguments) == TYPE_SHARE:
            # Its topic may be one of those that come after the queues.
            return
        is_stream = queue_type(arguments) == TYPE_STREAM
        if (vhost, name) in self._topics:
            if is_stream:
                return
            raise PreconditionFailed("there is a topic of this name")
        resource = f"queue '{name}' in vhost '{vhost}'"
        check_queue_arguments(arguments, resource)
        QUEUE_TYPES[queue_type(arguments)].check(resource, durable, False, auto_delete, False)
        if is_stream:
            self._topics[vhost, name] = 1
        else:
            self._queues.add((vhost, name))
        self._then(lambda: self._broker.vhost(vhost).declare_queue(name, durable, False, auto_delete, arguments, None))

    def _queue_arguments(self, one: DefinedObject, vhost: str, durable: bool, auto_delete: bool) -> dict[str, object]:
        """A queue's arguments with the type that it will have: the one that is told, or its virtual host's default."""
        arguments, kind = one.table("arguments"), one.text("type", "")
        default = QUEUE_TYPES.get(self._default_types.get(vhost, ""), QUEUE_TYPES[TYPE_CLASSIC])
        if "x-queue-type" in arguments:
            return arguments
        if kind:
            # A classic queue says so only where it would become something else.
            if kind != TYPE_CLASSIC or default.name != TYPE_CLASSIC:
                arguments["x-queue-type"] = kind
        elif default.name != TYPE_CLASSIC and default.suits(durable, False, auto_delete):
            arguments["x-queue-type"] = default.name
        return arguments

    def _share_queue(self, one: DefinedObject) -> None:
        name, vhost = one.name(), self._vhost_of(one)
        durable, auto_delete = one.flag("durable", True), one.flag("auto_delete")
        arguments = self._queue_arguments(one, vhost, durable, auto_delete)
        if queue_type(arguments) != TYPE_SHARE or (vhost, name) in self._queues or name.startswith(RESERVED_PREFIX):
            return
        if (vhost, name) in self._topics:
            raise PreconditionFailed("there is a topic of this name")
        resource = f"queue '{name}' in vhost '{vhost}'"
        check_queue_arguments(arguments, resource)
        QUEUE_TYPES[TYPE_SHARE].check(resource, durable, False, auto_delete, False)
        check_source(arguments, (vhost, arguments.get("x-source-topic")) in self._topics, resource)
        found = self._broker.vhosts.get(vhost)
        if found is not None:
            found.groups.shares.check_name(name)
        self._queues.add((vhost, name))
        self._then(lambda: self._broker.vhost(vhost).declare_queue(name, durable, False, auto_delete, arguments, None))

    def _topic(self, one: DefinedObject) -> None:
        name, vhost, partitions = one.name(), self._vhost_of(one), one.fields.get("partitions", 1)
        if (vhost, name) in self._topics:
            return
        arguments = None
        if one.fields.get("arguments") is None:
            check_topic_name(name)
        else:
            # AMQP has declared it as a stream, which may have any name.
            arguments = one.table("arguments")
            check_queue_arguments(arguments, f"topic '{name}' in vhost '{vhost}'")
            if queue_type(arguments) != TYPE_STREAM:
                raise PreconditionFailed("its arguments are not those of a stream")
        if (vhost, name) in self._queues:
            raise PreconditionFailed("there is a queue of this name")
        if not isinstance(partitions, int) or isinstance(partitions, bool):
            raise PreconditionFailed("partitions is no number")
        if not 1 <= partitions <= PARTITIONS_PER_TOPIC_MAX:
            raise PreconditionFailed(f"a topic has 1 to {PARTITIONS_PER_TOPIC_MAX} partitions")
        configs: dict[str, str] = {}
        for key, value in one.table("configs").items():
            configs[key] = checked_config(key, value if isinstance(value, str) else json.dumps(value))
        self._topics[vhost, name] = partitions
        self._then(lambda: self._broker.vhost(vhost).topics.recreate(name, partitions, configs, arguments))

    def _binding(self, one: DefinedObject) -> None:
        vhost, source_name, name = self._vhost_of(one), one.text("source"), one.text("destination")
        kind, routing_key, arguments = one.text("destination_type"), one.text("routing_key"), one.table("arguments")
        if kind not in {DESTINATION_QUEUE, DESTINATION_EXCHANGE}:
            raise PreconditionFailed(f"destination_type '{kind}' is neither queue nor exchange")
        if not source_name:
            # Every queue has its own binding to the default exchange without being told.
            return
        if {("exchange", vhost, source_name), (kind, vhost, name)} & self._passed_over:
            logger.warning("%s is not imported: an end of it is not", one.shown(self._into))
            return
        if len(routing_key.encode(errors="surrogatepass")) > NAME_BYTES_MAX:
            raise PreconditionFailed(f"a routing key has at most {NAME_BYTES_MAX} bytes")
        source = self._exchanges.get((vhost, source_name))
        if source is None and (vhost, source_name) in self._topics:
            source = TopicSource(source_name)
            starting_place(arguments.get(START_ARGUMENT), f"topic '{source_name}'", int(self._broker.turn.now_ms))
        if source is None:
            raise PreconditionFailed(f"no exchange '{source_name}' in vhost '{vhost}'")
        if not (self._has_queue(vhost, name) if kind == DESTINATION_QUEUE else (vhost, name) in self._exchanges):
            raise PreconditionFailed(f"no {kind} '{name}' in vhost '{vhost}'")
        source.validate(routing_key, arguments)

        def bind() -> None:
            where = self._broker.vhost(vhost)
            destination = where.queue(name, None) if kind == DESTINATION_QUEUE else where.exchange_bound(name)
            where.bind(where.exchange(source_name), destination, routing_key, arguments)

        self._then(bind)

    def _has_queue(self, vhost: str, name: str) -> bool:
        """Whether there will be something to bind: a queue, a topic, or a partition of a topic with several."""
        if (vhost, name) in self._queues or (vhost, name) in self._topics:
            return True
        base, _, number = name.rpartition("-")
        partitions = self._topics.get((vhost, base), 0)
        return partitions > 1 and number in map(str, range(partitions))

    def _pass_over(self, kind: str, vhost: str, name: str) -> None:
        self._passed_over.add((kind, vhost, name))
        logger.warning("%s '%s' in vhost '%s' is not imported: 'amq.' is the broker's own prefix", kind, name, vhost)

    def _check_limits(self) -> None:
        broker = self._broker
        broker.parameters.check_room(self._parameters)
        for (vhost, kind), names in self._policies.items():
            policies = broker.vhosts[vhost].policies if vhost in broker.vhosts else Policies()
            policies.check_room(kind, names)
        counts: dict[str, int] = {}
        for vhost, _ in self._queues:
            counts[vhost] = counts.get(vhost, 0) + 1
        for (vhost, _), partitions in self._topics.items():
            counts[vhost] = counts.get(vhost, 0) + partitions
        for vhost, count in counts.items():
            present = self._present(vhost)
            limit = self._queues_max.get(vhost, -1)
            if count > present and 0 <= limit < count:
                raise PreconditionFailed(
                    f'Adding {count - present} queue(s) to virtual host "{vhost}" would exceed the limit of {limit} '
                    f"queue(s). This virtual host currently has {present} queue(s) defined. Import aborted!"
                )
        added = sum(counts.values()) - sum(map(self._present, broker.vhosts))
        if broker.context.queue_count + added > broker.context.queues_max:
            raise PreconditionFailed(f"node queue limit ({broker.context.queues_max}) would be exceeded")

    def _present(self, vhost: str) -> int:
        """How many queues and partitions a virtual host has now."""
        found = self._broker.vhosts.get(vhost)
        return 0 if found is None else len(found.queues) + int(found.topics.partition_count)


def _without_mirroring(definition: dict[str, Any], one: DefinedObject) -> dict[str, Any]:
    """The definition without the keys of mirrored queues, of which every RabbitMQ 3 has some and RabbitMQ 4 none."""
    remaining = {key: value for key, value in definition.items() if not key.startswith("ha-")}
    if len(remaining) != len(definition):
        logger.warning("%s: keys of mirrored queues are left out", one.shown(None))
    return remaining
