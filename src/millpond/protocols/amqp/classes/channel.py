"""Class channel. `channel.open` is the connection's business, because there is no channel yet.

Behaviour: `channel.flow` lets a client stop and start its deliveries; RabbitMQ refuses `active=false`, and so do we,
because nobody implements it and prefetch does the same better.
"""

from __future__ import annotations

from millpond.base.errors import ChannelFault, NotImplementedHere
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.registry import on_channel


@on_channel(methods.ChannelOpen)
def open_(channel: Channel, method: methods.ChannelOpen) -> None:
    raise ChannelFault("second 'channel.open' seen")


@on_channel(methods.ChannelClose)
def close(channel: Channel, method: methods.ChannelClose) -> None:
    channel.connection.close_channel(channel)


@on_channel(methods.ChannelFlow)
def flow(channel: Channel, method: methods.ChannelFlow) -> None:
    if not method.active:
        raise NotImplementedHere("active=false")
    channel.connection.send(channel.number, methods.ChannelFlowOk(active=True))


@on_channel(methods.AccessRequest)
def access_request(channel: Channel, method: methods.AccessRequest) -> None:
    """Of AMQP 0-8; answered as RabbitMQ does, with a ticket that means nothing."""
    channel.connection.send(channel.number, methods.AccessRequestOk(ticket=1))
