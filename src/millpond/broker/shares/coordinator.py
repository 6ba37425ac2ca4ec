"""The share groups of a virtual host, and those of all virtual hosts together: what is kept of them, and how it is
found again after a restart.

    decide -> record -> apply     beginnings, deletions, configurations: `record` tells the journal, and applies
    DeliveryState notes changes   what happens to records: written at the end of the turn, as ranges

Protocols call `vhost.shares`. Whoever is answered waits for the commit that covers the turn (`Ledger.covering`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from millpond.base.errors import LimitExceeded, NotFound
from millpond.base.limits import GROUP_NAME_BYTES_MAX, SHARE_CONFIGURED_GROUPS_MAX, SHARE_PARTITIONS_MAX
from millpond.broker.groups.errors import InvalidGroupName
from millpond.broker.keepers import KeeperState, RecordKeeper
from millpond.broker.ledger import LateChanges
from millpond.broker.records import CHANGE_SHARE
from millpond.broker.shares.delivery_state import DeliveryState
from millpond.broker.shares.records import (
    Cleared,
    Configured,
    GroupGone,
    Place,
    Range,
    Ranges,
    Rewound,
    ShareRecord,
    Started,
    TopicGone,
    decode_record,
    encode_record,
)
from millpond.broker.shares.sessions import ShareSession, ShareSessions
from millpond.broker.shares.settings import DEFAULTS, GROUP_CONFIGS, GroupConfig, ShareSettings, checked_group_config
from millpond.broker.shares.share_partition import SharePartition, start_of
from millpond.broker.streams.subscription import START_FIRST

if TYPE_CHECKING:
    from millpond.base.clock import Clock
    from millpond.broker.ledger import Ledger
    from millpond.broker.shares.share_queue import ShareQueue
    from millpond.broker.streams.topic import Topic
    from millpond.broker.streams.topics import Topics
    from millpond.broker.turn import Turn

logger = logging.getLogger(__name__)


class ShareGroup:
    """One share group's deliveries."""

    def __init__(self, shares: Shares, group_id: str) -> None:
        self.shares: Final = shares
        self.id: Final = group_id
        self.partitions: Final[dict[Place, SharePartition]] = {}
        # In which of them somebody has, or has had, records in hand: a member that goes is not looked for in all.
        self._held_by: Final[dict[str, dict[SharePartition, None]]] = {}
        # The AMQP queue of this name, if there is one.
        self.queue: ShareQueue | None = None
        self.settings: ShareSettings = DEFAULTS

    @property
    def is_committed_only(self) -> bool:
        """Whether open and aborted transactions are not handed out. AMQP never gets them, whatever is configured."""
        return self.queue is not None or self.settings.is_committed_only

    def set_up(self, state: DeliveryState) -> None:
        """Let a delivery state have the group's limits."""
        queue = self.queue
        state.deliveries_max = self.settings.deliveries_max
        state.dead_letters = False
        if queue is not None:
            queue.set_up(state)

    def configure(self, settings: ShareSettings) -> None:
        """Have other settings, which act at once."""
        self.settings = settings
        self.set_up_all()

    def holds(self, owner: str, partition: SharePartition) -> None:
        """`owner` has been given records of a partition."""
        self._held_by.setdefault(owner, {})[partition] = None

    def release(self, owner: str) -> None:
        """Give back all that `owner` holds."""
        for partition in self._held_by.pop(owner, ()):
            if not partition.is_gone:
                self._release(partition, owner)

    def _release(self, partition: SharePartition, owner: str) -> None:
        if partition.state is not None and partition.state.release_owner(owner):
            self.shares.turn.touch()

    def release_queue(self, owner: str) -> None:
        """The queue is gone: what `owner` held for it is available again, and what was to be dead-lettered archived."""
        self.set_up_all()
        for partition in self.partitions.values():
            self._release(partition, owner)
            if partition.state is not None:
                partition.state.buried(partition.state.start, partition.state.end)

    def set_up_all(self) -> None:
        """Let all of its delivery states have its limits."""
        for partition in self.partitions.values():
            if partition.state is not None:
                self.set_up(partition.state)
                partition.wake_readers()

    def of_topic(self, name: str) -> list[SharePartition]:
        """What it has of a topic, in the order of the partitions."""
        found = [partition for partition in self.partitions.values() if partition.topic.name == name]
        return sorted(found, key=lambda partition: partition.number)

    @property
    def ready(self) -> int:
        return sum(partition.ready for partition in self.partitions.values())

    @property
    def held(self) -> int:
        return sum(partition.held for partition in self.partitions.values())


