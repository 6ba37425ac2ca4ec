"""A client of the management API."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Call = Callable[..., "Answer"]


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def request(
    address: tuple[str, int],
    method: str,
    path: str,
    body: object = None,
    login: str | None = "guest:guest",
    headers: Any = None,
) -> Answer:
    """One request. `body` is sent as JSON, but for bytes, which are sent as they are."""
    sent = dict(headers or {})
    if login is not None:
        sent["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    content = body if body is None or isinstance(body, bytes) else json.dumps(body)
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        # What is too large is refused while it is being sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, content, sent)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


class Management:
    """Requests to one listener by guest, of which most are meant to succeed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def call(self, method: str, path: str, body: object = None, *, login: str = "guest:guest") -> Answer:
        return request(self._address, method, path, body, login)

    def get(self, path: str, *, login: str = "guest:guest") -> Any:
        """What is at a path that there is."""
        answer = self.call("GET", path, login=login)
        assert answer.status == 200, answer
        return answer.json

    def put(self, path: str, body: object) -> None:
        answer = self.call("PUT", path, body)
        assert answer.status in {201, 204}, answer

    def delete(self, path: str) -> None:
        answer = self.call("DELETE", path)
        assert answer.status == 204, answer
