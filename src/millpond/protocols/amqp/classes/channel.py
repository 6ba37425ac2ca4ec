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


def describe_place(channel: Channel) -> dict[str, object]:
    """What names the channel, under the names of RabbitMQ's management API."""
    connection = channel.connection
    return {
        "name": f"{connection.name} ({channel.number})",
        "number": int(channel.number),
        "user": connection.user,
        "connection_name": connection.name,
        "peer_host": connection.transport.peer_host(),
        "peer_port": connection.transport.peer_port(),
    }


def describe(channel: Channel) -> dict[str, object]:
    """The channel in full."""
    place = describe_place(channel)
    transaction = channel.transaction
    return {
        "name": place["name"],
        "number": place["number"],
        "user": place["user"],
        "vhost": channel.vhost.name,
        "state": "running",
        "connection_details": {
            "name": place["connection_name"],
            "peer_host": place["peer_host"],
            "peer_port": place["peer_port"],
        },
        "consumer_count": len(channel.consumers),
        "prefetch_count": int(channel.prefetch),
        "global_prefetch_count": int(channel.prefetch_global),
        "confirm": channel.confirming,
        "transactional": transaction is not None,
        "messages_unacknowledged": int(channel.unsettled_count),
        "messages_unconfirmed": int(channel.unconfirmed_count),
        "messages_uncommitted": 0 if transaction is None else len(transaction.messages),
        "acks_uncommitted": 0 if transaction is None else len(transaction.entries),
        "message_stats": {
            "publish": int(channel.published_total),
            "deliver_get": int(channel.next_delivery_tag) - 1,
        },
    }
