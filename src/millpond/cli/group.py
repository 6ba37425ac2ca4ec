"""`millpond group`: the groups of Kafka's clients, on a running broker."""

from __future__ import annotations

import json as json_format
from typing import Annotated
from urllib.parse import quote

import typer

from millpond.cli.administration import DataOption, UrlOption, running_broker
from millpond.cli.table import print_table

commands = typer.Typer(help="Groups of Kafka's clients.", no_args_is_help=False)

LISTED = ["vhost", "name", "type", "state", "generation", "members", "offsets"]
DESCRIBED = ["member_id", "instance_id", "client_id", "client_host", "assignment"]

Name = Annotated[str, typer.Argument(help="The group's name.")]
Vhost = Annotated[str, typer.Option("--vhost", "-p", help="The virtual host.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@commands.command("list")
def list_groups(
    vhost: Annotated[str | None, typer.Option("--vhost", "-p", help="Those of one virtual host.")] = None,
    json: AsJson = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List the groups of all virtual hosts, with their types and states."""
    with running_broker(data, url) as broker:
        groups = broker.request("GET", "/api/groups" + ("" if vhost is None else f"/{quote(vhost, safe='')}"))
    print_table([{field: group[field] for field in LISTED} for group in groups], LISTED, json)


@commands.command("describe")
def describe_group(
    name: Name, vhost: Vhost = "/", json: AsJson = False, data: DataOption = None, url: UrlOption = None
) -> None:
    """Show a group's members and what they read; with --json all that is known of it, offsets too."""
    with running_broker(data, url) as broker:
        group = broker.request("GET", f"/api/groups/{quote(vhost, safe='')}/{quote(name, safe='')}")
    if json:
        print(json_format.dumps(group, indent=2, ensure_ascii=False))
        return
    rows = [
        {**{field: member[field] for field in DESCRIBED}, "assignment": json_format.dumps(member["assignment"])}
        for member in group["member_details"]
    ]
    print_table(rows, DESCRIBED, False)
