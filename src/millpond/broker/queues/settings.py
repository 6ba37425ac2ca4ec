"""What a queue's arguments ask of it."""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

OVERFLOW_DROP_HEAD: Final = "drop-head"
OVERFLOW_REJECT: Final = "reject-publish"
OVERFLOW_REJECT_DEAD_LETTER: Final = "reject-publish-dlx"


@final
class QueueSettings:
    """The arguments that act on a running queue. -1 and None mean: not set. Replaced as a whole, never changed."""

    def __init__(
        self,
        message_ttl_ms: i64 = -1,
        length_max: i64 = -1,
        length_bytes_max: i64 = -1,
        overflow: str = OVERFLOW_DROP_HEAD,
        dead_letter_exchange: str | None = None,
        dead_letter_routing_key: str | None = None,
        expires_ms: i64 = -1,
    ) -> None:
        self.message_ttl_ms: Final[i64] = message_ttl_ms
        self.length_max: Final[i64] = length_max
        self.length_bytes_max: Final[i64] = length_bytes_max
        self.overflow: Final = overflow
        self.dead_letter_exchange: Final = dead_letter_exchange
        self.dead_letter_routing_key: Final = dead_letter_routing_key
        # The queue itself goes when nobody has used it for so long.
        self.expires_ms: Final[i64] = expires_ms

    @property
    def bounded(self) -> bool:
        """Whether the queue has a length limit of any kind."""
        return self.length_max >= 0 or self.length_bytes_max >= 0

    @property
    def rejects(self) -> bool:
        """Whether a full queue refuses new messages instead of dropping old ones."""
        return self.overflow != OVERFLOW_DROP_HEAD
