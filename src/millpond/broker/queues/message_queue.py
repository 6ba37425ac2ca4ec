"""What a virtual host can route messages to and consumers can read from: a queue or a stream.

    Destination ── MessageQueue ── Queue        a log plus delivery state: read once, settled, gone
                              ├── DelayQueue    holds what a delayed exchange will route; no client sees it
                              └── StreamQueue   a log that is read by offset

All calls are synchronous and on the event loop's thread. What they cause is delivered in `run_turn`, at the end of the
turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from millpond.base.clock import Clock
from millpond.base.errors import PreconditionFailed
from millpond.base.limits import QUEUES_MAX
from millpond.broker.arguments import TYPE_MODULES, queue_type
from millpond.broker.exchanges.exchange import Destination
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.message import Message
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.settings import QueueSettings
from millpond.broker.turn import Turn, TurnTask

STREAM_CONSUMER_ARGUMENTS: Final = ("x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered")

if TYPE_CHECKING:
    from millpond.broker.queues.backlog import Backlog
    from millpond.broker.queues.page_store import PageStore
    from millpond.broker.streams.partition import Partition
    from millpond.broker.streams.stream_store import StreamStore


class QueueContext:
    """What all queues of a node share."""

    def __init__(
        self,
        turn: Turn,
        clock: Clock,
        ledger: Ledger,
        memory: MemoryBudget,
        store: PageStore,
        streams: StreamStore,
        queues_max: i64 = QUEUES_MAX,
    ) -> None:
        self.queues_max: Final[i64] = queues_max
        # Queues of all virtual hosts.
        self.queue_count: i64 = 0
        self.turn: Final = turn
        self.clock: Final = clock
        self.ledger: Final = ledger
        self.memory: Final = memory
        self.store: Final = store
        self.streams: Final = streams
        self._transient_id: i64 = 0

    def next_transient_id(self) -> i64:
        """An id for a queue that the catalog does not know: negative, and used until the next start only."""
        self._transient_id -= 1
        return self._transient_id


class QueueOwner:
    """What a queue asks of its virtual host."""

    def queue_resource(self, name: str) -> str:
        """How RabbitMQ's texts call a queue."""
        raise NotImplementedError

    def dead_letter(self, queue: MessageQueue, message: Message, reason: str) -> None:
        """Publish `message` to the queue's dead-letter exchange, if it has one."""
        raise NotImplementedError

    def dead_letter_surely(self, queue: MessageQueue, message: Message, reason: str, done: set[str]) -> bool:
        """As `dead_letter`, to all queues but those named in `done`, which grows by those that have taken it. False
        where one has not, or there is none."""
        raise NotImplementedError

    def route_delayed(self, queue: MessageQueue, message: Message) -> None:
        """The time has come for a message of a delayed exchange, whose `queue` is: route it."""
        raise NotImplementedError

    def consumers_gone(self, queue: MessageQueue) -> None:
        """The last consumer has left: an auto-delete queue goes with it."""
        raise NotImplementedError


