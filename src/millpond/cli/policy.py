"""`millpond policy`: settings for all queues and exchanges whose names match, changed while they run."""

from __future__ import annotations

import json as json_format
from enum import StrEnum
from typing import Annotated
from urllib.parse import quote

import typer

from millpond.base.errors import PreconditionFailed
from millpond.cli.administration import DataOption, UrlOption, running_broker
from millpond.cli.table import print_table

commands = typer.Typer(help="Settings for queues and exchanges by their names.", no_args_is_help=False)

FIELDS = ["vhost", "name", "pattern", "apply-to", "definition", "priority"]

Name = Annotated[str, typer.Argument(help="The policy's name.")]
Vhost = Annotated[str, typer.Option("--vhost", "-p", help="The virtual host.")]
Operator = Annotated[bool, typer.Option("--operator", help="An operator policy: limits that users cannot lift.")]


class ApplyTo(StrEnum):
    ALL = "all"
    QUEUES = "queues"
    CLASSIC_QUEUES = "classic_queues"
    QUORUM_QUEUES = "quorum_queues"
    STREAMS = "streams"
    EXCHANGES = "exchanges"


@commands.command("set")
def set_policy(
    name: Name,
    pattern: Annotated[str, typer.Argument(help="Which names it is for: a regular expression.")],
    definition: Annotated[str, typer.Argument(help="What it sets, as JSON: '{\"max-length\": 1000}'.")],
    priority: Annotated[int, typer.Option(help="Of several that match, the one with the highest applies.")] = 0,
    apply_to: Annotated[ApplyTo, typer.Option(help="What it is for.")] = ApplyTo.ALL,
    vhost: Vhost = "/",
    operator: Operator = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Set a policy, or change it. It acts at once on every queue and exchange that it matches."""
    try:
        settings = json_format.loads(definition)
    except ValueError as error:
        raise PreconditionFailed(f"the definition is not JSON: {error}") from None
    body = {"pattern": pattern, "definition": settings, "priority": priority, "apply-to": apply_to.value}
    with running_broker(data, url) as broker:
        broker.request("PUT", f"{_path(operator)}/{quote(vhost, safe='')}/{quote(name, safe='')}", body)


@commands.command("list")
def list_policies(
    vhost: Annotated[str | None, typer.Option("--vhost", "-p", help="Those of one virtual host.")] = None,
    operator: Operator = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List the policies of all virtual hosts, those that are tried first last."""
    with running_broker(data, url) as broker:
        policies = broker.request("GET", _path(operator) + ("" if vhost is None else f"/{quote(vhost, safe='')}"))
    rows = [{field: policy[field] for field in FIELDS} for policy in policies]
    if not json:
        rows = [{**row, "definition": json_format.dumps(row["definition"])} for row in rows]
    print_table(rows, FIELDS, json)


@commands.command("clear")
def clear_policy(
    name: Name,
    vhost: Vhost = "/",
    operator: Operator = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Clear a policy. What it set is at once as it was without it."""
    with running_broker(data, url) as broker:
        broker.request("DELETE", f"{_path(operator)}/{quote(vhost, safe='')}/{quote(name, safe='')}")


def _path(operator: bool) -> str:
    return "/api/operator-policies" if operator else "/api/policies"
