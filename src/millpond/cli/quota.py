"""`millpond quota`: how many bytes a second Kafka's clients may produce and fetch."""

from __future__ import annotations

from typing import Annotated

import typer

from millpond.base.errors import PreconditionFailed
from millpond.cli.administration import DataOption, UrlOption, administration
from millpond.cli.table import print_table

commands = typer.Typer(help="How much Kafka's clients may produce and fetch.", no_args_is_help=False)

FIELDS = ["user", "client-id", "producer_byte_rate", "consumer_byte_rate"]
# How the default of all that have no quota of their own is shown.
DEFAULT = "<default>"

UserOption = Annotated[str | None, typer.Option(help="Of this user.")]
ClientOption = Annotated[str | None, typer.Option(help="Of this client id.")]
DefaultUserOption = Annotated[bool, typer.Option("--default-user", help="Of each user without one.")]
DefaultClientOption = Annotated[bool, typer.Option("--default-client", help="Of each client id without one.")]


def _entity(user: str | None, client_id: str | None, default_user: bool, default_client: bool) -> dict[str, str | None]:
    if (user is not None and default_user) or (client_id is not None and default_client):
        raise PreconditionFailed("a quota is of one user or client id, or of the default")
    entity: dict[str, str | None] = {}
    if user is not None or default_user:
        entity["user"] = user
    if client_id is not None or default_client:
        entity["client-id"] = client_id
    if not entity:
        raise PreconditionFailed("say what the quota is of: --user, --client-id, --default-user, --default-client")
    return entity


@commands.command("set")
def set_quota(
    producer: Annotated[float | None, typer.Option("--producer-byte-rate", help="Bytes a second to produce.")] = None,
    consumer: Annotated[float | None, typer.Option("--consumer-byte-rate", help="Bytes a second to fetch.")] = None,
    user: UserOption = None,
    client_id: ClientOption = None,
    default_user: DefaultUserOption = False,
    default_client: DefaultClientOption = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Set quotas of a user, a client id, or both together. What is not given stays."""
    given = {"producer_byte_rate": producer, "consumer_byte_rate": consumer}
    quotas = {name: value for name, value in given.items() if value is not None}
    if not quotas:
        raise PreconditionFailed("say how much: --producer-byte-rate, --consumer-byte-rate")
    with administration(data, url) as broker:
        broker.alter_quotas(_entity(user, client_id, default_user, default_client), {**quotas})


@commands.command("clear")
def clear_quota(
    user: UserOption = None,
    client_id: ClientOption = None,
    default_user: DefaultUserOption = False,
    default_client: DefaultClientOption = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Take all quotas of a user, a client id, or both together away."""
    from millpond.broker.quotas import NAMES

    with administration(data, url) as broker:
        broker.alter_quotas(_entity(user, client_id, default_user, default_client), dict.fromkeys(NAMES))


@commands.command("list")
def list_quotas(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List all quotas."""
    with administration(data, url) as broker:
        quotas = [_shown(one) for one in broker.quotas()]
    print_table(quotas, FIELDS, json)


def _shown(one: dict[str, dict[str, object]]) -> dict[str, object]:
    entity = {kind: DEFAULT if name is None else name for kind, name in one["entity"].items()}
    return {**dict.fromkeys(FIELDS, ""), **entity, **one["quotas"]}
