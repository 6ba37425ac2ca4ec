"""What the management API shows, as plain values under RabbitMQ's names. Counters are read as they stand.

Every function here runs on the event loop's thread, between two turns.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from millpond import __version__
from millpond.broker.arguments import queue_type
from millpond.broker.commits import ALARM_DISK, ALARM_MEMORY, ALARM_STORAGE
from millpond.broker.exchanges.delayed import TYPE_DELAYED
from millpond.broker.exchanges.registry import EXCHANGE_TYPES

if TYPE_CHECKING:
    from millpond.broker.access import User
    from millpond.broker.broker import Broker, ClientConnection
    from millpond.broker.exchanges.exchange import Binding, Destination, Exchange
    from millpond.broker.parameters import Parameters
    from millpond.broker.queues.consumer import Consumer
    from millpond.broker.queues.message_queue import MessageQueue
    from millpond.broker.vhost import VirtualHost
    from millpond.catalog.rows import PermissionRow, TopicPermissionRow

Shown = dict[str, Any]

# A listener's setting -> what RabbitMQ calls its protocol.
RABBITMQ_PROTOCOLS: Final = {
    "amqp": "amqp",
    "amqps": "amqp/ssl",
    "kafka": "kafka",
    "kafka_tls": "kafka/ssl",
    "admin": "http",
}


@dataclass(frozen=True)
class Node:
    """What is shown of the process, besides its broker.

    Its name, when it started on the clock's monotonic scale, where it listens, the RabbitMQ that clients take it for,
    the data directory's free bytes (None in memory), and the limits that it was started with.
    """

    name: str
    started_ms: int
    addresses: Callable[[], Mapping[str, tuple[str, int]]]
    rabbitmq_version: str
    disk_free: Callable[[], int | None]
    disk_free_min: int
    connections_max: int


def overview(broker: Broker, node: Node) -> Shown:
    queues = broker.all_queues()
    ready, unsettled = sum(int(queue.ready) for queue in queues), sum(int(queue.unsettled) for queue in queues)
    delayed = sum(int(queue.delayed) for queue in queues)
    return {
        "product_name": "Millpond",
        "product_version": __version__,
        "management_version": __version__,
        "rabbitmq_version": node.rabbitmq_version,
        # As AMQP clients are told it.
        "cluster_name": "millpond",
        "exchange_types": exchange_types(),
        "node": node.name,
        "os_pid": os.getpid(),
        "uptime": broker.clock.monotonic_ms() - node.started_ms,
        "mem_used": int(broker.memory.used),
        "mem_limit": int(broker.memory.budget_bytes),
        "alarms": list(broker.alarms.reasons),
        "object_totals": {
            "connections": len(broker.connections),
            "channels": channels_open(broker),
            "exchanges": sum(len(vhost.router.exchanges) for vhost in broker.vhosts.values()),
            "queues": len(queues),
            "topics": sum(len(vhost.topics.by_name) for vhost in broker.vhosts.values()),
            "consumers": sum(len(queue.consumers) for queue in queues),
        },
        "queue_totals": {
            "messages": ready + unsettled + delayed,
            "messages_ready": ready,
            "messages_unacknowledged": unsettled,
        },
        "message_stats": {
            "publish": sum(int(vhost.published_total) for vhost in broker.vhosts.values()),
            "drop_unroutable": sum(int(vhost.unroutable_total) for vhost in broker.vhosts.values()),
            "deliver_get": sum(int(queue.delivered_total) for queue in queues),
        },
        "listeners": listeners(node),
    }


def listeners(node: Node) -> list[Shown]:
    return [
        {"node": node.name, "protocol": RABBITMQ_PROTOCOLS[name], "ip_address": host, "port": port}
        for name, (host, port) in node.addresses().items()
    ]


def exchange_types() -> list[Shown]:
    return [{"name": name, "enabled": True} for name in sorted([*EXCHANGE_TYPES, TYPE_DELAYED])]


def this_node(broker: Broker, node: Node) -> Shown:
    """The node as RabbitMQ shows one. Memory is that of messages, which the alarm of that name is about."""
    files_open, files_max = _files()
    return {
        "name": node.name,
        "type": "disc",
        "running": True,
        "being_drained": False,
        "os_pid": str(os.getpid()),
        "uptime": broker.clock.monotonic_ms() - node.started_ms,
        "processors": os.cpu_count(),
        "mem_used": int(broker.memory.used),
        "mem_limit": int(broker.memory.budget_bytes),
        "mem_alarm": ALARM_MEMORY in broker.alarms.reasons,
        "disk_free": node.disk_free(),
        "disk_free_limit": node.disk_free_min,
        "disk_free_alarm": ALARM_DISK in broker.alarms.reasons,
        "storage_alarm": ALARM_STORAGE in broker.alarms.reasons,
        "fd_used": files_open,
        "fd_total": files_max,
        "sockets_used": len(broker.connections),
        "sockets_total": node.connections_max,
        "exchange_types": exchange_types(),
        "partitions": [],
        "cluster_links": [],
        "rates_mode": "none",
    }


def _files() -> tuple[int | None, int]:
    """The files that this process has open, where the system tells, and how many it may have."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), most
    except OSError:
        return None, most


def vhost(shown: VirtualHost) -> Shown:
    queues = shown.all_queues()
    ready, unsettled = sum(int(queue.ready) for queue in queues), sum(int(queue.unsettled) for queue in queues)
    delayed = sum(int(queue.delayed) for queue in queues)
    return {
        "name": shown.name,
        "description": shown.description,
        "tags": list(shown.tags),
        "default_queue_type": shown.default_queue_type,
        "messages": ready + unsettled + delayed,
        "messages_ready": ready,
        "messages_unacknowledged": unsettled,
        "message_stats": {"publish": int(shown.published_total), "drop_unroutable": int(shown.unroutable_total)},
    }


