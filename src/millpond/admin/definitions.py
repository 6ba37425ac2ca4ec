"""The routes of definitions: a broker, or one virtual host, as a document to keep and to read back."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response

from millpond.admin import policy_changes
from millpond.admin.requests import InVhost, Json, administrators_only
from millpond.base.errors import PreconditionFailed
from millpond.broker.broker import Broker
from millpond.broker.definitions.exports import exported, exported_vhost

UTF8_BOM: Final = b"\xef\xbb\xbf"


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api", dependencies=[Depends(administrators_only)])
    # A document takes a multiple of its size while it is read.
    importing = asyncio.Lock()

    @made.get("/definitions")
    async def _export(request: Request) -> Response:
        return _document(request, exported(broker))

    @made.get("/definitions/{vhost}")
    async def _export_vhost(request: Request, found: InVhost) -> Response:
        return _document(request, exported_vhost(broker, found[0]))

    @made.post("/definitions", status_code=204)
    async def _import(request: Request) -> None:
        async with importing:
            await policy_changes.import_definitions(broker, await _read(request), None)

    @made.post("/definitions/{vhost}", status_code=204)
    async def _import_vhost(request: Request, found: InVhost) -> None:
        async with importing:
            await policy_changes.import_definitions(broker, await _read(request), found[0].name)

    return made


async def _read(request: Request) -> Any:
    body = await request.body()
    try:
        return await asyncio.to_thread(json.loads, body.removeprefix(UTF8_BOM) or b"{}")
    except (ValueError, RecursionError):
        raise PreconditionFailed("failed_to_parse_json") from None


def _document(request: Request, definitions: dict[str, Any]) -> Response:
    answer = Json(definitions, headers={"Cache-Control": "no-cache"})
    download = request.query_params.get("download", "")
    # Only what can be a file's name without quotes.
    if download and all(character.isalnum() or character in "-_." for character in download) and download.isascii():
        answer.headers["Content-Disposition"] = f"attachment; filename={download}"
    return answer
