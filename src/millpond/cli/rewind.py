"""`millpond rewind`: work that was done is to be done again."""

from __future__ import annotations

import datetime as dt
import time
from typing import Annotated
from urllib.parse import quote

import typer

from millpond.cli.administration import DataOption, UrlOption, running_broker


def register(application: typer.Typer) -> None:
    application.command("rewind")(rewind)


def rewind(
    queue: Annotated[str, typer.Argument(help="A queue that keeps its history, or is over a topic.")],
    to_offset: Annotated[int | None, typer.Option(min=0, help="Back to this offset of its log.")] = None,
    to_time: Annotated[
        str | None, typer.Option(help="Back to this time: 2026-05-01T12:00:00, or seconds since 1970.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Back by so long: 30s, 15m, 1h, 2D.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="One partition only, where there are several.")] = None,
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Have a queue deliver again what it has had settled. What is being worked on is left alone."""
    if sum(value is not None for value in (to_offset, to_time, by)) != 1:
        raise typer.BadParameter("one of --to-offset, --to-time and --by is needed")
    timestamp = _timestamp_ms(to_time, by)
    with running_broker(data, url) as broker:
        path = f"/api/queues/{quote(vhost, safe='')}/{quote(queue, safe='')}/rewind"
        body = {"offset": to_offset, "timestamp": timestamp, "partition": partition}
        result = broker.request("POST", path, body)
    offsets = ", ".join(
        str(offset) if len(result["offsets"]) == 1 else f"{offset} of partition {number}"
        for number, offset in result["offsets"].items()
    )
    print(f"{result['messages']} to be done again, from offset {offsets}")


def _timestamp_ms(to_time: str | None, by: str | None) -> int | None:
    if by is not None:
        from millpond.broker.streams.subscription import interval_ms

        interval = interval_ms(by)
        if interval < 0:
            raise typer.BadParameter(f"{by!r} is no interval", param_hint="--by")
        return max(0, int(time.time() * 1000) - interval)
    if to_time is None:
        return None
    try:
        return int(float(to_time) * 1000)
    except ValueError:
        pass
    try:
        return int(dt.datetime.fromisoformat(to_time).timestamp() * 1000)
    except ValueError:
        raise typer.BadParameter(f"{to_time!r} is no time", param_hint="--to-time") from None
