"""`millpond permission`: what users may do."""

from __future__ import annotations

from typing import Annotated

import typer

from millpond.cli.administration import DataOption, UrlOption, administration
from millpond.cli.table import print_table

commands = typer.Typer(help="What users may do.", no_args_is_help=False)

FIELDS = ["user", "vhost", "configure", "write", "read"]
TOPIC_FIELDS = ["user", "vhost", "exchange", "write", "read"]


@commands.command("set")
def set_permission(
    user: Annotated[str, typer.Argument(help="The user's name.")],
    configure: Annotated[str, typer.Argument(help="What may be declared and deleted: a regular expression.")],
    write: Annotated[str, typer.Argument(help="What may be published to: a regular expression.")],
    read: Annotated[str, typer.Argument(help="What may be consumed from: a regular expression.")],
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Give a user access to a virtual host: which names it may configure, write to and read from."""
    with administration(data, url) as broker:
        broker.set_permission(user, vhost, configure, write, read)


@commands.command("clear")
def clear_permission(
    user: Annotated[str, typer.Argument(help="The user's name.")],
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Take a user's access to a virtual host away."""
    with administration(data, url) as broker:
        broker.clear_permission(user, vhost)


@commands.command("list")
def list_permissions(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List all permissions."""
    with administration(data, url) as broker:
        permissions = [{field: permission[field] for field in FIELDS} for permission in broker.permissions()]
    print_table(permissions, FIELDS, json)


@commands.command("set-topic")
def set_topic_permission(
    user: Annotated[str, typer.Argument(help="The user's name.")],
    exchange: Annotated[str, typer.Argument(help="The topic exchange.")],
    write: Annotated[str, typer.Argument(help="Routing keys to publish with: a regular expression.")],
    read: Annotated[str, typer.Argument(help="Routing keys to bind by: a regular expression.")],
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Say by which routing keys a user may use a topic exchange; {username} and {vhost} stand for those."""
    with administration(data, url) as broker:
        broker.set_topic_permission(user, vhost, exchange, write, read)


@commands.command("clear-topic")
def clear_topic_permissions(
    user: Annotated[str, typer.Argument(help="The user's name.")],
    exchange: Annotated[str | None, typer.Argument(help="The topic exchange; all of them without it.")] = None,
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Allow a user every routing key again."""
    with administration(data, url) as broker:
        broker.clear_topic_permissions(user, vhost, exchange)


@commands.command("list-topic")
def list_topic_permissions(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List all topic permissions."""
    with administration(data, url) as broker:
        permissions = [{field: row[field] for field in TOPIC_FIELDS} for row in broker.topic_permissions()]
    print_table(permissions, TOPIC_FIELDS, json)
