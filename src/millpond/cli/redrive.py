"""`millpond redrive`: dead letters go back to where they died."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from millpond.cli.administration import DataOption, UrlOption, running_broker


def register(application: typer.Typer) -> None:
    application.command("redrive")(redrive)


def redrive(
    queue: Annotated[str, typer.Argument(help="The queue that holds the dead letters.")],
    to: Annotated[
        str | None, typer.Option(help="Move everything to this queue, not each message to where it died.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Look at so many messages only.")] = None,
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Move dead letters back, as they were first published. Each is in one of both queues at any time."""
    with running_broker(data, url) as broker:
        path = f"/api/queues/{quote(vhost, safe='')}/{quote(queue, safe='')}/redrive"
        result = broker.request("POST", path, {"to": to, "limit": count})
    print(f"{result['moved']} moved, {result['kept']} kept")
