"""Where the broker under test listens, and who may log in."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pika


@dataclass(frozen=True)
class Endpoint:
    host: str
    port: int
    username: str = "guest"
    password: str = "guest"
    virtual_host: str = "/"

    @classmethod
    def of_url(cls, url: str) -> Endpoint:
        """The endpoint of an `amqp://user:password@host:port/vhost` URL; an absent part has RabbitMQ's default."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5672,
            username=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            virtual_host=unquote(parts.path[1:]) or "/",
        )

    @property
    def url(self) -> str:
        vhost = self.virtual_host.replace("/", "%2F")
        return f"amqp://{self.username}:{self.password}@{self.host}:{self.port}/{vhost}"

    def parameters(self, **overrides: object) -> pika.ConnectionParameters:
        """pika's parameters; `overrides` are pika's own keywords."""
        settings: dict[str, object] = {
            "host": self.host,
            "port": self.port,
            "virtual_host": self.virtual_host,
            "credentials": pika.PlainCredentials(self.username, self.password),
            "socket_timeout": 10.0,
            # A test that hangs in an RPC fails by this instead of by the runner's timeout.
            "blocked_connection_timeout": 20.0,
            **overrides,
        }
        return pika.ConnectionParameters(**settings)
