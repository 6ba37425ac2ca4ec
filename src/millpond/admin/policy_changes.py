"""What the management API changes of policies, parameters, limits and, by definitions, of everything.

As in `changes.py`: a change is durable when its function returns, and `PeerError`s say what cannot be done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from millpond.admin.changes import _make_durable
from millpond.broker.definitions.imports import Import, hashed_passwords

if TYPE_CHECKING:
    from millpond.broker.broker import Broker
    from millpond.catalog.rows import PolicyRow


async def put_policy(broker: Broker, row: PolicyRow) -> None:
    broker.vhost(row.vhost).put_policy(row)
    await _make_durable(broker)


async def delete_policy(broker: Broker, vhost: str, name: str, kind: str) -> None:
    broker.vhost(vhost).delete_policy(name, kind)
    await _make_durable(broker)


async def put_parameter(broker: Broker, vhost: str, component: str, name: str, value: object) -> None:
    broker.parameters.put(vhost, component, name, value)
    await _make_durable(broker)


async def clear_parameter(broker: Broker, vhost: str, component: str, name: str) -> None:
    broker.parameters.clear(vhost, component, name)
    await _make_durable(broker)


async def put_global_parameter(broker: Broker, name: str, value: object) -> None:
    broker.parameters.put_global(name, value)
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
