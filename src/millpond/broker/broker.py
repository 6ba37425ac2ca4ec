"""The core as a whole: virtual hosts, users, and the resources they share.

Protocols are given a `Broker`. It does no I/O but through the journal, the page store and the catalog it was given.
"""

from __future__ import annotations

import base64
import logging
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64, mypyc_attr

from millpond.base.clock import Clock
from millpond.base.errors import NotFound, PreconditionFailed, StorageFailed
from millpond.base.limits import JOURNAL_PENDING_BYTES_MAX, MESSAGE_BYTES_MAX, QUEUES_MAX
from millpond.broker.arguments import checked_default_queue_type
from millpond.broker.commits import ALARM_MEMORY, FLOW, AlarmListener, Alarms, Commits, CommitWaiter
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS, ConsumerGroups
from millpond.broker.groups.store import GroupSettings
from millpond.broker.keepers import RecordKeeper
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.parameters import Parameters
from millpond.broker.producer_ids import ProducerIds
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.message_queue import MessageQueue, QueueContext
from millpond.broker.queues.pager import Pager
from millpond.broker.quotas import ClientQuotas
from millpond.broker.shares.coordinator import ShareGroups
from millpond.broker.shares.settings import group_configs
from millpond.broker.streams.stream_store import StreamStore
from millpond.broker.streams.topic_routing import TopicRouting
from millpond.broker.transactions.coordinator import Transactions, TransactionSettings
from millpond.broker.turn import Turn
from millpond.broker.vhost import VirtualHost
from millpond.catalog.rows import PartitionRow, VhostRow

if TYPE_CHECKING:
    from millpond.broker.access import Access
    from millpond.broker.queues.page_store import PageStore
    from millpond.catalog.catalog import Catalog
    from millpond.catalog.rows import CatalogState

logger = logging.getLogger(__name__)

DEFAULT_VHOST: Final = "/"
CLUSTER_ID: Final = "cluster_id"
# Longer than any broker runs.
NO_TIMEOUT_MS: Final = 1 << 62


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientConnection(AlarmListener):
    """A client's connection, whatever protocol it speaks, as operators see it."""

    protocol = ""
    # "PEER:PORT -> HOST:PORT", and who has logged in; both empty before.
    name = ""
    user = ""

    def vhost_name(self) -> str:
        """The virtual host that it has opened; empty before."""
        raise NotImplementedError

    def channel_count(self) -> int:
        """How many channels it has open, in the sense of its protocol."""
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """Plain values under the names of RabbitMQ's management API."""
        raise NotImplementedError

    def describe_channels(self) -> list[dict[str, object]]:
        """Its channels in the same way, where the protocol has such."""
        return []

    def abandon_turn(self) -> None:
        """This turn could not be made durable: if the client is to be told of it, cut the connection instead."""
        raise NotImplementedError

    def check_deliveries(self, now_ms: int, timeout_ms: int) -> None:
        """Take back deliveries that have been unsettled for too long, as the protocol knows how. `timeout_ms` is for
        consumers that have none of their own, nor have their queues."""
        raise NotImplementedError

    def close_by_operator(self, reason: str) -> None:
        """Tell the client why, and close."""
        raise NotImplementedError


class _JournalBehind(CommitWaiter):
    """Ends a turn when the journal has come forward: publishers that wait for it give no reason for one."""

    def __init__(self, turn: Turn) -> None:
        self._turn: Final = turn
        self.is_waiting = False

    def committed(self, durable_sequence: i64) -> bool:
        self.is_waiting = False
        self._turn.touch()
        return False

    def commit_failed(self) -> None:
        self.is_waiting = False