class ShareState(KeeperState):
    """A group's partition as it was at the moment of a checkpoint."""

    def __init__(self, vhost: str, partition: SharePartition, state: DeliveryState) -> None:
        self._vhost: Final = vhost
        self._group: Final = partition.group.id
        self._place: Final = partition.place
        self._start: Final = int(state.start)
        self._ranges: Final = tuple(state.ranges())

    def records(self) -> list[bytes]:
        records = [encode_record(self._vhost, Started(self._group, self._place, self._start))]
        if self._ranges:
            records.append(encode_record(self._vhost, Ranges(self._group, self._place, self._ranges)))
        return records


class ConfigState(KeeperState):
    """A group's configuration at the moment of a checkpoint."""

    def __init__(self, vhost: str, group: str, configs: dict[str, str]) -> None:
        self._vhost: Final = vhost
        self._record: Final = Configured(group, tuple(configs.items()))

    def records(self) -> list[bytes]:
        return [encode_record(self._vhost, self._record)]


class Shares:
    """The share groups of one virtual host. `topics` are its topics."""

    def __init__(self, vhost: str, keeper: ShareGroups) -> None:
        self.vhost: Final = vhost
        self.clock: Final = keeper.clock
        self.turn: Final = keeper.turn
        self.ledger: Final = keeper.ledger
        self._keeper: Final = keeper
        self.groups: Final[dict[str, ShareGroup]] = {}
        self.sessions: Final = ShareSessions()
        # What groups were given for a configuration, whether or not they have begun anywhere, and whatever their type.
        self._configs: Final[dict[str, dict[str, str]]] = {}
        self._topics: Topics | None = None
        # Of each topic, who works it off.
        self._by_topic: Final[dict[str, dict[SharePartition, None]]] = {}

    def attach(self, topics: Topics) -> None:
        """These are the virtual host's topics."""
        self._topics = topics

    def begin_turn(self) -> None:
        """A timer has something to do: it is now, and there will be an end of the turn."""
        self.turn.now_ms = self.clock.wall_ms()
        self.turn.touch()

    # --- Groups -----------------------------------------------------------------------------------------------------

    def group(self, group_id: str) -> ShareGroup:
        """The deliveries of a group. NotFound where it has begun nowhere."""
        group = self.groups.get(group_id)
        if group is None:
            raise NotFound(f"there is no share group '{group_id}'")
        return group

    def opened(self, group_id: str) -> ShareGroup:
        """The deliveries of a group, which begins to have some. InvalidGroupName."""
        group = self.groups.get(group_id)
        if group is None:
            self.check_name(group_id)
            group = self._found(group_id)
        return group

    def check_name(self, group_id: str) -> None:
        """InvalidGroupName where no group can be called so."""
        if not group_id or len(group_id.encode("utf-8", "surrogateescape")) > GROUP_NAME_BYTES_MAX:
            raise InvalidGroupName(f"a group's name has 1 to {GROUP_NAME_BYTES_MAX} bytes")

    def partition(self, group: ShareGroup, topic: Topic, number: int) -> SharePartition:
        """A partition of a group, which begins there as it is configured if it has not yet. LimitExceeded."""
        found = group.partitions.get((topic.id, number))
        if found is None or found.state is None:
            found = self._placed(group, topic, number)
            found.begin(start_of(group.settings.reset, int(self.clock.wall_ms())))
        return found

    def check_room(self, group_id: str, topic: Topic | None) -> None:
        """LimitExceeded where a group cannot be in all partitions of a topic, or in that of one still to be made."""
        group = self.groups.get(group_id)
        known = group.of_topic(topic.name) if group is not None and topic is not None else []
        wanted = len(topic.partitions) if topic is not None else 1
        if self._keeper.partition_count + wanted - len(known) > SHARE_PARTITIONS_MAX:
            raise LimitExceeded(f"share groups have begun in {SHARE_PARTITIONS_MAX} partitions at most")

    def _placed(self, group: ShareGroup, topic: Topic, number: int) -> SharePartition:
        found = group.partitions.get((topic.id, number))
        if found is None:
            if self._keeper.partition_count >= SHARE_PARTITIONS_MAX:
                raise LimitExceeded(f"share groups have begun in {SHARE_PARTITIONS_MAX} partitions already")
            found = self._add(group, topic, number)
        return found

    def place(self, group: ShareGroup, topic: Topic, number: int) -> SharePartition:
        """A partition of a group, which need not have begun. LimitExceeded."""
        return self._placed(group, topic, number)

    def _found(self, group_id: str) -> ShareGroup:
        group = self.groups.get(group_id)
        if group is None:
            group = self.groups[group_id] = ShareGroup(self, group_id)
            group.settings = self.settings(group_id)
        return group

    def _add(self, group: ShareGroup, topic: Topic, number: int) -> SharePartition:
        partition = SharePartition(group, topic, number)
        group.partitions[partition.place] = partition
        self._by_topic.setdefault(topic.name, {})[partition] = None
        self._keeper.partition_count += 1
        return partition

    def _drop(self, partition: SharePartition) -> None:
        del partition.group.partitions[partition.place]
        together = self._by_topic[partition.topic.name]
        del together[partition]
        if not together:
            del self._by_topic[partition.topic.name]
        self._keeper.partition_count -= 1
        self._keeper.forget(partition)
        partition.close()

    def _drop_group(self, group: ShareGroup) -> None:
        for partition in list(group.partitions.values()):
            self._drop(partition)
        if group.queue is None:
            self.groups.pop(group.id, None)

    # --- Changing ---------------------------------------------------------------------------------------------------

    def record(self, record: ShareRecord) -> None:
        """Make a change."""
        if self.ledger.journal is not None:
            self.ledger.recorded(CHANGE_SHARE, encode_record(self.vhost, record))
        self.turn.touch()
        self.apply(record)

    def delete_group(self, group_id: str) -> None:
        """Forget what a group has worked off. It need not have begun anywhere."""
        group = self.groups.get(group_id)
        if group is not None:
            for session in self.sessions.of_group(group_id):
                self.sessions.end(session)
            self.record(GroupGone(group_id))
            if group.queue is not None:
                # The queue is there still, and begins as it began at first.
                group.queue.begin()

    def delete_topic(self, group: ShareGroup, topic: Topic) -> None:
        """Forget what a group has worked off of a topic."""
        self.record(TopicGone(group.id, topic.id))
        if group.queue is not None:
            group.queue.begin()

    def topic_deleted(self, name: str) -> None:
        """A topic is gone, and what groups know of it. The catalog remembers that, so the journal is not told."""
        for partition in list(self._by_topic.get(name, ())):
            if partition.topic.deleted:
                self._drop(partition)

    def partitions_added(self, topic: Topic) -> None:
        """A topic has more partitions: groups that work it off begin at their beginning, and miss nothing."""
        groups = {partition.group: None for partition in self._by_topic.get(topic.name, ())}
        for group in groups:
            for number in range(len(topic.partitions)):
                if (topic.id, number) not in group.partitions:
                    try:
                        self._placed(group, topic, number).begin((START_FIRST, 0))
                    except LimitExceeded as error:
                        # The topic has them already: others must not fail because of it.
                        logger.error(
                            "group %r does not read partition %d of %r: %s", group.id, number, topic.name, error
                        )
                        break
            if group.queue is not None:
                group.queue.begin()

    def lost(self, connection: object) -> None:
        """A connection is gone: what its members hold is available again."""
        for session in self.sessions.lost(connection):
            self._session_over(session)

    def end_session(self, session: ShareSession) -> None:
        """A member is done."""
        self.sessions.end(session)
        self._session_over(session)

    def _session_over(self, session: ShareSession) -> None:
        self.release_member(session.group, session.member)
        group = self.groups.get(session.group)
        if group is not None and not group.partitions and group.queue is None and not self.is_read(group.id):
            # Somebody had a look, and asked for nothing that there is.
            del self.groups[group.id]

    def is_read(self, group_id: str) -> bool:
        """Whether anybody reads as this group: a member with a session, or a consumer of its queue."""
        group = self.groups.get(group_id)
        if group is not None and group.queue is not None and group.queue.consumers:
            return True
        return self.sessions.has_any(group_id)

    def release_member(self, group_id: str, member: str) -> None:
        """A member is gone: what it holds is available again."""
        group = self.groups.get(group_id)
        if group is not None:
            group.release(member)

    # --- Configuration ----------------------------------------------------------------------------------------------

    def configs(self, group_id: str) -> dict[str, str]:
        """What a group was given for a configuration; the defaults are not in it."""
        return self._configs.get(group_id, {})

    def configured(self) -> Iterable[str]:
        """The names of the groups that have a configuration of their own."""
        return self._configs.keys()

    def settings(self, group_id: str) -> ShareSettings:
        """What a group's configuration says of its deliveries."""
        configs = self._configs.get(group_id)
        return DEFAULTS if configs is None else ShareSettings(configs)

    def checked_config(self, name: str, value: str | None) -> str:
        """The value of an entry as it is kept. InvalidSetting where there is no such name, or it cannot have this
        value."""
        return checked_group_config(name, value, self._keeper.known_configs)

    def configure(self, group_id: str, configs: dict[str, str]) -> None:
        """Let a group have this configuration, and the defaults for the rest. InvalidSetting, InvalidGroupName,
        LimitExceeded."""
        checked = {name: self.checked_config(name, value) for name, value in configs.items()}
        self.check_name(group_id)
        if group_id not in self._configs and len(self._configs) >= SHARE_CONFIGURED_GROUPS_MAX:
            raise LimitExceeded(f"{SHARE_CONFIGURED_GROUPS_MAX} groups have a configuration already")
        if checked != self.configs(group_id):
            self.record(Configured(group_id, tuple(checked.items())))

    # --- What happens to records ------------------------------------------------------------------------------------

    def changed(self, partition: SharePartition) -> None:
        """There is something to be told to the journal at the end of the turn."""
        self._keeper.changed(partition)

    def write_changes(self, partition: SharePartition) -> None:
        """Tell the journal now."""
        self._keeper.write(partition)

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, record: ShareRecord) -> None:
        """Change what is durable. What a record speaks of need not be there any more."""
        if isinstance(record, (Started, Ranges, Rewound)):
            self._apply_to_partition(record)
        elif isinstance(record, GroupGone):
            group = self.groups.get(record.group)
            if group is not None:
                self._drop_group(group)
        elif isinstance(record, TopicGone):
            group = self.groups.get(record.group)
            if group is not None:
                for partition in list(group.partitions.values()):
                    if partition.topic.id == record.topic_id:
                        self._drop(partition)
        elif isinstance(record, Configured):
            if record.configs:
                self._configs[record.group] = dict(record.configs)
            else:
                self._configs.pop(record.group, None)
            group = self.groups.get(record.group)
            if group is not None:
                group.configure(self.settings(record.group))
        elif isinstance(record, Cleared):
            self._configs.clear()
            for group in list(self.groups.values()):
                self._drop_group(group)

    def _apply_to_partition(self, record: Started | Ranges | Rewound) -> None:
        topic_id, number = record.place
        topic = self._topics.by_id.get(topic_id) if self._topics is not None else None
        if topic is None or number >= len(topic.partitions):
            return
        group = self._found(record.group)
        partition = group.partitions.get(record.place)
        if partition is None:
            partition = self._add(group, topic, number)
        if isinstance(record, Started):
            partition.restore_start(record.start)
            return
        state = partition.state
        if state is None:
            return
        if isinstance(record, Rewound):
            state.begin_earlier(record.offset)
        else:
            for first, end, kind, count in record.ranges:
                state.apply(first, end, kind, count)

    def restored(self) -> None:
        """Recovery is over: what retention has taken is gone here as well."""
        for group in list(self.groups.values()):
            for partition in list(group.partitions.values()):
                state = partition.state
                if state is None:
                    continue
                if state.start < partition.partition.start_offset:
                    state.trim_before(partition.partition.start_offset)
                if state.end > partition.partition.end_offset:
                    # What had been read was lost with the journal: those offsets will be others' records.
                    end_offset = int(partition.partition.end_offset)
                    partition.begin_at(end_offset)
                    # And again when the journal can be told, so that another recovery finds it too.
                    self.clock.call_later(0, partial(self._begun_anew, partition, end_offset))
            if group.queue is not None:
                group.queue.begin()

    def _begun_anew(self, partition: SharePartition, offset: int) -> None:
        state = partition.state
        if state is not None and not partition.is_gone and state.start == state.end == offset:
            self.begin_turn()
            partition.begin_at(offset)

    def capture(self) -> list[KeeperState]:
        states: list[KeeperState] = [
            ConfigState(self.vhost, group, configs) for group, configs in self._configs.items()
        ]
        for group in self.groups.values():
            for partition in group.partitions.values():
                if partition.state is not None:
                    states.append(ShareState(self.vhost, partition, partition.state))
        return states

    def clear(self) -> None:
        """The virtual host is new: no group of an older one with its name comes back."""
        self.record(Cleared())

    def close(self) -> None:
        """The virtual host is gone, or the broker stops."""
        for group in self.groups.values():
            for partition in group.partitions.values():
                partition.close()


