"""Reply codes of AMQP 0-9-1, as RabbitMQ gives them for the core's errors.

A soft error closes the channel, a hard one the connection. The text is "NAME - what happened", as clients parse it.
See AMQP 0-9-1, 1.2, and https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from millpond.base.errors import PeerError
from millpond.base.limits import NAME_BYTES_MAX


class Reply(NamedTuple):
    """A reply code. `hard` says that the connection cannot go on, `name` is RabbitMQ's constant."""

    code: int
    name: str
    hard: bool

    def text(self, explanation: str) -> str:
        """The reply text, cut to what a short string holds."""
        encoded = f"{self.name} - {explanation}".encode("utf-8", "surrogateescape")
        # A character that is cut through is left out; what was never UTF-8 cannot be sent as text.
        return encoded[:NAME_BYTES_MAX].decode("utf-8", "ignore")


CONTENT_TOO_LARGE: Final = Reply(311, "CONTENT_TOO_LARGE", False)
NO_ROUTE: Final = Reply(312, "NO_ROUTE", False)
NO_CONSUMERS: Final = Reply(313, "NO_CONSUMERS", False)
CONNECTION_FORCED: Final = Reply(320, "CONNECTION_FORCED", True)
INVALID_PATH: Final = Reply(402, "INVALID_PATH", True)
ACCESS_REFUSED: Final = Reply(403, "ACCESS_REFUSED", False)
NOT_FOUND: Final = Reply(404, "NOT_FOUND", False)
RESOURCE_LOCKED: Final = Reply(405, "RESOURCE_LOCKED", False)
PRECONDITION_FAILED: Final = Reply(406, "PRECONDITION_FAILED", False)
FRAME_ERROR: Final = Reply(501, "FRAME_ERROR", True)
SYNTAX_ERROR: Final = Reply(502, "SYNTAX_ERROR", True)
COMMAND_INVALID: Final = Reply(503, "COMMAND_INVALID", True)
CHANNEL_ERROR: Final = Reply(504, "CHANNEL_ERROR", True)
UNEXPECTED_FRAME: Final = Reply(505, "UNEXPECTED_FRAME", True)
RESOURCE_ERROR: Final = Reply(506, "RESOURCE_ERROR", True)
NOT_ALLOWED: Final = Reply(530, "NOT_ALLOWED", True)
NOT_IMPLEMENTED: Final = Reply(540, "NOT_IMPLEMENTED", True)
INTERNAL_ERROR: Final = Reply(541, "INTERNAL_ERROR", True)

# The `kind` of a core error -> its reply.
REPLIES: Final[dict[str, Reply]] = {
    "not-found": NOT_FOUND,
    "access-refused": ACCESS_REFUSED,
    "precondition-failed": PRECONDITION_FAILED,
    "resource-locked": RESOURCE_LOCKED,
    "not-allowed": NOT_ALLOWED,
    "not-implemented": NOT_IMPLEMENTED,
    "syntax-error": SYNTAX_ERROR,
    "frame-error": FRAME_ERROR,
    "unexpected-frame": UNEXPECTED_FRAME,
    "command-invalid": COMMAND_INVALID,
    "channel-error": CHANNEL_ERROR,
    # What RabbitMQ answers to too many connections or channels.
    "limit-exceeded": NOT_ALLOWED,
}


def reply_for(error: PeerError) -> Reply:
    """The reply of an error. One without a line in the table is our mistake, and is answered as such."""
    return REPLIES.get(error.kind, INTERNAL_ERROR)
