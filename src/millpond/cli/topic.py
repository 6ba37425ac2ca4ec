"""`millpond topic`: the topics that Kafka's clients use, on a running broker."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from millpond.cli.administration import DataOption, UrlOption, running_broker
from millpond.cli.table import print_table

commands = typer.Typer(help="Topics, which Kafka's clients use.", no_args_is_help=False)

LISTED = ["vhost", "name", "partitions", "messages", "bytes", "configs"]
DESCRIBED = ["partition", "start_offset", "end_offset", "bytes", "bytes_in_memory", "producers"]

Name = Annotated[str, typer.Argument(help="The topic's name.")]
Vhost = Annotated[str, typer.Option("--vhost", "-p", help="The virtual host.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@commands.command("list")
def list_topics(
    vhost: Annotated[str | None, typer.Option("--vhost", "-p", help="Those of one virtual host.")] = None,
    json: AsJson = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List the topics of all virtual hosts, with what each was configured."""
    with running_broker(data, url) as broker:
        topics = broker.request("GET", "/api/topics" + ("" if vhost is None else f"/{quote(vhost, safe='')}"))
    rows = [{field: topic[field] for field in LISTED} for topic in topics]
    if not json:
        rows = [{**row, "configs": json_format.dumps(row["configs"])} for row in rows]
    print_table(rows, LISTED, json)


@commands.command("create")
def create_topic(
    name: Name,
    partitions: Annotated[int, typer.Option(help="How many partitions it has.")] = 1,
    config: Annotated[
        list[str] | None, typer.Option("--config", metavar="KEY=VALUE", help="An entry of its configuration.")
    ] = None,
    vhost: Vhost = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Create a topic. One that is there already and is the same is left as it is."""
    body = {"partitions": partitions, "configs": _entries(config)}
    with running_broker(data, url) as broker:
        broker.request("PUT", _path(vhost, name), body)


@commands.command("delete")
def delete_topic(name: Name, vhost: Vhost = "/", data: DataOption = None, url: UrlOption = None) -> None:
    """Delete a topic with all its records."""
    with running_broker(data, url) as broker:
        broker.request("DELETE", _path(vhost, name))


@commands.command("describe")
def describe_topic(
    name: Name, vhost: Vhost = "/", json: AsJson = False, data: DataOption = None, url: UrlOption = None
) -> None:
    """Show a topic's partitions; with --json all that is known of it."""
    with running_broker(data, url) as broker:
        topic = broker.request("GET", _path(vhost, name))
    if json:
        print(json_format.dumps(topic, indent=2, ensure_ascii=False))
    else:
        print_table(topic["partition_details"], DESCRIBED, False)


@commands.command("alter")
def alter_topic(
    name: Name,
    partitions: Annotated[int | None, typer.Option(help="How many partitions it is to have: more than now.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an entry of its configuration.")
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="KEY", help="Let an entry have its default again.")
    ] = None,
    vhost: Vhost = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Change a topic's configuration, or give it more partitions. It acts at once."""
    configs: dict[str, Any] = {**_entries(set), **dict.fromkeys(unset or (), None)}
    if not configs and partitions is None:
        raise typer.BadParameter("nothing to change: give --partitions, --set or --unset")
    with running_broker(data, url) as broker:
        if configs:
            broker.request("PATCH", _path(vhost, name), {"configs": configs})
        if partitions is not None:
            broker.request("POST", f"{_path(vhost, name)}/partitions", {"count": partitions})


def _entries(texts: Sequence[str] | None) -> dict[str, str]:
    entries = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"'{text}' is no entry: write KEY=VALUE")
        entries[key] = value
    return entries


def _path(vhost: str, name: str) -> str:
    return f"/api/topics/{quote(vhost, safe='')}/{quote(name, safe='')}"
