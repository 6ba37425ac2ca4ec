"""What the management API changes. A change is durable when its function returns; all run on the event loop.

Raises `PeerError`s for what cannot be done, `StorageFailed` where the disk refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from millpond.base.errors import NotFound
from millpond.broker.definitions import Import, checked_value, hashed_passwords

if TYPE_CHECKING:
    from millpond.broker.broker import Broker
    from millpond.catalog.rows import PolicyRow


async def put_user(
    broker: Broker, name: str, password: str | None, hash_given: str | None, tags: Sequence[str]
) -> None:
    """Create the user, or replace its password and tags; without a password nor a hash it cannot log in by one."""
    stored = hash_given or None
    if password is not None:
        stored = await asyncio.to_thread(broker.access.hash_password, password.encode())
    broker.access.put_user(name, stored, tags)
    await _make_durable(broker)


async def delete_user(broker: Broker, name: str) -> None:
    broker.access.delete_user(name)
    broker.parameters.forget_user(name)
    await _make_durable(broker)


async def set_permission(broker: Broker, user: str, vhost: str, configure: str, write: str, read: str) -> None:
    broker.vhost(vhost)
    broker.access.set_permission(user, vhost, configure, write, read)
    await _make_durable(broker)


async def clear_permission(broker: Broker, user: str, vhost: str) -> None:
    broker.vhost(vhost)
    broker.access.clear_permission(user, vhost)
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


async def delete_queue(broker: Broker, vhost: str, name: str, if_unused: bool, if_empty: bool) -> None:
    where = broker.vhost(vhost)
    where.delete_queue(where.queue(name, None), if_unused, if_empty)
    await _make_durable(broker)


async def purge_queue(broker: Broker, vhost: str, name: str) -> int:
    """The number of messages that are gone."""
    purged = broker.vhost(vhost).queue(name, None).purge()
    broker.turn.touch()
    return purged


def close_connection(broker: Broker, name: str, reason: str) -> None:
    for connection in broker.connections:
        if connection.describe().get("name") == name:
            connection.close_by_operator(reason)
            return
    raise NotFound(f"no connection '{name}'")


async def put_policy(broker: Broker, row: PolicyRow) -> None:
    broker.vhost(row.vhost).put_policy(row)
    await _make_durable(broker)


async def delete_policy(broker: Broker, vhost: str, name: str, kind: str) -> None:
    broker.vhost(vhost).delete_policy(name, kind)
    await _make_durable(broker)


async def put_parameter(broker: Broker, vhost: str, component: str, name: str, value: object) -> None:
    broker.parameters.put(vhost, component, name, checked_value(value))
    await _make_durable(broker)


async def clear_parameter(broker: Broker, vhost: str, component: str, name: str) -> None:
    broker.parameters.clear(vhost, component, name)
    await _make_durable(broker)


async def put_global_parameter(broker: Broker, name: str, value: object) -> None:
    broker.parameters.put_global(name, checked_value(value))
    await _make_durable(broker)


async def clear_global_parameter(broker: Broker, name: str) -> None:
    broker.parameters.clear_global(name)
    await _make_durable(broker)


async def put_vhost_limit(broker: Broker, vhost: str, name: str, value: object) -> None:
    broker.parameters.put_vhost_limit(vhost, name, value)
    await _make_durable(broker)


async def clear_vhost_limit(broker: Broker, vhost: str, name: str) -> None:
    broker.parameters.clear_vhost_limit(vhost, name)
    await _make_durable(broker)


async def put_user_limit(broker: Broker, user: str, name: str, value: object) -> None:
    broker.access.user(user)
    broker.parameters.put_user_limits(user, {**broker.parameters.limits_of_user(user), name: value})
    await _make_durable(broker)


async def clear_user_limit(broker: Broker, user: str, name: str) -> None:
    """Take one limit from a user, or `all`."""
    broker.access.user(user)
    limits = broker.parameters.limits_of_user(user)
    broker.parameters.put_user_limits(user, {key: value for key, value in limits.items() if name not in {key, "all"}})
    await _make_durable(broker)


async def import_definitions(broker: Broker, document: object, vhost: str | None) -> None:
    """All of it in one transaction, or nothing."""
    passwords = await asyncio.to_thread(hashed_passwords, document, broker.access.hash_password)
    Import(broker, document, vhost, passwords).run()
    await _make_durable(broker)


async def _make_durable(broker: Broker) -> None:
    broker.turn.touch()
    broker.catalog.commit()
    await asyncio.to_thread(broker.catalog.sync)
