"""Class tx.

Behaviour: publishes and settlements are held until `tx.commit`, and then done in one turn, which recovery applies as a
whole or not at all. `tx.commit-ok` is sent when it is durable; until then the connection handles nothing further.
"""

from __future__ import annotations

from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.registry import on_channel


@on_channel(methods.TxSelect)
def select(channel: Channel, method: methods.TxSelect) -> None:
    channel.select_transactions()
    channel.connection.send(channel.number, methods.TxSelectOk())


@on_channel(methods.TxCommit)
def commit(channel: Channel, method: methods.TxCommit) -> None:
    channel.commit()
    if channel.commit_ok_sequence > 0:
        channel.connection.suspend()


@on_channel(methods.TxRollback)
def rollback(channel: Channel, method: methods.TxRollback) -> None:
    channel.rollback()
    channel.connection.send(channel.number, methods.TxRollbackOk())
