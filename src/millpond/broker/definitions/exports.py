"""A broker, or one of its virtual hosts, as a document. Everything is in the order of names, so that two documents can
be compared line by line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from millpond import __version__
from millpond.broker import password_hashes, scram_credentials
from millpond.broker.arguments import queue_type
from millpond.broker.exchanges.exchange import Binding, Exchange, canonical
from millpond.broker.policies import POLICY
from millpond.broker.streams.stream_arguments import configs_of
from millpond.broker.streams.stream_names import topic_behind
from millpond.broker.vhost import REPLY_PREFIX, RESERVED_PREFIX
from millpond.catalog.rows import DESTINATION_QUEUE, PolicyRow

if TYPE_CHECKING:
    from millpond.broker.broker import Broker
    from millpond.broker.queues.message_queue import MessageQueue
    from millpond.broker.streams.topic import Topic
    from millpond.broker.vhost import VirtualHost

# The release whose format and rules these are. RabbitMQ takes files of any release.
FORMAT_VERSION: Final = "4.0.0"

Object = dict[str, Any]


def exported(broker: Broker) -> Object:
    """The whole broker."""
    scram = broker.access.list_scram_credentials()
    users = []
    for row in broker.access.exported_users():
        password_hash, algorithm = password_hashes.to_definitions(row.password_hash)
        user: Object = {
            "name": row.name,
            "password_hash": password_hash,
            "hashing_algorithm": algorithm,
            "tags": list(row.tags),
            "limits": broker.parameters.limits_of_user(row.name),
        }
        if row.name in scram:
            # RabbitMQ passes over it.
            user["scram_credentials"] = [scram_credentials.to_definitions(one) for one in scram[row.name]]
        users.append(user)
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
        "topic_permissions": [
            {"user": row.user, "vhost": row.vhost, "exchange": row.exchange, "write": row.write, "read": row.read}
            for row in broker.access.list_topic_permissions()
        ],
        "acls": [asdict(rule) for vhost in vhosts for rule in broker.access.list_rules(vhost.name)],
        "quotas": [{"entity": entity, "quotas": quotas} for entity, quotas in broker.quotas.items()],
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
        "topics": [topic for vhost in vhosts for topic in _topics(vhost)],
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
        "topics": _without_vhost(_topics(vhost)),
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
    streams = [queue for queue in vhost.streams.all() if _is_declared(queue)]
    queues = [queue for queue in vhost.queues.values() if _is_lasting(queue)]
    return iter(sorted([*queues, *streams], key=lambda queue: queue.name))


def _is_declared(queue: MessageQueue) -> bool:
    """Whether a stream is all that AMQP's declaration says, and so fits RabbitMQ's format."""
    topic = topic_behind(queue)
    return topic is not None and _is_stream(topic)


def _is_stream(topic: Topic) -> bool:
    return topic.arguments is not None and len(topic.partitions) == 1 and topic.overrides == configs_of(topic.arguments)


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
        "type": queue_type(queue.arguments),
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "arguments": queue.arguments,
    }


def _topics(vhost: VirtualHost) -> Iterator[Object]:
    """What RabbitMQ has not, and passes over; those that are as AMQP has declared them are among the queues."""
    for _, topic in sorted(vhost.topics.by_name.items()):
        if topic.is_history:
            # It comes with its queue.
            continue
        if not _is_stream(topic):
            yield {
                "name": topic.name,
                "vhost": vhost.name,
                "partitions": len(topic.partitions),
                "configs": dict(sorted(topic.overrides.items())),
                **({} if topic.arguments is None else {"arguments": topic.arguments}),
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
    sources: dict[str, Exchange] = {source.name: source for source in vhost.sources.bound()}
    for _, source in sorted({**sources, **vhost.router.exchanges}.items()):
        for binding in sorted(source.bindings(), key=_binding_order):
            if binding.destination.kind == DESTINATION_QUEUE:
                queue = vhost.find_queue(binding.destination.name)
                if queue is None or not _is_lasting(queue):
                    continue
            yield {
                "source": source.name,
                "vhost": vhost.name,
                "destination": binding.destination.name,
                "destination_type": binding.destination.kind,
                "routing_key": binding.routing_key,
                "arguments": binding.arguments,
            }