class Broker:
    """One node's core."""

    def __init__(
        self,
        turn: Turn,
        clock: Clock,
        ledger: Ledger,
        memory: MemoryBudget,
        store: PageStore,
        catalog: Catalog,
        access: Access,
        alarms: Alarms,
        commits: Commits,
        run_blocking: Callable[[Callable[[], object], Callable[[object], None]], None],
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        queues_max: int = QUEUES_MAX,
        consumer_timeout_ms: int = 0,
        group_settings: GroupSettings = DEFAULT_SETTINGS,
        transaction_settings: TransactionSettings | None = None,
    ) -> None:
        """`run_blocking` runs its first argument on a thread and its second, with the result, on the loop."""
        self.turn: Final = turn
        self.clock: Final = clock
        self.ledger: Final = ledger
        self.memory: Final = memory
        self.store: Final = store
        self.catalog: Final = catalog
        self.access: Final = access
        self.alarms: Final = alarms
        self.commits: Final = commits
        self.run_blocking: Final = run_blocking
        self.message_bytes_max: Final = message_bytes_max
        # 0: no limit.
        self.consumer_timeout_ms: Final = consumer_timeout_ms
        self.groups: Final = ConsumerGroups(clock, turn, ledger, group_settings)
        self.producer_ids: Final = ProducerIds(catalog, turn)
        self.transactions: Final = Transactions(clock, turn, ledger, self.producer_ids, transaction_settings)
        # In the order in which recovery tells them that it is over.
        self.shares: Final = ShareGroups(
            clock,
            turn,
            ledger,
            group_configs(group_settings.share_lock_duration_min_ms, group_settings.share_lock_duration_max_ms),
        )
        self.keepers: Final[list[RecordKeeper]] = [self.groups, self.shares, self.transactions]
        self.streams: Final = StreamStore(store, ledger, memory, turn, clock, commits)
        self.context: Final = QueueContext(turn, clock, ledger, memory, store, self.streams, queues_max)
        self.routing: Final = TopicRouting(self.context, alarms)
        # Last: what is routed goes on where queues and streams are what they were.
        self.keepers.append(self.routing)
        self.pager: Final = Pager(memory, store, turn, self.all_backlogs)
        self._behind: Final = _JournalBehind(turn)
        self.vhosts: Final[dict[str, VirtualHost]] = {}
        self.parameters: Final = Parameters(catalog, self.vhosts)
        self.quotas: Final = ClientQuotas(catalog)
        # Tells this node's data from those of other nodes; known when `restore` is through.
        self.cluster_id = ""
        # In the order in which they were opened.
        self.connections: Final[dict[ClientConnection, None]] = {}
        # For operators: requests by their protocol and name, and those of their answers' errors by their codes.
        self.requests: Final[dict[tuple[str, str], int]] = {}
        self.request_errors: Final[dict[tuple[str, str, int], int]] = {}
        # The catalog first: the journal's commit makes it durable too, and a confirmed message needs its queue.
        turn.commits.append(self._commit_catalog)
        turn.commits.append(self._write_journal)
        turn.commits.append(self._balance_memory)

    # --- Topology that is kept ------------------------------------------------------------------------------------

    def restore(self, state: CatalogState) -> list[MessageQueue]:
        """Build what the catalog remembers. The durable queues, still empty."""
        self.producer_ids.restore(state.settings)
        self.quotas.load(state.quotas)
        self.cluster_id = state.settings.get(CLUSTER_ID, "")
        if not self.cluster_id:
            # As Kafka makes it: a UUID in base64.
            self.cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            self.catalog.put_setting(CLUSTER_ID, self.cluster_id)
            self.turn.touch()
        for row in state.vhosts:
            vhost = self._new_vhost(row.name)
            vhost.description, vhost.tags, vhost.default_queue_type = row.description, row.tags, row.default_queue_type
            self.vhosts[row.name] = vhost
        # Before the exchanges and queues, which are so restored with what policies make of them.
        for policy in state.policies:
            self.vhosts[policy.vhost].restore_policy(policy)
        self.parameters.load(state.parameters)
        for exchange in state.exchanges:
            self.vhosts[exchange.vhost].restore_exchange(exchange)
        queues: list[MessageQueue] = []
        for queue in state.queues:
            queues.append(self.vhosts[queue.vhost].restore_queue(queue))
        partitions: dict[tuple[str, str], list[PartitionRow]] = {}
        for partition in state.partitions:
            partitions.setdefault((partition.vhost, partition.topic), []).append(partition)
        for topic in state.topics:
            self.vhosts[topic.vhost].topics.restore(topic, partitions.get((topic.vhost, topic.name), []))
        for binding in state.bindings:
            self.vhosts[binding.vhost].restore_binding(binding)
        for binding in state.topic_bindings:
            self.vhosts[binding.vhost].restore_topic_binding(binding)
        for vhost in self.vhosts.values():
            vhost.attach_share_queues()
        return queues

    def _new_vhost(self, name: str) -> VirtualHost:
        return VirtualHost(name, self.context, self.catalog, self.groups, self.shares, self.routing, self.transactions)

    def log_ids(self) -> set[int]:
        """The ids of all logs that there should be."""
        ids = {int(partition.log_id) for partition in self.streams.partitions()}
        for vhost in self.vhosts.values():
            ids.update([int(queue.log_id) for queue in vhost.queues.values()])
            ids.update([int(queue.log_id) for queue in vhost.delay_queues.values()])
        return ids

    def vhost(self, name: str) -> VirtualHost:
        """The virtual host called `name`. NotFound where there is none."""
        vhost = self.vhosts.get(name)
        if vhost is None:
            raise NotFound(f"vhost '{name}' not found")
        return vhost

    def create_vhost(self, name: str) -> VirtualHost:
        """The virtual host called `name`, which is made where there is none."""
        vhost = self.vhosts.get(name)
        if vhost is None:
            self.catalog.add_vhost(VhostRow(name))
            self.turn.touch()
            vhost = self._new_vhost(name)
            vhost.groups.clear()
            vhost.shares.clear()
            vhost.transactions.clear()
            self.vhosts[name] = vhost
        return vhost

    def describe_vhost(self, name: str, description: str, tags: tuple[str, ...], default_queue_type: str) -> None:
        """Say about a virtual host what there is to say. NotFound where there is none such, PreconditionFailed where
        there is no such queue type."""
        vhost = self.vhost(name)
        default_queue_type = checked_default_queue_type(default_queue_type)
        self.catalog.add_vhost(VhostRow(name, description, tags, default_queue_type))
        self.turn.touch()
        vhost.description, vhost.tags, vhost.default_queue_type = description, tags, default_queue_type

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it."""
        if name == DEFAULT_VHOST:
            raise PreconditionFailed("the default virtual host cannot be deleted")
        vhost = self.vhost(name)
        for connection in list(self.connections):
            if connection.vhost_name() == name:
                connection.close_by_operator(f"vhost '{name}' is deleted")
        # The catalog may know of a new virtual host of this name before the journal does: by then what there was must
        # be gone from the journal as well.
        vhost.groups.clear()
        vhost.shares.clear()
        vhost.transactions.clear()
        self.transactions.remove(name)
        self.groups.remove(name)
        self.shares.remove(name)
        for queue in list(vhost.queues.values()):
            vhost.remove_queue(queue)
        for delay_queue in list(vhost.delay_queues.values()):
            vhost.remove_delay_queue(delay_queue)
        for topic in list(vhost.topics.by_name.values()):
            vhost.topics.delete(topic)
        self.catalog.delete_vhost(name)
        self.access.forget_vhost(name)
        self.parameters.forget_vhost(name)
        self.turn.touch()
        self.routing.remove(name)
        del self.vhosts[name]

    def delete_user(self, name: str) -> None:
        """Delete a user with all permissions, and close the user's connections. NotFound where there is none."""
        self.access.delete_user(name)
        self.parameters.forget_user(name)
        for connection in list(self.connections):
            if connection.user == name:
                connection.close_by_operator(f"user '{name}' is deleted")
        self.turn.touch()

    def all_queues(self) -> list[MessageQueue]:
        """Every queue of every virtual host, the streams among them."""
        queues: list[MessageQueue] = []
        for vhost in self.vhosts.values():
            queues.extend(vhost.all_queues())
        return queues

    def all_backlogs(self) -> list[Backlog]:
        """The messages of every queue, those of each of its lanes apart."""
        backlogs: list[Backlog] = []
        for vhost in self.vhosts.values():
            for queue in vhost.queues.values():
                backlogs.extend(queue.backlogs())
            for delay_queue in vhost.delay_queues.values():
                backlogs.extend(delay_queue.backlogs())
        return backlogs

    def keep_house(self) -> None:
        """What is looked after from time to time. To be called every second or so: what could not be done before, as a
        write that failed, is only tried again here."""
        self.access.store_better_hashes()
        self.check_deliveries()
        self.memory.grant()
        self.store.trim_transient()
        self.store.delete_logs()
        self.store.resume()
        self.streams.keep_house()
        self.pager.look_again()
        self.turn.touch()

    def check_deliveries(self) -> None:
        """Take back what consumers have left unsettled for too long. To be called now and then."""
        self.turn.now_ms = self.clock.wall_ms()
        timeout_ms = self.consumer_timeout_ms or NO_TIMEOUT_MS
        for connection in list(self.connections):
            connection.check_deliveries(int(self.turn.now_ms), timeout_ms)

    # --- The end of a turn ----------------------------------------------------------------------------------------

    def _commit_catalog(self) -> None:
        if not self.catalog.changed:
            return
        try:
            self.catalog.commit()
        except StorageFailed as error:
            # What is in memory is ahead of the catalog now, so nothing may be promised any more. Those who would be
            # told of this turn lose their connection instead.
            self.commits.failed(error)
            for connection in list(self.connections):
                connection.abandon_turn()

    def _write_journal(self) -> None:
        try:
            self.ledger.end_turn()
        except Exception:
            # Part of the turn may be missing in the journal, so nothing may be promised any more.
            logger.exception("a bug kept a turn from the journal")
            self.commits.failed(StorageFailed("a turn could not be handed to the journal"))

    def _balance_memory(self) -> None:
        memory = self.memory
        journal = self.ledger.journal
        if journal is not None:
            pending = journal.pending_bytes
            if pending > JOURNAL_PENDING_BYTES_MAX:
                self.alarms.raise_alarm(FLOW)
            elif self.alarms.reasons and pending < JOURNAL_PENDING_BYTES_MAX // 2:
                self.alarms.clear_alarm(FLOW)
            if FLOW in self.alarms.reasons and not self._behind.is_waiting and not self.commits.has_failed:
                self._behind.is_waiting = True
                journal.submit(True)
                self.commits.wait(self._behind)
        if memory.used > memory.page_out_bytes:
            # What streams hold is on its way to the disk in any case.
            self.streams.relieve()
            self.pager.relieve()
        memory.release()
        if memory.used > memory.budget_bytes:
            self.alarms.raise_alarm(ALARM_MEMORY)
        elif self.alarms.reasons and memory.used < memory.unblock_bytes:
            self.alarms.clear_alarm(ALARM_MEMORY)
