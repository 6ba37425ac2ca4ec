"""A client of the management API, for tests."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Management:
    """Requests to one listener, each over a connection of its own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def call(self, method: str, path: str, body: object = None, *, login: str = "guest:guest") -> Answer:
        """`body` is sent as JSON, unless it is bytes."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

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
