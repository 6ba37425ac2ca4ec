"""What the management API changes. A change is durable when its function returns; all run on the event loop.

Raises `PeerError`s for what cannot be done, `StorageFailed` where the disk refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from millpond.base.errors import NotFound, StorageFailed
from millpond.broker.commits import CommitWaiter
from millpond.broker.redrive import Redrive

if TYPE_CHECKING:
    from millpond.broker.broker import Broker


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


def close_connection(broker: Broker, name: str, reason: str) -> None:
    for connection in broker.connections:
        if connection.describe().get("name") == name:
            connection.close_by_operator(reason)
            return
    raise NotFound(f"no connection '{name}'")


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
    needed = int(ledger.sequence()) - (0 if ledger.has_changes() else 1)
    if ledger.durable() >= needed:
        return
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ledger.sync_wanted = True
    broker.commits.wait(_Journaled(needed, done))
    broker.turn.touch()
    await done


async def _make_durable(broker: Broker) -> None:
    broker.turn.touch()
    broker.catalog.commit()
    await asyncio.to_thread(broker.catalog.sync)
