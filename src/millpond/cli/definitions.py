"""`millpond export` and `millpond import`: a running broker's definitions, all but messages, as a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from millpond.base.errors import PreconditionFailed
from millpond.cli.administration import DataOption, UrlOption, running_broker

VhostOption = Annotated[
    str | None,
    typer.Option(help="One virtual host only; without it, all of them and the users.", show_default=False),
]

# What names users: left out for a broker that has users of its own, or that cannot use our password hashes.
OF_USERS = ("users", "permissions", "topic_permissions")


def register(application: typer.Typer) -> None:
    application.command("export")(export)
    application.command("import")(import_file)


def export(
    file: Annotated[Path | None, typer.Argument(help="Where to; standard output where it is left out.")] = None,
    vhost: VhostOption = None,
    users: Annotated[bool, typer.Option(help="With users, password hashes and permissions.")] = True,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Write definitions in RabbitMQ's format: users, virtual hosts, policies, queues, exchanges, bindings."""
    with running_broker(data, url) as broker:
        definitions: dict[str, Any] = broker.request("GET", _path(vhost))
    if not users:
        definitions = {key: value for key, value in definitions.items() if key not in OF_USERS}
    text = json.dumps(definitions, indent=2) + "\n"
    if file is None:
        print(text, end="")
    else:
        _write(file, text)


def import_file(
    file: Annotated[Path, typer.Argument(help="The file, of RabbitMQ or of Millpond; - is standard input.")],
    vhost: VhostOption = None,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Read definitions: what is missing is made, and users, permissions and policies are replaced. All or nothing."""
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        definitions = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PreconditionFailed(f"{file} is not JSON: {error}") from None
    with running_broker(data, url) as broker:
        broker.request("POST", _path(vhost), definitions)


def _path(vhost: str | None) -> str:
    return "/api/definitions" + ("" if vhost is None else f"/{quote(vhost, safe='')}")


def _write(file: Path, text: str) -> None:
    """It holds password hashes: a new file is its owner's only."""
    with os.fdopen(os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as stream:
        stream.write(text)
