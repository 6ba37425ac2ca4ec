"""Clients of the management API that hang up."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI, Request

from millpond.admin.requests import add_error_handlers, json_body


async def test_who_hangs_up_within_a_body_is_no_bug() -> None:
    application = FastAPI()
    add_error_handlers(application)

    @application.post("/")
    async def _read(request: Request) -> None:
        await json_body(request)

    received = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return received.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    await application(scope, receive, send)
    assert sent[0]["status"] == 400
