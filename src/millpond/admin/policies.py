"""The routes of policies and operator policies. Who may set the first, a policymaker, may not lift the second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.params import Depends as Dependency
from pydantic import BaseModel, Field

from millpond.admin import policy_changes
from millpond.admin.requests import InVhost, Json, Name, Paged, Visible, administrators_only, body_as, policymakers_only
from millpond.admin.views import Shown
from millpond.base.errors import NotFound, PreconditionFailed
from millpond.broker.broker import Broker
from millpond.broker.definitions.exports import policy
from millpond.broker.policies import OPERATOR_POLICY, POLICY, checked_policy
from millpond.broker.vhost import VirtualHost


class PolicyBody(BaseModel):
    # What a policy may be, `checked_policy` says, in RabbitMQ's words.
    pattern: Any = None
    definition: Any = None
    priority: Any = None
    apply_to: Any = Field(None, alias="apply-to")


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api")
    for path, kind, guard in (
        ("/policies", POLICY, Depends(policymakers_only)),
        ("/operator-policies", OPERATOR_POLICY, Depends(administrators_only)),
    ):
        _add(made, broker, path, kind, guard)
    return made


def _add(made: APIRouter, broker: Broker, path: str, kind: str, guard: Dependency) -> None:
    def shown(vhosts: list[VirtualHost]) -> list[Shown]:
        rows = [row for vhost in vhosts for row in vhost.policies.rows(kind)]
        return [policy(row) for row in sorted(rows, key=lambda row: (row.priority, row.vhost, row.name))]

    @made.get(path)
    async def _everywhere(visible: Visible, page: Paged) -> Response:
        return page.of(shown(visible))

    @made.get(path + "/{vhost}")
    async def _in_vhost(found: InVhost, page: Paged) -> Response:
        return page.of(shown(found))

    @made.get(path + "/{vhost}/{name}", dependencies=[guard])
    async def _one(found: InVhost, name: Name) -> Response:
        return Json(policy(found[0].policies.row(name, kind)))

    @made.put(path + "/{vhost}/{name}", dependencies=[guard])
    async def _put(found: InVhost, name: Name, body: Annotated[PolicyBody, body_as(PolicyBody)]) -> Response:
        [vhost] = found
        if missing := [field for field in ("pattern", "definition") if field not in body.model_fields_set]:
            raise PreconditionFailed(f"[{','.join(f'{{key_missing,{field}}}' for field in missing)}]")
        row = checked_policy(vhost.name, name, kind, body.pattern, body.definition, body.priority, body.apply_to)
        exists = _exists(lambda: vhost.policies.row(name, kind))
        await policy_changes.put_policy(broker, row)
        return Response(status_code=204 if exists else 201)

    @made.delete(path + "/{vhost}/{name}", status_code=204, dependencies=[guard])
    async def _delete(found: InVhost, name: Name) -> None:
        await policy_changes.delete_policy(broker, found[0].name, name, kind)


def _exists(find: Callable[[], object]) -> bool:
    try:
        find()
    except NotFound:
        return False
    return True
