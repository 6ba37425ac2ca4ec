"""`millpond transaction`: the transactions of Kafka's producers, on a running broker."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from millpond.cli.administration import DataOption, UrlOption, running_broker
from millpond.cli.table import print_table

commands = typer.Typer(help="Transactions of Kafka's producers.", no_args_is_help=False)

LISTED = ["vhost", "name", "state", "producer_id", "producer_epoch", "started_at", "timeout_ms", "partitions", "groups"]


@commands.command("list")
def list_transactions(
    vhost: Annotated[str | None, typer.Option("--vhost", "-p", help="Those of one virtual host.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Those that are open only.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List transactional ids with their latest transactions."""
    with running_broker(data, url) as broker:
        found = broker.request("GET", "/api/transactions" + ("" if vhost is None else f"/{quote(vhost, safe='')}"))
    rows = [{field: one[field] for field in LISTED} for one in found if not open or one["state"] == "Ongoing"]
    print_table(rows, LISTED, json)


@commands.command("abort")
def abort_transaction(
    name: Annotated[str, typer.Argument(help="The transactional id.")],
    vhost: Annotated[str, typer.Option("--vhost", "-p", help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Abort an open transaction, and shut its producer out."""
    with running_broker(data, url) as broker:
        broker.request("DELETE", f"/api/transactions/{quote(vhost, safe='')}/{quote(name, safe='')}")
