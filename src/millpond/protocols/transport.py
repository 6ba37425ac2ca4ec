"""What a connection asks of its socket. `server/` implements it; no protocol ever sees a socket."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from millpond.base.certificate import Certificate


@mypyc_attr(allow_interpreted_subclasses=True)
class Transport:
    """One client's byte stream."""

    def write(self, data: bytes) -> None:
        """Send, now or when the socket takes it. `Connection.pause_writing` is called when too much waits."""
        raise NotImplementedError

    def write_all(self, chunks: list[bytes]) -> None:
        """Send all of them, as `write` does."""
        self.write(b"".join(chunks))

    def close(self) -> None:
        """Send what waits, then close."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def peer_host(self) -> str | None:
        """The peer's IP address; None where it is not known."""
        raise NotImplementedError

    def peer_port(self) -> int:
        raise NotImplementedError

    def local_address(self) -> tuple[str, int]:
        raise NotImplementedError

    def is_tls(self) -> bool:
        raise NotImplementedError

    def peer_certificate(self) -> Certificate | None:
        """The certificate that the peer has shown and TLS has verified; None where there is none."""
        return None
