"""The routes of runtime parameters, global parameters, and limits of virtual hosts and users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from millpond.admin import policy_changes
from millpond.admin.requests import (
    Asking,
    InVhost,
    Json,
    Name,
    Paged,
    Visible,
    administrators_only,
    body_as,
    policymakers_only,
)
from millpond.admin.views import Shown
from millpond.base.errors import AccessRefused, PreconditionFailed
from millpond.broker.broker import Broker
from millpond.broker.parameters import OPERATOR_POLICIES, VHOST_LIMITS
from millpond.broker.vhost import VirtualHost
from millpond.catalog.rows import ParameterRow


class ValueBody(BaseModel):
    value: Any = None

    def given(self) -> Any:
        if "value" not in self.model_fields_set:
            raise PreconditionFailed("[{key_missing,value}]")
        return self.value


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api")
    made.include_router(_parameters(broker))
    made.include_router(_global_parameters(broker))
    made.include_router(_limits(broker))
    return made


def _parameters(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/parameters", dependencies=[Depends(policymakers_only)])
    parameters = broker.parameters

    def check_component(component: Name, principal: Asking) -> None:
        # These are limits that an operator sets; by their own paths they are for administrators only, too.
        if component in {OPERATOR_POLICIES, VHOST_LIMITS} and not principal.is_administrator:
            raise AccessRefused("Not administrator user")

    changing = [Depends(check_component)]

    def shown(rows: Iterable[ParameterRow], vhosts: list[VirtualHost]) -> list[Shown]:
        seen = {vhost.name for vhost in vhosts}
        return [_parameter(row) for row in rows if row.vhost in seen]

    @made.get("")
    async def _all(visible: Visible, page: Paged) -> Response:
        return page.of(shown(parameters.rows(), visible))

    @made.get("/{component}")
    async def _of_component(component: Name, visible: Visible, page: Paged) -> Response:
        return page.of(shown(parameters.rows(component), visible))

    @made.get("/{component}/{vhost}")
    async def _of_vhost(component: Name, found: InVhost, page: Paged) -> Response:
        return page.of(shown(parameters.rows(component), found))

    @made.get("/{component}/{vhost}/{name}")
    async def _one(component: Name, found: InVhost, name: Name) -> Response:
        return Json(_parameter(parameters.row(found[0].name, component, name)))

    @made.put("/{component}/{vhost}/{name}", dependencies=changing)
    async def _put(
        component: Name, found: InVhost, name: Name, body: Annotated[ValueBody, body_as(ValueBody)]
    ) -> Response:
        vhost = found[0].name
        exists = any(row.name == name for row in parameters.rows(component, vhost))
        await policy_changes.put_parameter(broker, vhost, component, name, body.given())
        return Response(status_code=204 if exists else 201)

    @made.delete("/{component}/{vhost}/{name}", status_code=204, dependencies=changing)
    async def _clear(component: Name, found: InVhost, name: Name) -> None:
        await policy_changes.clear_parameter(broker, found[0].name, component, name)

    return made


def _global_parameters(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/global-parameters", dependencies=[Depends(policymakers_only)])
    parameters = broker.parameters

    @made.get("")
    async def _all(page: Paged) -> Response:
        return page.of({"name": row.name, "value": row.value} for row in parameters.global_rows())

    @made.get("/{name}")
    async def _one(name: Name) -> Response:
        row = parameters.global_row(name)
        return Json({"name": row.name, "value": row.value})

    @made.put("/{name}")
    async def _put(name: Name, body: Annotated[ValueBody, body_as(ValueBody)]) -> Response:
        exists = any(row.name == name for row in parameters.global_rows())
        await policy_changes.put_global_parameter(broker, name, body.given())
        return Response(status_code=204 if exists else 201)

    @made.delete("/{name}", status_code=204)
    async def _clear(name: Name) -> None:
        await policy_changes.clear_global_parameter(broker, name)

    return made


def _limits(broker: Broker) -> APIRouter:
    made = APIRouter()
    administrators = [Depends(administrators_only)]
    parameters = broker.parameters

    def of_vhosts(vhosts: list[VirtualHost]) -> list[Shown]:
        limits = ((vhost.name, parameters.limits_of_vhost(vhost.name)) for vhost in vhosts)
        return [{"vhost": name, "value": value} for name, value in limits if value]

    def of_users(names: Iterable[str]) -> list[Shown]:
        limits = ((name, parameters.limits_of_user(name)) for name in names)
        return [{"user": name, "value": value} for name, value in limits if value]

    @made.get("/vhost-limits")
    async def _vhosts(visible: Visible, page: Paged) -> Response:
        return page.of(of_vhosts(visible))

    @made.get("/vhost-limits/{vhost}")
    async def _vhost(found: InVhost, page: Paged) -> Response:
        return page.of(of_vhosts(found))

    @made.put("/vhost-limits/{vhost}/{name}", status_code=204, dependencies=administrators)
    async def _put_vhost(found: InVhost, name: Name, body: Annotated[ValueBody, body_as(ValueBody)]) -> None:
        await policy_changes.put_vhost_limit(broker, found[0].name, name, body.given())

    @made.delete("/vhost-limits/{vhost}/{name}", status_code=204, dependencies=administrators)
    async def _clear_vhost(found: InVhost, name: Name) -> None:
        await policy_changes.clear_vhost_limit(broker, found[0].name, name)

    @made.get("/user-limits", dependencies=administrators)
    async def _users(page: Paged) -> Response:
        return page.of(of_users(user.name for user in broker.access.list_users()))

    @made.get("/user-limits/{user}")
    async def _user(user: Name, principal: Asking, page: Paged) -> Response:
        if not principal.sees_everything and principal.name != user:
            raise AccessRefused("User not authorised to access object")
        return page.of(of_users([broker.access.user(user).name]))

    @made.put("/user-limits/{user}/{name}", status_code=204, dependencies=administrators)
    async def _put_user(user: Name, name: Name, body: Annotated[ValueBody, body_as(ValueBody)]) -> None:
        await policy_changes.put_user_limit(broker, user, name, body.given())

    @made.delete("/user-limits/{user}/{name}", status_code=204, dependencies=administrators)
    async def _clear_user(user: Name, name: Name) -> None:
        await policy_changes.clear_user_limit(broker, user, name)

    return made


def _parameter(row: ParameterRow) -> Shown:
    return {"value": row.value, "vhost": row.vhost, "component": row.component, "name": row.name}
