"""Definitions: everything but messages as one JSON document, in RabbitMQ's format, out of a broker and into one.

An import is planned first and done then: whatever is wrong with the document is found before anything is changed, and
what is done is done in one turn, and so in one transaction of the catalog. Queues, exchanges and bindings that exist
are never changed; users, permissions, policies and parameters are replaced.

Read are the files of RabbitMQ 3.6 and later. Leniently, with a warning in the log: names that begin with "amq." are
passed over, as RabbitMQ does; so are the `ha-` keys of policies, which RabbitMQ 4 has no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from millpond import __version__
from millpond.base.errors import PeerError, PreconditionFailed
from millpond.base.limits import FIELD_VALUE_DEPTH_MAX, NAME_BYTES_MAX
from millpond.broker import password_hashes
from millpond.broker.arguments import COUNT_MAX, check_queue_arguments, checked_default_queue_type, queue_type
from millpond.broker.exchanges.exchange import Binding, Exchange, canonical
from millpond.broker.exchanges.registry import create_exchange, predeclared_exchanges
from millpond.broker.policies import POLICY, checked_policy
from millpond.broker.queues.registry import QUEUE_TYPES
from millpond.broker.vhost import REPLY_PREFIX, RESERVED_PREFIX
from millpond.catalog.rows import DESTINATION_EXCHANGE, DESTINATION_QUEUE, PolicyRow

if TYPE_CHECKING:
    from millpond.broker.broker import Broker
    from millpond.broker.queues.message_queue import MessageQueue
    from millpond.broker.vhost import VirtualHost

logger = logging.getLogger(__name__)

# The release whose format and rules these are. RabbitMQ takes files of any release.
FORMAT_VERSION: Final = "4.0.0"

Object = dict[str, Any]


# --- Export -----------------------------------------------------------------------------------------------------------

# Everything by name, so that two exports can be compared line by line.


def exported(broker: Broker) -> Object:
    """The whole broker."""
    users = []
    for row in broker.access.exported_users():
        password_hash, algorithm = password_hashes.to_definitions(row.password_hash)
        users.append(
            {
                "name": row.name,
                "password_hash": password_hash,
                "hashing_algorithm": algorithm,
                "tags": list(row.tags),
                "limits": broker.parameters.limits_of_user(row.name),
            }
        )
    vhosts = [vhost for _, vhost in sorted(broker.vhosts.items())]
    return {
        **_header(),
        "rabbitmq_definition_format": "cluster",
        "explanation": "Definitions of a Millpond broker",
        "users": users,
        "vhosts": [_vhost(broker, vhost) for vhost in vhosts],
        "permissions": [
            {"user": row.user, "vhost": row.vhost, "configure": row.configure, "write": row.write, "read": row.read}
            for row in broker.access.list_permissions()
        ],
        # There are none here.
        "topic_permissions": [],
        "parameters": _parameters(broker, None),
        "global_parameters": [
            {"name": row.name, "value": row.value}
            for row in broker.parameters.global_rows()
            if not row.name.startswith("internal")
        ],
        "policies": [policy(row) for vhost in vhosts for row in vhost.policies.rows(POLICY)],
        "queues": [_queue(queue, vhost) for vhost in vhosts for queue in _lasting_queues(vhost)],
        "exchanges": [_exchange(exchange, vhost) for vhost in vhosts for exchange in _own_exchanges(vhost)],
        "bindings": [binding for vhost in vhosts for binding in _bindings(vhost)],
    }


def exported_vhost(broker: Broker, vhost: VirtualHost) -> Object:
    """One virtual host; its objects do not name it, so that they can be imported into another one."""
    described = _vhost(broker, vhost)
    return {
        **_header(),
        "rabbitmq_definition_format": "single_virtual_host",
        "original_vhost_name": vhost.name,
        "explanation": f"Definitions of virtual host '{vhost.name}'",
        "metadata": described["metadata"],
        "description": vhost.description,
        "limits": described["limits"],
        "parameters": _without_vhost(_parameters(broker, vhost.name)),
        "policies": _without_vhost(policy(row) for row in vhost.policies.rows(POLICY)),
        "queues": _without_vhost(_queue(queue, vhost) for queue in _lasting_queues(vhost)),
        "exchanges": _without_vhost(_exchange(exchange, vhost) for exchange in _own_exchanges(vhost)),
        "bindings": _without_vhost(_bindings(vhost)),
    }


def policy(row: PolicyRow) -> Object:
    """A policy as RabbitMQ shows it."""
    return {
        "vhost": row.vhost,
        "name": row.name,
        "pattern": row.pattern,
        "apply-to": row.apply_to,
        "definition": row.definition,
        "priority": row.priority,
    }


def _header() -> Object:
    return {
        "rabbit_version": FORMAT_VERSION,
        "rabbitmq_version": FORMAT_VERSION,
        "product_name": "Millpond",
        "product_version": __version__,
    }


def _without_vhost(objects: Iterable[Object]) -> list[Object]:
    return [{key: value for key, value in one.items() if key != "vhost"} for one in objects]


def _vhost(broker: Broker, vhost: VirtualHost) -> Object:
    metadata = {
        "description": vhost.description,
        "tags": list(vhost.tags),
        "default_queue_type": vhost.default_queue_type,
    }
    limits = broker.parameters.limits_of_vhost(vhost.name)
    return {"name": vhost.name, "limits": limits, "metadata": metadata, **metadata}


def _parameters(broker: Broker, vhost: str | None) -> list[Object]:
    return [
        {"vhost": row.vhost, "component": row.component, "name": row.name, "value": row.value}
        for row in broker.parameters.rows(vhost=vhost)
    ]


def _lasting_queues(vhost: VirtualHost) -> Iterator[MessageQueue]:
    return (queue for _, queue in sorted(vhost.queues.items()) if _is_lasting(queue))


def _is_lasting(queue: MessageQueue) -> bool:
    # What belongs to a connection goes with it: nobody could declare it again.
    return queue.exclusive_owner is None and not queue.name.startswith(REPLY_PREFIX)


def _own_exchanges(vhost: VirtualHost) -> Iterator[Exchange]:
    exchanges = sorted(vhost.router.exchanges.items())
    return (one for name, one in exchanges if name and not name.startswith(RESERVED_PREFIX))


def _queue(queue: MessageQueue, vhost: VirtualHost) -> Object:
    return {
        "name": queue.name,
        "vhost": vhost.name,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "arguments": queue.arguments,
    }


def _exchange(exchange: Exchange, vhost: VirtualHost) -> Object:
    return {
        "name": exchange.name,
        "vhost": vhost.name,
        "type": exchange.type,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        "arguments": exchange.arguments,
    }


def _binding_order(binding: Binding) -> tuple[str, str, str, str]:
    destination = binding.destination
    return destination.kind, destination.name, binding.routing_key, canonical(binding.arguments)


def _bindings(vhost: VirtualHost) -> Iterator[Object]:
    for _, source in sorted(vhost.router.exchanges.items()):
        for binding in sorted(source.bindings(), key=_binding_order):
            queue = vhost.queues.get(binding.destination.name)
            if binding.destination.kind == DESTINATION_QUEUE and (queue is None or not _is_lasting(queue)):
                continue
            yield {
                "source": source.name,
                "vhost": vhost.name,
                "destination": binding.destination.name,
                "destination_type": binding.destination.kind,
                "routing_key": binding.routing_key,
                "arguments": binding.arguments,
            }


# --- Import -----------------------------------------------------------------------------------------------------------


def hashed_passwords(document: object, hash_password: Callable[[bytes], str]) -> dict[str, str]:
    """The hashes of the passwords that a document has in clear, by user, for `Import`. Blocks for their time."""
    hashes = {}
    for one in _listed(document, "users"):
        if "password" in one.fields:
            with_password = one.text("password")
            if with_password:
                hashes[one.text("name")] = hash_password(with_password.encode(errors="surrogatepass"))
    return hashes


class Import:
    """A document, checked against a broker that does not change between `Import(...)` and `run`.

    `vhost` is the virtual host that the document is of; None: the document is of a whole broker. Raises
    PreconditionFailed that names the object which cannot be imported.
    """

    def __init__(
        self, broker: Broker, document: object, vhost: str | None = None, passwords: Mapping[str, str] | None = None
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
        self._queues: Final = {(where.name, name) for where in broker.vhosts.values() for name in where.queues}
        self._passed_over: Final[set[tuple[str, str, str]]] = set()
        self._queues_max: Final = {name: int(where.queues_max) for name, where in broker.vhosts.items()}
        if vhost is None:
            self._plan("users", self._user)
            self._plan("vhosts", self._vhost)
            self._plan("permissions", self._permission)
            self._topic_permissions()
            self._plan("global_parameters", self._global_parameter)
        self._plan("parameters", self._parameter)
        self._plan("policies", self._policy)
        self._plan("exchanges", self._exchange)
        self._plan("queues", self._queue)
        self._plan("bindings", self._binding)
        self._check_limits()

    def run(self) -> None:
        """Do it. Nothing in it can fail but the disk."""
        for step in self._steps:
            step()
        self._broker.turn.touch()

    def _plan(self, category: str, planned: Callable[[_Object], None]) -> None:
        for one in _listed(self._document, category):
            try:
                planned(one)
            except PeerError as error:
                raise PreconditionFailed(f"{one.shown(self._into)}: {str(error).strip()}") from error

    def _then(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def _vhost_of(self, one: _Object) -> str:
        if self._into is not None:
            return self._into
        if "vhost" not in one.fields:
            raise PreconditionFailed("names no virtual host: import definitions of one virtual host into that one")
        name = one.text("vhost")
        if name not in self._vhosts:
            raise PreconditionFailed(f'Please create virtual host "{name}" prior to importing definitions.')
        return name

    # --- Users and virtual hosts ----------------------------------------------------------------------------------

    def _user(self, one: _Object) -> None:
        name, access, parameters = one.name(), self._broker.access, self._broker.parameters
        tags = one.fields.get("tags", "administrator" if one.fields.get("administrator") is True else "")
        tags = tags.split(",") if isinstance(tags, str) else tags
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise PreconditionFailed("tags are a text or a list of texts")
        names = tuple(str(checked_value(tag)).strip() for tag in tags if tag.strip())
        if one.text("password", "") and one.text("password_hash", ""):
            raise PreconditionFailed("both a password and a password_hash are given")
        stored = self._passwords.get(name)
        if stored is None:
            stored = password_hashes.from_definitions(
                one.text("password_hash", ""), one.text("hashing_algorithm", "") or None
            )
        access.check_user(name, stored, names)
        limits = one.fields.get("limits") or {}
        parameters.check_user_limits(limits)
        self._users.add(name)
        self._then(lambda: access.put_user(name, stored, names))
        self._then(lambda: parameters.put_user_limits(name, dict(limits)))

    def _vhost(self, one: _Object) -> None:
        name, broker = one.name(), self._broker
        if name not in self._vhosts:
            self._vhosts.add(name)
            self._exchanges.update(((name, exchange.name), exchange) for exchange in predeclared_exchanges())
        metadata = one.fields.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise PreconditionFailed("metadata is an object")
        told = _Object("metadata", {**one.fields, **metadata})
        description, kind = told.text("description", ""), told.text("default_queue_type", "")
        tags = told.fields.get("tags") or []
        tags = checked_value(tags.split(",") if isinstance(tags, str) else tags)
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise PreconditionFailed("tags are a text or a list of texts")
        kind = checked_default_queue_type(kind)
        self._then(lambda: broker.create_vhost(name))
        self._then(lambda: broker.describe_vhost(name, description, tuple(tags), kind))

    def _permission(self, one: _Object) -> None:
        user, vhost, access = one.text("user"), self._vhost_of(one), self._broker.access
        if user not in self._users:
            raise PreconditionFailed(f"no user '{user}'")
        patterns = one.text("configure"), one.text("write"), one.text("read")
        access.check_patterns(*patterns)
        self._then(lambda: access.set_permission(user, vhost, *patterns))

    def _topic_permissions(self) -> None:
        count = sum(1 for _ in _listed(self._document, "topic_permissions"))
        if count:
            logger.warning("%d topic permissions are not imported: every routing key is allowed here", count)

    # --- Parameters and policies ----------------------------------------------------------------------------------

    def _global_parameter(self, one: _Object) -> None:
        name, value, parameters = one.name(), checked_value(one.fields.get("value")), self._broker.parameters
        # What the other cluster calls itself, and what it remembers of itself, is not ours.
        if name != "cluster_name" and not name.startswith("internal"):
            self._then(lambda: parameters.put_global(name, value))

    def _parameter(self, one: _Object) -> None:
        name, vhost, component = one.name(), self._vhost_of(one), one.text("component")
        value = checked_value(one.fields.get("value"))
        if component == "operator_policy" and isinstance(value, dict) and isinstance(value.get("definition"), dict):
            value = {**value, "definition": _without_mirroring(value["definition"], one)}
            if not value["definition"]:
                return
        parameters = self._broker.parameters
        parameters.check(vhost, component, name, value)
        if component == "vhost-limits" and isinstance(value, dict):
            self._queues_max[vhost] = int(value.get("max-queues", -1))
        self._then(lambda: parameters.put(vhost, component, name, value))

    def _policy(self, one: _Object) -> None:
        name, vhost, fields = one.name(), self._vhost_of(one), one.fields
        definition = checked_value(fields.get("definition"))
        if isinstance(definition, dict) and definition:
            definition = _without_mirroring(definition, one)
            if not definition:
                return
        row = checked_policy(
            vhost, name, POLICY, fields.get("pattern"), definition, fields.get("priority"), fields.get("apply-to")
        )
        self._then(lambda: self._broker.vhost(vhost).put_policy(row))

    # --- Exchanges, queues, bindings ------------------------------------------------------------------------------

    def _exchange(self, one: _Object) -> None:
        name, vhost = one.text("name"), self._vhost_of(one)
        if (vhost, name) in self._exchanges:
            return
        if name.startswith(RESERVED_PREFIX):
            self._pass_over("exchange", vhost, name)
            return
        name = one.name()
        durable, auto_delete, internal = one.flag("durable", True), one.flag("auto_delete"), one.flag("internal")
        kind, arguments = one.text("type"), one.table("arguments")
        if not isinstance(arguments.get("alternate-exchange", ""), str):
            raise PreconditionFailed("invalid type for arg 'alternate-exchange'")
        # It only answers for the one to come, which is made by its virtual host.
        self._exchanges[vhost, name] = create_exchange(name, kind, durable, auto_delete, internal, arguments)
        self._then(
            lambda: self._broker.vhost(vhost).declare_exchange(name, kind, durable, auto_delete, internal, arguments)
        )

    def _queue(self, one: _Object) -> None:
        name, vhost = one.name(), self._vhost_of(one)
        if name.startswith(RESERVED_PREFIX):
            self._pass_over("queue", vhost, name)
            return
        if (vhost, name) in self._queues:
            return
        durable, auto_delete, arguments = one.flag("durable", True), one.flag("auto_delete"), one.table("arguments")
        kind = one.text("type", "classic")
        if kind != "classic" and "x-queue-type" not in arguments:
            arguments["x-queue-type"] = kind
        resource = f"queue '{name}' in vhost '{vhost}'"
        check_queue_arguments(arguments, resource)
        QUEUE_TYPES[queue_type(arguments)].check(resource, durable, False, auto_delete, False)
        self._queues.add((vhost, name))
        self._then(lambda: self._broker.vhost(vhost).declare_queue(name, durable, False, auto_delete, arguments, None))

    def _binding(self, one: _Object) -> None:
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
        if source is None:
            raise PreconditionFailed(f"no exchange '{source_name}' in vhost '{vhost}'")
        if (vhost, name) not in (self._queues if kind == DESTINATION_QUEUE else self._exchanges):
            raise PreconditionFailed(f"no {kind} '{name}' in vhost '{vhost}'")
        source.validate(routing_key, arguments)

        def bind() -> None:
            where = self._broker.vhost(vhost)
            destination = where.queues[name] if kind == DESTINATION_QUEUE else where.exchange(name)
            where.bind(where.exchange(source_name), destination, routing_key, arguments)

        self._then(bind)

    def _pass_over(self, kind: str, vhost: str, name: str) -> None:
        self._passed_over.add((kind, vhost, name))
        logger.warning("%s '%s' in vhost '%s' is not imported: 'amq.' is the broker's own prefix", kind, name, vhost)

    def _check_limits(self) -> None:
        broker = self._broker
        counts: dict[str, int] = {}
        for vhost, _ in self._queues:
            counts[vhost] = counts.get(vhost, 0) + 1
        for vhost, count in counts.items():
            present = len(broker.vhosts[vhost].queues) if vhost in broker.vhosts else 0
            limit = self._queues_max.get(vhost, -1)
            if count > present and 0 <= limit < count:
                raise PreconditionFailed(
                    f'Adding {count - present} queue(s) to virtual host "{vhost}" would exceed the limit of {limit} '
                    f"queue(s). This virtual host currently has {present} queue(s) defined. Import aborted!"
                )
        added = len(self._queues) - sum(len(vhost.queues) for vhost in broker.vhosts.values())
        if broker.context.queue_count + added > broker.context.queues_max:
            raise PreconditionFailed(f"node queue limit ({broker.context.queues_max}) would be exceeded")


class _Object:
    """One object of a document, whose fields may have any type."""

    def __init__(self, category: str, fields: Object) -> None:
        self.category: Final = category
        self.fields: Final = fields

    def shown(self, vhost: str | None) -> str:
        """How an error calls it."""
        fields = self.fields
        kind = {"policies": "policy"}.get(self.category, self.category.removesuffix("s").replace("_", " "))
        if "source" in fields:
            name = f"from '{fields['source']}' to {fields.get('destination_type')} '{fields.get('destination')}'"
        elif "user" in fields:
            name = f"of user '{fields['user']}'"
        else:
            name = f"'{fields.get('name')}'"
        component = f" of component '{fields['component']}'" if "component" in fields else ""
        where = vhost if vhost is not None else fields.get("vhost")
        return f"{kind} {name}{component}" + (f" in vhost '{where}'" if where is not None else "")

    def name(self) -> str:
        name = self.text("name")
        if not 0 < len(name.encode(errors="surrogatepass")) <= NAME_BYTES_MAX:
            raise PreconditionFailed(f"a name has 1 to {NAME_BYTES_MAX} bytes")
        return name

    def text(self, field: str, default: str | None = None) -> str:
        value = self.fields.get(field)
        value = default if value is None else value
        if not isinstance(value, str):
            raise PreconditionFailed(f"{field} is missing" if value is None else f"{field} is no text")
        return str(checked_value(value))

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.fields.get(field)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise PreconditionFailed(f"{field} is neither true nor false")
        return value

    def table(self, field: str) -> dict[str, object]:
        # Erlang has one empty thing for lists and tables, and old files have it so.
        value = self.fields.get(field) or {}
        if not isinstance(value, dict):
            raise PreconditionFailed(f"{field} is no object")
        return dict(checked_value(value))


def _listed(document: object, category: str) -> Iterator[_Object]:
    if not isinstance(document, dict):
        raise PreconditionFailed("definitions are a JSON object")
    objects = document.get(category)
    if objects is None:
        return
    if not isinstance(objects, list):
        raise PreconditionFailed(f"{category} is not a list")
    for number, one in enumerate(objects):
        if not isinstance(one, dict):
            raise PreconditionFailed(f"{category}: entry {number} is no object")
        yield _Object(category, one)


def _without_mirroring(definition: Object, one: _Object) -> Object:
    """The definition without the keys of mirrored queues, of which every RabbitMQ 3 has some and RabbitMQ 4 none."""
    remaining = {key: value for key, value in definition.items() if not key.startswith("ha-")}
    if len(remaining) != len(definition):
        logger.warning("%s: keys of mirrored queues are left out", one.shown(None))
    return remaining


def checked_value(value: Any, depth: int = 0) -> Any:
    """A value out of JSON, if AMQP and the catalog can have it. Raises PreconditionFailed."""
    if depth > FIELD_VALUE_DEPTH_MAX:
        raise PreconditionFailed(f"values nested deeper than {FIELD_VALUE_DEPTH_MAX}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PreconditionFailed("a text is not Unicode") from None
    elif isinstance(value, int):
        if abs(value) > COUNT_MAX:
            raise PreconditionFailed(f"{value} has more than 64 bits")
    elif isinstance(value, dict):
        for key, item in value.items():
            checked_value(key, depth)
            checked_value(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            checked_value(item, depth + 1)
    return value
