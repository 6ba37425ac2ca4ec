"""Kafka's client quotas in the management API: /api/quotas. Only administrators see and change them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from millpond.admin import changes
from millpond.admin.requests import Json, administrators_only, body_as
from millpond.broker.broker import Broker


class QuotaBody(BaseModel):
    """`entity` has "user", "client-id" or both: a name, or null for all that have no quota of their own. A quota that
    is null is taken away; others that there are stay."""

    entity: dict[str, str | None]
    quotas: dict[str, float | None]


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api", dependencies=[Depends(administrators_only)])

    @made.get("/quotas")
    async def _all() -> Response:
        return Json([{"entity": entity, "quotas": quotas} for entity, quotas in broker.quotas.items()])

    @made.put("/quotas", status_code=204)
    async def _put(body: Annotated[QuotaBody, body_as(QuotaBody)]) -> None:
        await changes.alter_quotas(broker, body.entity, body.quotas)

    return made
