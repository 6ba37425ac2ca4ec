"""Transactions of Kafka's producers in the management API: Millpond's own paths."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from millpond.admin import changes
from millpond.admin.groups import GroupName
from millpond.admin.requests import InVhost, Json, Paged, UsableVhost, Visible, administrators_only
from millpond.admin.views import Shown
from millpond.broker.broker import Broker
from millpond.broker.transactions.store import Transaction
from millpond.broker.vhost import VirtualHost


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api")

    @made.get("/transactions")
    async def _everywhere(visible: Visible, page: Paged) -> Response:
        return page.of(_listed(vhost, one) for vhost in visible for one in vhost.transactions.all())

    @made.get("/transactions/{vhost}")
    async def _in_vhost(found: InVhost, page: Paged) -> Response:
        return page.of(_listed(vhost, one) for vhost in found for one in vhost.transactions.all())

    @made.get("/transactions/{vhost}/{name}")
    async def _transaction(found: InVhost, name: GroupName) -> Response:
        [vhost] = found
        transaction = vhost.transactions.find(name)
        partitions = [{"topic": topic, "partition": number} for topic, number in transaction.partitions]
        groups = list(transaction.groups)
        return Json({**_listed(vhost, transaction), "partition_details": partitions, "group_details": groups})

    @made.delete("/transactions/{vhost}/{name}", status_code=204, dependencies=[Depends(administrators_only)])
    async def _abort(vhost: UsableVhost, name: GroupName) -> None:
        await changes.abort_transaction(broker, vhost, name)

    return made


def _listed(vhost: VirtualHost, transaction: Transaction) -> Shown:
    head = transaction.head
    return {
        "name": transaction.id,
        "vhost": vhost.name,
        "state": head.state,
        "producer_id": head.producer_id,
        "producer_epoch": head.epoch,
        "timeout_ms": head.timeout_ms,
        "started_at": head.started_ms,
        "changed_at": head.updated_ms,
        "partitions": len(transaction.partitions),
        "groups": len(transaction.groups),
    }