class MessageQueue(Destination, TurnTask):
    """`log_id` names the log and its records in the journal; it is never used again. What is `recoverable` survives a
    restart."""

    def __init__(
        self,
        owner: QueueOwner,
        context: QueueContext,
        name: str,
        log_id: i64,
        recoverable: bool,
        settings: QueueSettings,
    ) -> None:
        super().__init__(name, "queue")
        self.turn_pending = False
        self.owner: Final = owner
        self.context: Final = context
        self.turn: Final = context.turn
        self.clock: Final = context.clock
        self.ledger: Final = context.ledger
        self.memory: Final = context.memory
        self.store: Final = context.store
        self.log_id: Final[i64] = log_id
        self.recoverable: Final = recoverable
        self.settings = settings
        self.deleted = False
        # As declared. `exclusive_owner` is the connection that the queue belongs to.
        self.durable = recoverable
        self.auto_delete = False
        self.arguments: dict[str, object] = {}
        self.exclusive_owner: object | None = None
        # It tells the journal of what it takes; otherwise whoever publishes does.
        self.journals_itself = False
        # Of those that do: only of persistent messages.
        self.journals_persistent_only = False
        # The log of a stream.
        self.partition: Partition | None = None

        self.consumers: dict[Consumer, None] = {}
        self.unsettled: i64 = 0
        # Set for good by the first message that can expire.
        self.expiring = False

        self.published_total: i64 = 0
        self.delivered_total: i64 = 0
        self.settled_total: i64 = 0

    # --- What it holds ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> i64:
        """Messages that wait to be delivered; of a stream, all of them."""
        raise NotImplementedError

    @property
    def ready_bytes(self) -> i64:
        """Bytes of the bodies of those that wait."""
        raise NotImplementedError

    @property
    def resident_bytes(self) -> i64:
        """Bytes of its messages in memory, each counted in full even where other queues share it."""
        raise NotImplementedError

    @property
    def delayed(self) -> i64:
        """Messages that wait for their time, and are not ready before."""
        return 0

    @property
    def consumer_count(self) -> i64:
        """Who consumes from it, or from parts of it."""
        return len(self.consumers)

    def backlogs(self) -> list[Backlog]:
        """Its messages, in pages: a list for each way they are kept apart."""
        raise NotImplementedError

    def details(self) -> dict[str, object]:
        """What operators are shown of this type of queue besides the counts that all have."""
        return {}

    def is_active(self, consumer: Consumer) -> bool:
        """Whether `consumer` gets messages, as far as it is the queue that decides."""
        return True

    def has_lane(self, number: int) -> bool:
        """Whether `number` is a lane that this queue may have."""
        raise NotImplementedError

    def lane(self, number: int) -> Backlog:
        """The backlog of a lane, which begins with the first message that needs it."""
        raise NotImplementedError

    # --- Publishing -------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        """Append `message`. It is delivered at the end of the turn."""
        raise NotImplementedError

    def lowest_backlog(self) -> Backlog:
        """Where `publish` puts a message without a priority. Not to be asked of one that `journals_itself`."""
        raise NotImplementedError

    def backlog_for(self, message: Message) -> Backlog:
        """Where `publish` puts a message. Not to be asked of one that `journals_itself`."""
        raise NotImplementedError

    def refuses(self, size: i64) -> bool:
        """Whether the queue is full and its overflow policy is to refuse a message of `size` bytes."""
        raise NotImplementedError

    def dead_letters_refused(self) -> bool:
        """Whether a refused message goes to the dead-letter exchange."""
        raise NotImplementedError

    # --- Consuming --------------------------------------------------------------------------------------------------

    def check_consumer(self, consumer: Consumer, has_channel_limit: bool) -> None:
        """Refuse a consumer that cannot be served as it wishes. `has_channel_limit` says that its channel as a whole
        may hold so many deliveries only."""
        for name in STREAM_CONSUMER_ARGUMENTS:
            if name in consumer.arguments:
                raise PreconditionFailed(
                    f"invalid arg '{name}' for {self.owner.queue_resource(self.name)} of queue type "
                    f"{TYPE_MODULES[queue_type(self.arguments)]}"
                )

    def add_consumer(self, consumer: Consumer) -> None:
        """Let `consumer` take part. Its first delivery comes at the end of the turn."""
        raise NotImplementedError

    def remove_consumer(self, consumer: Consumer) -> None:
        """Let `consumer` have no further deliveries. What it holds unsettled stays with it."""
        raise NotImplementedError

    def wake(self, consumer: Consumer) -> None:
        """`consumer` may be able to take deliveries again."""
        raise NotImplementedError

    def get(self) -> Entry | None:
        """The next message for a client that asks for one, unsettled in the client's hands; None when empty."""
        raise NotImplementedError

    def settle(self, entry: Entry) -> None:
        """A delivered message is done with: acknowledged, or rejected for good. `entry` must not be used again."""
        raise NotImplementedError

    def reject(self, entry: Entry) -> None:
        """A delivered message is refused for good: dead-letter it, or drop it."""
        raise NotImplementedError

    def give_back(self, entries: list[Entry], failed: bool) -> None:
        """Delivered messages come back. `failed` says that the consumer was lost, not that it said so."""
        raise NotImplementedError

    # --- Managing ---------------------------------------------------------------------------------------------------

    def apply_settings(self, settings: QueueSettings) -> None:
        """Let other settings act from now on; messages already there keep the expiry they were given."""
        raise NotImplementedError

    def purge(self) -> int:
        """Drop every ready message, without dead-lettering. How many there were."""
        raise NotImplementedError

    def delete(self) -> None:
        """Forget everything. The catalog, not the journal, remembers that the queue is gone."""
        raise NotImplementedError
