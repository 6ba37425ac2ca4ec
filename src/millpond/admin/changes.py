"""What the management API changes. A change is durable when its function returns; all run on the event loop.

Raises `PeerError`s for what cannot be done, `StorageFailed` where the disk refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from millpond.base.errors import StorageFailed
from millpond.broker import scram_credentials
from millpond.broker.commits import CommitWaiter
from millpond.broker.redrive import Redrive
from millpond.broker.rewind import Rewind

if TYPE_CHECKING:
    from millpond.broker.broker import Broker
    from millpond.broker.exchanges.exchange import Binding, Destination, Exchange
    from millpond.broker.scram_credentials import ScramCredential
    from millpond.broker.streams.topic import Topic
    from millpond.broker.vhost import VirtualHost


async def put_user(
    broker: Broker, name: str, password: str | None, hash_given: str | None, tags: Sequence[str]
) -> None:
    """Create the user, or replace its password and tags; without a password nor a hash it cannot log in by one."""
    stored = hash_given or None
    scram: Sequence[ScramCredential] = ()
    if password is not None:
        stored = await asyncio.to_thread(broker.access.hash_password, password.encode())
        scram = await asyncio.to_thread(scram_credentials.of_password, password.encode())
    broker.access.put_user(name, stored, tags, scram)
    await _make_durable(broker)


async def delete_user(broker: Broker, name: str) -> None:
    broker.delete_user(name)
    await _make_durable(broker)


async def set_permission(broker: Broker, user: str, vhost: str, configure: str, write: str, read: str) -> None:
    broker.vhost(vhost)
    broker.access.set_permission(user, vhost, configure, write, read)
    await _make_durable(broker)


async def clear_permission(broker: Broker, user: str, vhost: str) -> None:
    broker.vhost(vhost)
    broker.access.clear_permission(user, vhost)
    await _make_durable(broker)


async def set_topic_permission(broker: Broker, user: str, vhost: str, exchange: str, write: str, read: str) -> None:
    broker.vhost(vhost).exchange(exchange)
    broker.access.set_topic_permission(user, vhost, exchange, write, read)
    await _make_durable(broker)


async def clear_topic_permissions(broker: Broker, user: str, vhost: str, exchange: str | None) -> None:
    """Those at one exchange, or at all."""
    broker.vhost(vhost)
    broker.access.clear_topic_permissions(user, vhost, exchange)
    await _make_durable(broker)


async def alter_quotas(broker: Broker, entity: Mapping[str, str | None], quotas: Mapping[str, float | None]) -> None:
    broker.quotas.alter(entity, quotas)
    await _make_durable(broker)


async def create_vhost(broker: Broker, name: str, creator: str | None) -> None:
    """Create the virtual host if there is none. Who creates it may do anything in it, as in RabbitMQ."""
    created = name not in broker.vhosts
    broker.create_vhost(name)
    if created and creator is not None:
        broker.access.set_permission(creator, name, ".*", ".*", ".*")
    await _make_durable(broker)


async def describe_vhost(
    broker: Broker, name: str, description: str, tags: tuple[str, ...], default_queue_type: str
) -> None:
    broker.describe_vhost(name, description, tags, default_queue_type)
    await _make_durable(broker)


async def delete_vhost(broker: Broker, name: str) -> None:
    broker.delete_vhost(name)
    await _make_durable(broker)


async def declare_queue(
    broker: Broker, vhost: VirtualHost, name: str, durable: bool, auto_delete: bool, arguments: dict[str, object]
) -> None:
    vhost.declare_queue(name, durable, False, auto_delete, arguments, None)
    await _make_durable(broker)


async def delete_queue(broker: Broker, vhost: VirtualHost, name: str, if_unused: bool, if_empty: bool) -> None:
    vhost.delete_queue(vhost.queue(name, None), if_unused, if_empty)
    await _make_durable(broker)


async def delete_group(broker: Broker, vhost: VirtualHost, name: str) -> None:
    broker.turn.now_ms = broker.clock.wall_ms()
    vhost.groups.delete(name)
    await _journaled(broker)


async def abort_transaction(broker: Broker, vhost: VirtualHost, name: str) -> None:
    broker.turn.now_ms = broker.clock.wall_ms()
    vhost.transactions.abort(name)
    await _journaled(broker)


def purge_queue(broker: Broker, vhost: VirtualHost, name: str) -> None:
    vhost.queue(name, None).purge()
    broker.turn.touch()


async def declare_exchange(
    broker: Broker,
    vhost: VirtualHost,
    name: str,
    type: str,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: dict[str, object],
) -> None:
    vhost.declare_exchange(name, type, durable, auto_delete, internal, arguments)
    await _make_durable(broker)


async def delete_exchange(broker: Broker, vhost: VirtualHost, name: str, if_unused: bool) -> None:
    vhost.delete_exchange(name, if_unused)
    await _make_durable(broker)


async def bind(
    broker: Broker,
    vhost: VirtualHost,
    source: Exchange,
    destination: Destination,
    routing_key: str,
    arguments: dict[str, object],
) -> None:
    _check_shared(vhost, destination)
    vhost.bind(source, destination, routing_key, arguments)
    await _make_durable(broker)


async def unbind(broker: Broker, vhost: VirtualHost, binding: Binding) -> None:
    _check_shared(vhost, binding.destination)
    vhost.unbind(binding.source, binding.destination, binding.routing_key, binding.arguments)
    await _make_durable(broker)


def _check_shared(vhost: VirtualHost, destination: Destination) -> None:
    """ResourceLocked where it is a queue that belongs to a connection."""
    if destination.kind == "queue":
        vhost.queue(destination.name, None)


async def create_topic(
    broker: Broker, vhost: VirtualHost, name: str, partitions: int, configs: dict[str, str | None]
) -> None:
    vhost.topics.create(name, partitions, configs)
    await _make_durable(broker)


async def configure_topic(broker: Broker, vhost: VirtualHost, topic: Topic, configs: dict[str, str | None]) -> None:
    vhost.topics.configure(topic, configs)
    await _make_durable(broker)


async def add_partitions(broker: Broker, vhost: VirtualHost, topic: Topic, count: int) -> None:
    """Let a topic have so many from now on."""
    vhost.topics.add_partitions(topic, count)
    await _make_durable(broker)


async def delete_topic(broker: Broker, vhost: VirtualHost, topic: Topic) -> None:
    vhost.topics.delete(topic)
    await _make_durable(broker)


async def redrive(broker: Broker, vhost: str, name: str, target: str | None, limit: int | None) -> dict[str, int]:
    """Move dead letters back, a share a turn: how many were moved, and how many were kept."""
    order = Redrive(broker.vhost(vhost), name, target, limit)
    try:
        while order.run():
            broker.turn.touch()
            await asyncio.sleep(0)
    finally:
        order.finish()
    await _journaled(broker)
    return {"moved": order.moved, "kept": order.kept}


async def rewind(
    broker: Broker, vhost: str, name: str, offset: int | None, timestamp_ms: int | None, partition: int | None
) -> dict[str, object]:
    """Let what a queue has had settled be work again: how many messages, and from which offset of each partition on."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def rewound() -> None:
        if not done.done():
            done.set_result(None)

    order = Rewind(broker.vhost(vhost), name, offset, timestamp_ms, partition, rewound)
    order.go_on()
    await done
    await _journaled(broker)
    return {"messages": order.messages, "offsets": {str(number): found for number, found in order.offsets.items()}}


class _Journaled(CommitWaiter):
    """Ends a wait when the journal has what this turn brought."""

    def __init__(self, sequence: int, done: asyncio.Future[None]) -> None:
        self._sequence = sequence
        self._done = done

    def committed(self, durable_sequence: int) -> bool:
        if durable_sequence < self._sequence:
            return True
        if not self._done.done():
            self._done.set_result(None)
        return False

    def commit_failed(self) -> None:
        if not self._done.done():
            self._done.set_exception(StorageFailed("the journal cannot be written"))


async def _journaled(broker: Broker) -> None:
    """Wait until all that was done so far is durable."""
    ledger = broker.ledger
    needed = int(ledger.covering())
    if ledger.durable() < needed:
        await committed(broker, needed)


async def committed(broker: Broker, sequence: int) -> None:
    """Wait until the journal has this commit."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    broker.ledger.sync_wanted = True
    broker.commits.wait(_Journaled(sequence, done))
    broker.turn.touch()
    await done


async def _make_durable(broker: Broker) -> None:
    """What was changed in the catalog is durable when this returns."""
    broker.turn.touch()
    broker.catalog.commit()
    await asyncio.to_thread(broker.catalog.sync)
