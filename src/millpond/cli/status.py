"""`millpond status`: what a running broker is doing."""

from __future__ import annotations

import json as json_format
from typing import Annotated

import typer

from millpond.cli.administration import DataOption, UrlOption, running_broker
from millpond.cli.table import print_table

QUEUE_FIELDS = ["vhost", "name", "messages_ready", "messages_unacknowledged", "consumers"]


def register(application: typer.Typer) -> None:
    application.command("status")(status)


def status(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Show what a running broker is doing: its listeners, its alarms, its queues."""
    with running_broker(data, url) as broker:
        overview = broker.request("GET", "/api/overview")
        queues = broker.request("GET", "/api/queues")
    if json:
        print(json_format.dumps({**overview, "queues": queues}, indent=2, ensure_ascii=False))
        return
    totals, messages = overview["object_totals"], overview["queue_totals"]
    print(f"millpond {overview['product_version']}, process {overview['os_pid']}, up {overview['uptime'] // 1000} s")
    for listener in overview["listeners"]:
        print(f"  {listener['protocol']:8} {listener['ip_address']}:{listener['port']}")
    print(f"  memory   {overview['mem_used'] >> 20} of {overview['mem_limit'] >> 20} MiB for messages")
    print(f"  alarms   {', '.join(overview['alarms']) or 'none'}")
    print(
        f"  {totals['connections']} connections, {totals['queues']} queues, {totals['topics']} topics, "
        f"{totals['consumers']} consumers; "
        f"{messages['messages_ready']} messages ready, {messages['messages_unacknowledged']} unacknowledged"
    )
    if queues:
        print_table(queues, QUEUE_FIELDS, as_json=False)
