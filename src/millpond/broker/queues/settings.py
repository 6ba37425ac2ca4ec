"""What a queue's arguments and policies ask of it."""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

OVERFLOW_DROP_HEAD: Final = "drop-head"
OVERFLOW_REJECT: Final = "reject-publish"
OVERFLOW_REJECT_DEAD_LETTER: Final = "reject-publish-dlx"

TYPE_CLASSIC: Final = "classic"
TYPE_QUORUM: Final = "quorum"
TYPE_STREAM: Final = "stream"
# Millpond's own: a queue over a topic, see shares/share_queue.py.
TYPE_SHARE: Final = "share"

RETRY_DISABLED: Final = "disabled"
# Which returns are held back: those that consumers ask for, those of consumers that were lost, or both.
RETRY_RETURNED: Final = "returned"
RETRY_FAILED: Final = "failed"
RETRY_ALL: Final = "all"

BACKOFF_LINEAR: Final = "linear"
BACKOFF_EXPONENTIAL: Final = "exponential"

DEAD_LETTER_AT_MOST_ONCE: Final = "at-most-once"
DEAD_LETTER_AT_LEAST_ONCE: Final = "at-least-once"


@final
class QueueSettings:
    """What acts on a running queue. -1 and None mean: not set. Replaced as a whole, never changed."""

    def __init__(
        self,
        message_ttl_ms: i64 = -1,
        length_max: i64 = -1,
        length_bytes_max: i64 = -1,
        overflow: str = OVERFLOW_DROP_HEAD,
        dead_letter_exchange: str | None = None,
        dead_letter_routing_key: str | None = None,
        dead_letter_strategy: str = DEAD_LETTER_AT_MOST_ONCE,
        expires_ms: i64 = -1,
        delivery_limit: i64 = -1,
        priority_max: i64 = 0,
        single_active: bool = False,
        consumer_timeout_ms: i64 = -1,
        retry_type: str = RETRY_DISABLED,
        retry_min_ms: i64 = 0,
        retry_max_ms: i64 = 0,
        retry_backoff: str = BACKOFF_LINEAR,
        age_max_ms: i64 = -1,
        segment_bytes: i64 = -1,
    ) -> None:
        self.message_ttl_ms: Final[i64] = message_ttl_ms
        self.length_max: Final[i64] = length_max
        self.length_bytes_max: Final[i64] = length_bytes_max
        self.overflow: Final = overflow
        self.dead_letter_exchange: Final = dead_letter_exchange
        self.dead_letter_routing_key: Final = dead_letter_routing_key
        # The queue itself goes when nobody has used it for so long.
        self.expires_ms: Final[i64] = expires_ms
        # A message that comes back more often is dead.
        self.delivery_limit: Final[i64] = delivery_limit
        self.counts_returns: Final = delivery_limit >= 0 or retry_type != RETRY_DISABLED
        # The highest priority that counts; 0 where none does. Never changes in a queue's life.
        self.priority_max: Final[i64] = priority_max
        # One consumer at a time gets all messages. Never changes either.
        self.single_active: Final = single_active
        # How long a consumer may leave a delivery unsettled.
        self.consumer_timeout_ms: Final[i64] = consumer_timeout_ms
        # Messages that come back are held for a time that grows with their number of returns.
        self.retry_type: Final = retry_type
        self.retry_min_ms: Final[i64] = retry_min_ms
        self.retry_max_ms: Final[i64] = retry_max_ms
        self.retry_backoff: Final = retry_backoff
        # Streams: how old their messages get, and how large the pieces are in which they are deleted.
        self.age_max_ms: Final[i64] = age_max_ms
        self.segment_bytes: Final[i64] = segment_bytes
        # Whether the queue has a length limit of any kind.
        self.bounded: Final = length_max >= 0 or length_bytes_max >= 0
        # Whether a full queue refuses new messages instead of dropping old ones.
        self.rejects: Final = overflow != OVERFLOW_DROP_HEAD
        # Whether a dead message stays until a dead-letter queue has it. As in RabbitMQ this needs a queue that refuses
        # what is too much: one that drops it could not wait.
        self.dead_letters_surely: Final = (
            dead_letter_exchange is not None
            and dead_letter_strategy == DEAD_LETTER_AT_LEAST_ONCE
            and overflow == OVERFLOW_REJECT
        )

    def holds_back(self, failed: bool) -> bool:
        """Whether a message that comes back waits: `failed` says that its consumer was lost."""
        kind = self.retry_type
        if kind == RETRY_DISABLED:
            return False
        return kind == RETRY_ALL or kind == (RETRY_FAILED if failed else RETRY_RETURNED)

    def retry_delay_ms(self, returns: i64) -> i64:
        """How long a message waits that has come back for the `returns`th time, which is 1 at first."""
        longest = self.retry_max_ms
        delay = self.retry_min_ms
        if self.retry_backoff == BACKOFF_EXPONENTIAL:
            while returns > 1 and delay < longest:
                delay *= 2
                returns -= 1
        elif returns > longest // max(1, delay):
            # The product might be more than 64 bits hold.
            return longest
        else:
            delay *= returns
        return min(delay, longest)
