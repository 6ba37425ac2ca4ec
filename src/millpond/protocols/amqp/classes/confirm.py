"""Class confirm: RabbitMQ's publisher confirms."""

from __future__ import annotations

from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.registry import on_channel


@on_channel(methods.ConfirmSelect)
def select(channel: Channel, method: methods.ConfirmSelect) -> None:
    channel.select_confirms()
    if not method.nowait:
        channel.connection.send(channel.number, methods.ConfirmSelectOk())