class _Deliveries(LateChanges):
    """What happens to records, as the ledger knows it: ranges, which are the larger the later they are told."""

    def __init__(self, keeper: ShareGroups) -> None:
        self._keeper: Final = keeper

    def write_changes(self) -> None:
        self._keeper.write_changes()


class ShareGroups(RecordKeeper):
    """The share groups of all virtual hosts."""

    change = CHANGE_SHARE

    def __init__(
        self, clock: Clock, turn: Turn, ledger: Ledger, known_configs: Mapping[str, GroupConfig] = GROUP_CONFIGS
    ) -> None:
        self.clock: Final = clock
        self.turn: Final = turn
        self.ledger: Final = ledger
        # What groups may be configured with.
        self.known_configs: Final = known_configs
        # Of all groups.
        self.partition_count = 0
        self._shares: Final[dict[str, Shares]] = {}
        # Where this turn has brought something that the journal is to be told.
        self._changed: dict[SharePartition, None] = {}
        ledger.late_changes.append(_Deliveries(self))

    def add(self, vhost: str) -> Shares:
        """The share groups of a virtual host: none yet."""
        shares = self._shares[vhost] = Shares(vhost, self)
        return shares

    def remove(self, vhost: str) -> None:
        """The virtual host is gone, and its groups with it: records of it are passed over from now on."""
        shares = self._shares.pop(vhost)
        shares.close()
        shares.apply(Cleared())

    def stop(self) -> None:
        """The broker stops: nothing happens by itself any more."""
        for shares in self._shares.values():
            shares.close()

    def changed(self, partition: SharePartition) -> None:
        """Something has happened to records of a partition: tell the journal at the end of the turn."""
        self._changed[partition] = None
        # Whoever asks now which commit covers it must be told that there will be one.
        self.ledger.mark()
        self.turn.touch()

    def forget(self, partition: SharePartition) -> None:
        """A partition is gone: nothing is to be told of it any more."""
        self._changed.pop(partition, None)

    def write_changes(self) -> None:
        """Tell the journal what has happened since the last time."""
        changed, self._changed = self._changed, {}
        for partition in changed:
            self.write(partition)

    def write(self, partition: SharePartition) -> None:
        """Tell the journal what has happened to records of a partition."""
        state = partition.state
        changes = state.take_changes() if state is not None else []
        if not changes or self.ledger.journal is None:
            return
        ranges: tuple[Range, ...] = tuple(
            [(int(change.first), int(change.end), int(change.state), int(change.count)) for change in changes]
        )
        shares = partition.group.shares
        record = Ranges(partition.group.id, partition.place, ranges)
        self.ledger.recorded(CHANGE_SHARE, encode_record(shares.vhost, record))

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restore(self, payload: bytes) -> None:
        vhost, record = decode_record(payload)
        shares = self._shares.get(vhost)
        if shares is not None:
            shares.apply(record)

    def restored(self) -> None:
        for shares in self._shares.values():
            shares.restored()
        if self.partition_count:
            logger.info("recovered what share groups have worked off of %d partitions", self.partition_count)

    def capture(self) -> list[KeeperState]:
        states: list[KeeperState] = []
        for shares in self._shares.values():
            states.extend(shares.capture())
        return states