def queue(vhost_name: str, shown: MessageQueue, node: Node) -> Shown:
    ready, unsettled = int(shown.ready), int(shown.unsettled)
    return {
        "name": shown.name,
        "vhost": vhost_name,
        "type": queue_type(shown.arguments),
        "node": node.name,
        "state": "running",
        "durable": shown.durable,
        "auto_delete": shown.auto_delete,
        "exclusive": shown.exclusive_owner is not None,
        "arguments": shown.arguments,
        "policy": _policy_name(shown),
        "operator_policy": _operator_policy_name(shown),
        "effective_policy_definition": shown.applied.definition if shown.applied is not None else {},
        "messages": ready + unsettled + int(shown.delayed),
        "messages_ready": ready,
        "messages_unacknowledged": unsettled,
        "message_bytes_ready": int(shown.ready_bytes),
        "message_bytes_ram": int(shown.resident_bytes),
        "consumers": int(shown.consumer_count),
        **shown.details(),
        "message_stats": {
            "publish": int(shown.published_total),
            "deliver_get": int(shown.delivered_total),
            "ack": int(shown.settled_total),
        },
    }


def listed_queue(vhost_name: str, shown: MessageQueue, node: Node) -> Shown:
    """A queue in a list, without what it does not have: RabbitMQ's tools print lists as tables."""
    return {name: value for name, value in queue(vhost_name, shown, node).items() if value is not None}


def _policy_name(shown: Destination) -> str | None:
    applied = shown.applied
    return applied.policy.name if applied is not None and applied.policy is not None else None


def _operator_policy_name(shown: Destination) -> str | None:
    applied = shown.applied
    return applied.operator_policy.name if applied is not None and applied.operator_policy is not None else None


def exchange(vhost: VirtualHost, shown: Exchange) -> Shown:
    policy = _policy_name(shown)
    holder = vhost.delay_queues.get(shown.name)
    return {
        "name": shown.name,
        "vhost": vhost.name,
        "type": shown.type,
        "durable": shown.durable,
        "auto_delete": shown.auto_delete,
        "internal": shown.internal,
        "arguments": shown.arguments,
        **({} if holder is None else {"messages_delayed": int(holder.delayed)}),
        # As in RabbitMQ: there only where there is one.
        **({"policy": policy} if policy is not None else {}),
    }


def bindings(vhost: VirtualHost) -> Iterator[Shown]:
    """All bindings, first those of the default exchange, which every queue has by its name."""
    for found_queue in vhost.all_queues():
        yield default_binding(vhost.name, found_queue.name)
    for source in [*vhost.router.exchanges.values(), *vhost.sources.bound()]:
        for found in source.bindings():
            yield binding(vhost.name, found)


def default_binding(vhost_name: str, queue_name: str) -> Shown:
    """What every queue has: a binding by its name to the default exchange."""
    return {
        "source": "",
        "vhost": vhost_name,
        "destination": queue_name,
        "destination_type": "queue",
        "routing_key": queue_name,
        "arguments": {},
        "properties_key": queue_name,
    }


def binding(vhost_name: str, shown: Binding) -> Shown:
    return {
        "source": shown.source.name,
        "vhost": vhost_name,
        "destination": shown.destination.name,
        "destination_type": shown.destination.kind,
        "routing_key": shown.routing_key,
        "arguments": shown.arguments,
        "properties_key": shown.properties_key,
    }


def consumer(vhost_name: str, queue: MessageQueue, shown: Consumer, node: Node) -> Shown:
    place = shown.describe_channel()
    return {
        "consumer_tag": shown.tag,
        "channel_details": {**place, "node": node.name} if place else {},
        "arguments": shown.described_arguments(),
        "queue": {"vhost": vhost_name, "name": queue.name},
        "ack_required": shown.acknowledges,
        "exclusive": shown.exclusive,
        "active": queue.is_active(shown),
        "activity_status": _activity(queue, shown),
        "priority": int(shown.priority),
        "prefetch_count": int(shown.prefetch),
        "messages_unacknowledged": int(shown.unsettled),
        "message_stats": {"deliver": int(shown.delivered)},
    }


def _activity(queue: MessageQueue, shown: Consumer) -> str:
    """The state of a consumer, in RabbitMQ's words."""
    if not queue.settings.single_active:
        return "up"
    return "single_active" if queue.is_active(shown) else "waiting"


def connection(shown: ClientConnection, node: Node) -> Shown:
    return {**shown.describe(), "node": node.name}


def channel(shown: Shown, node: Node) -> Shown:
    return {**shown, "node": node.name}


def user(shown: User, parameters: Parameters) -> Shown:
    # Without the hash that RabbitMQ shows: what is never told cannot be cracked.
    return {"name": shown.name, "tags": list(shown.tags), "limits": parameters.limits_of_user(shown.name)}


def permission(shown: PermissionRow) -> Shown:
    return {
        "user": shown.user,
        "vhost": shown.vhost,
        "configure": shown.configure,
        "write": shown.write,
        "read": shown.read,
    }


def topic_permission(shown: TopicPermissionRow) -> Shown:
    return {
        "user": shown.user,
        "vhost": shown.vhost,
        "exchange": shown.exchange,
        "write": shown.write,
        "read": shown.read,
    }


def channels_open(broker: Broker) -> int:
    counts = [connection.describe().get("channels") for connection in broker.connections]
    return sum(count for count in counts if isinstance(count, int))
