"""Transactions in the core: what is stable, what was aborted, who is shut out, and what is left after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from millpond.base.limits import GROUP_NAME_BYTES_MAX, STREAM_CHECK_INTERVAL_MS
from millpond.broker.groups.errors import InvalidGroupName
from millpond.broker.transactions.coordinator import EPOCH_MAX, ProducerIdentity
from millpond.broker.transactions.errors import (
    InvalidProducerMapping,
    InvalidTransactionalId,
    InvalidTransactionState,
    InvalidTransactionTimeout,
    NotInTransaction,
    ProducerFenced,
    TransactionNotFound,
)
from millpond.broker.transactions.records import COMPLETE_ABORT, COMPLETE_COMMIT, EMPTY, ONGOING, HeadChanged
from millpond.storage.record_batch import BatchHeader
from tests.broker.life import DATA, Life, small_streams
from tests.broker.test_compaction import compact, pass_time, records_of
from tests.broker.test_group_recovery import Lives
from tests.broker.transactional import TOPIC, Writer, committed_values, offset_of, partition_of

DAY_MS = 86_400_000


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    lives.life.abandon()


def writer(lives: Lives, transactional_id: str = "x", timeout_ms: int = 60_000) -> Writer:
    return Writer(lambda: lives.life, transactional_id, timeout_ms)


# --- What is stable ---------------------------------------------------------------------------------------------------


def test_what_is_stable_ends_where_the_first_open_transaction_begins(lives: Lives) -> None:
    first, second = writer(lives), writer(lives, "y")
    partition = partition_of(lives.life)
    first.write(b"a")
    second.write(b"b")
    lives.life.settle_down()
    assert (partition.durable_end, partition.stable_end) == (2, 0)
    second.end(True)
    lives.life.settle_down()
    assert (partition.durable_end, partition.stable_end) == (3, 0)
    first.end(True)
    lives.life.settle_down()
    assert (partition.durable_end, partition.stable_end) == (4, 4)
    assert committed_values(lives.life) == [b"a", b"b"]


def test_nothing_is_stable_before_its_marker_is_durable(lives: Lives) -> None:
    one = writer(lives)
    one.write(b"a")
    lives.life.settle_down()
    partition = partition_of(lives.life)
    one.end(True)
    assert (partition.durable_end, partition.stable_end) == (1, 0)
    lives.life.settle_down()
    assert partition.stable_end == 2


def test_aborted_batches_are_told_from_others_of_the_same_producer(lives: Lives) -> None:
    one, other = writer(lives), writer(lives, "y")
    for number in range(6):
        other.write(b"o%d" % number)
        one.write(b"%d" % number)
        one.end(number % 2 == 0, raises_epoch=number < 3)
    other.end(True)
    lives.life.settle_down()
    assert committed_values(lives.life) == [b"o0", b"0", b"o1", b"o2", b"2", b"o3", b"o4", b"4", b"o5"]
    partition = partition_of(lives.life)
    assert [one.first_offset for one in partition.transactions.aborted.between(0, 1 << 40)] == [4, 10, 16]
    assert [one.first_offset for one in partition.transactions.aborted.between(6, 11)] == [10]
    assert partition.transactions.aborted.between(6, 10) == []


def test_trimming_forgets_what_was_aborted_before(lives: Lives) -> None:
    one = writer(lives)
    for _ in range(3):
        one.write(b"a")
        one.end(False)
    lives.life.settle_down()
    partition = partition_of(lives.life)
    partition.trim_before(3)
    assert partition.transactions.aborted.count == 2
    one.write(b"open")
    lives.life.settle_down()
    partition.trim_before(7)
    assert partition.stable_end == 7


# --- Producers --------------------------------------------------------------------------------------------------------


def test_a_new_producer_shuts_the_old_one_out_and_aborts_what_it_had(lives: Lives) -> None:
    old = writer(lives)
    old.write(b"old")
    new = writer(lives)
    assert new.identity == ProducerIdentity(old.identity.producer_id, 1)
    with pytest.raises(ProducerFenced):
        old.write(b"old")
    with pytest.raises(ProducerFenced):
        old.end(True)
    new.write(b"new")
    new.end(True)
    lives.life.settle_down()
    assert committed_values(lives.life) == [b"new"]


def test_a_producer_that_goes_on_keeps_its_id_and_a_lost_answer_may_be_asked_for_again(lives: Lives) -> None:
    one = writer(lives)
    began = lives.life.vhost.transactions.begin_producer
    before = one.identity
    given = began("x", 60_000, before)
    assert given == ProducerIdentity(before.producer_id, before.epoch + 1)
    assert began("x", 60_000, before) == given
    with pytest.raises(ProducerFenced):
        began("x", 60_000, ProducerIdentity(before.producer_id, 7))
    with pytest.raises(ProducerFenced):
        began("x", 60_000, ProducerIdentity(before.producer_id + 5, 0))
    # Another one has come meanwhile: whoever was before it does not come back.
    began("x", 60_000)
    with pytest.raises(ProducerFenced):
        began("x", 60_000, before)


@pytest.mark.parametrize("raises_epoch", [False, True])
def test_where_no_epoch_is_left_the_producer_gets_a_new_id(lives: Lives, raises_epoch: bool) -> None:
    one = writer(lives)
    coordinator = one.coordinator
    transaction = coordinator.find("x")
    last = ProducerIdentity(one.identity.producer_id, EPOCH_MAX - 1)
    coordinator.store.record(HeadChanged("x", replace(transaction.head, epoch=last.epoch)))
    one.follow(last)
    one.write(b"a")
    if raises_epoch:
        one.end(True)
        following = one.identity
        assert coordinator.end("x", last, True, True) == following, "asked again"
    else:
        following = coordinator.begin_producer("x", 60_000)
    assert following.producer_id != last.producer_id
    assert following.epoch == 0
    one.follow(following)
    one.write(b"b")
    one.end(True)
    lives.life.settle_down()
    assert committed_values(lives.life) == ([b"a", b"b"] if raises_epoch else [b"b"])


def test_ends_that_make_no_sense_are_refused(lives: Lives) -> None:
    one = writer(lives)
    coordinator = one.coordinator
    with pytest.raises(InvalidTransactionState):
        coordinator.end("x", one.identity, True, False)
    with pytest.raises(InvalidProducerMapping):
        coordinator.end("y", one.identity, True, False)
    with pytest.raises(InvalidProducerMapping):
        coordinator.end("x", ProducerIdentity(12345, 0), True, False)
    with pytest.raises(InvalidTransactionalId):
        coordinator.end("", one.identity, True, False)
    with pytest.raises(InvalidTransactionTimeout):
        coordinator.begin_producer("x", 0)
    with pytest.raises(NotInTransaction):
        coordinator.check_partition("x", one.identity, (TOPIC, 0))
    one.write(b"a")
    one.end(True, raises_epoch=False)
    one.end(True, raises_epoch=False)
    with pytest.raises(InvalidTransactionState):
        one.end(False, raises_epoch=False)


def test_the_end_of_a_transaction_may_be_asked_for_again_where_it_raises_the_epoch(lives: Lives) -> None:
    one = writer(lives)
    one.write(b"a")
    before = one.identity
    one.end(True)
    assert one.identity.epoch == before.epoch + 1
    assert one.coordinator.end("x", before, True, True) == one.identity
    with pytest.raises(InvalidTransactionState):
        one.coordinator.end("x", before, False, True)
    # Nothing is open, and so nothing can be committed; to abort that is allowed, and raises the epoch.
    with pytest.raises(InvalidTransactionState):
        one.coordinator.end("x", one.identity, True, True)
    assert one.coordinator.end("x", one.identity, False, True).epoch == one.identity.epoch + 1


def test_a_transaction_that_takes_too_long_is_aborted(lives: Lives) -> None:
    one = writer(lives, timeout_ms=1000)
    one.write(b"a")
    one.end(True)
    lives.advance(900)
    one.write(b"b")
    lives.advance(900)
    assert one.coordinator.find("x").head.state == ONGOING
    lives.advance(200)
    assert one.coordinator.find("x").head.state == COMPLETE_ABORT
    assert lives.life.broker.transactions.totals.timed_out_total == 1
    with pytest.raises(ProducerFenced):
        one.write(b"c")
    lives.life.settle_down()
    assert committed_values(lives.life) == [b"a"]


def test_a_producer_whose_transaction_took_too_long_is_told_so_and_may_go_on(lives: Lives) -> None:
    one = writer(lives, timeout_ms=1000)
    one.write(b"a")
    lives.advance(1000)
    before = one.identity
    # Producers that do not take their epoch from the answer are shut out.
    for is_commit in (True, False):
        with pytest.raises(ProducerFenced):
            one.end(is_commit, raises_epoch=False)
    with pytest.raises(InvalidTransactionState):
        one.end(True)
    one.end(False)
    assert one.identity == ProducerIdentity(before.producer_id, before.epoch + 1)
    # So does one that initializes itself once more.
    assert one.coordinator.begin_producer("x", 1000, before) == one.identity
    one.write(b"b")
    one.end(True)
    lives.life.settle_down()
    assert committed_values(lives.life) == [b"b"]


def test_a_producer_that_was_shut_out_in_the_last_epoch_cannot_end_in_it(lives: Lives) -> None:
    one = writer(lives)
    head = one.coordinator.find("x").head
    one.coordinator.store.record(HeadChanged("x", replace(head, epoch=EPOCH_MAX - 1)))
    one.follow(ProducerIdentity(head.producer_id, EPOCH_MAX - 1))
    one.write(b"a")
    one.coordinator.abort("x")
    last = ProducerIdentity(head.producer_id, EPOCH_MAX)
    following = one.coordinator.end("x", last, False, True)
    assert following.producer_id != last.producer_id
    assert following.epoch == 0


def test_an_operator_may_abort(lives: Lives) -> None:
    one = writer(lives)
    with pytest.raises(TransactionNotFound):
        one.coordinator.abort("y")
    with pytest.raises(InvalidTransactionState):
        one.coordinator.abort("x")
    one.write(b"a")
    one.coordinator.abort("x")
    with pytest.raises(ProducerFenced):
        one.write(b"b")


def test_a_transactional_id_that_nobody_uses_is_forgotten(lives: Lives) -> None:
    one = writer(lives)
    lives.life.clock.advance(5 * DAY_MS)
    one.write(b"a")
    one.end(True)
    lives.life.clock.advance(5 * DAY_MS)
    assert [one.id for one in lives.life.vhost.transactions.all()] == ["x"]
    lives.life.clock.advance(3 * DAY_MS)
    assert list(lives.life.vhost.transactions.all()) == []
    lives.kill()
    assert list(lives.life.vhost.transactions.all()) == []


def test_a_topic_that_is_deleted_does_not_keep_a_transaction_from_ending(lives: Lives) -> None:
    one = writer(lives)
    one.write(b"a")
    lives.life.vhost.topics.delete(lives.life.vhost.topics.by_name[TOPIC])
    one.end(True)
    assert one.coordinator.find("x").head.state == COMPLETE_COMMIT


# --- Offsets ----------------------------------------------------------------------------------------------------------


def test_offsets_wait_for_the_end(lives: Lives) -> None:
    one = writer(lives)
    offsets = lives.groups.offsets
    for is_commit, expected in ((True, 5), (False, 5), (True, 9)):
        one.commit_offset("g", 0, expected if is_commit else 99)
        assert offsets.is_unstable("g", TOPIC, 0)
        one.end(is_commit)
        assert not offsets.is_unstable("g", TOPIC, 0)
        assert offset_of(lives.life, "g", 0) == expected


def test_what_is_committed_without_a_transaction_meanwhile_stays(lives: Lives) -> None:
    one = writer(lives)
    one.commit_offset("g", 0, 5)
    lives.advance(10)
    lives.commit((TOPIC, 0, 7), group="g")
    one.end(True)
    assert offset_of(lives.life, "g", 0) == 7


@pytest.mark.parametrize("gone", ["group", "topic", "offset"])
def test_offsets_of_what_was_deleted_do_not_come_back(lives: Lives, gone: str) -> None:
    one = writer(lives)
    one.commit_offset("g", 0, 5)
    if gone == "group":
        lives.groups.delete("g")
    elif gone == "topic":
        lives.life.vhost.topics.delete(lives.life.vhost.topics.by_name[TOPIC])
    else:
        lives.groups.offsets.delete("g", [(TOPIC, 0)])
    lives.kill()
    one.end(True)
    assert offset_of(lives.life, "g", 0) == -1
    assert lives.groups.store.pending.count == 0


# --- Restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["kill", "stop", "cut_power", "checkpoint"])
def test_transactions_are_what_they_were_after_a_restart(lives: Lives, ending: str) -> None:
    one, other = writer(lives), writer(lives, "y")
    for number in range(6):
        one.write(b"%d" % number, number % 2)
        one.end(number % 3 > 0)
    one.write(b"open")
    one.commit_offset("g", 1, 3)
    other.write(b"other", 1)
    other.end(True)
    lives.life.settle_down()
    if ending == "checkpoint":
        lives.life.checkpoint()
        other.write(b"later", 1)
        other.end(False)
        lives.life.settle_down()
    life: Life = getattr(lives, "kill" if ending == "checkpoint" else ending)()
    assert committed_values(life) == [b"2", b"4"]
    assert committed_values(life, 1) == [b"1", b"5", b"other"]
    assert one.coordinator.find("x").head.state == ONGOING
    assert life.vhost.groups.offsets.is_unstable("g", TOPIC, 1)
    one.write(b"more")
    one.end(True)
    life.settle_down()
    assert committed_values(life) == [b"2", b"4", b"open", b"more"]
    assert offset_of(life, "g", 1) == 3
    life = lives.kill()
    assert committed_values(life) == [b"2", b"4", b"open", b"more"]
    assert offset_of(life, "g", 1) == 3


def test_a_transaction_times_out_across_a_restart(lives: Lives) -> None:
    one = writer(lives, timeout_ms=5000)
    one.write(b"a")
    lives.life.settle_down()
    lives.advance(3000)
    lives.kill()
    lives.advance(1000)
    assert one.coordinator.find("x").is_ongoing
    lives.advance(2000)
    assert not one.coordinator.find("x").is_ongoing


def test_without_a_checkpoint_logs_tell_what_was_aborted_and_what_is_open_is_aborted(lives: Lives) -> None:
    one, other = writer(lives), writer(lives, "y")
    for number in range(4):
        one.write(b"%d" % number)
        one.end(number % 2 == 0)
    other.write(b"open")
    partition = partition_of(lives.life)
    lives.life.settle_down()
    lives.life.broker.streams.write(partition, everything=True)
    lives.life.checkpoint()
    disk = lives.disk
    lives.stop()
    lives.life.abandon()
    for folder in ("checkpoints", "journal"):
        for name in disk.list(f"{DATA}/{folder}"):
            disk.remove(f"{DATA}/{folder}/{name}")
    lives.kill()
    partition = partition_of(lives.life)
    assert partition.stable_end == 8
    lives.advance(1)
    lives.life.settle_down()
    assert partition.stable_end == partition.end_offset == 10
    assert committed_values(lives.life) == [b"0", b"2"]


# --- Compaction -------------------------------------------------------------------------------------------------------


def test_compaction_drops_what_was_aborted_and_later_its_marker(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    small_streams(monkeypatch)
    life = lives.life
    partition = partition_of(life)
    partition.segment_ms, partition.segment_bytes, partition.compacts, partition.deletes = DAY_MS, 1024, True, False
    partition.min_cleanable_dirty_ratio = 0.0
    partition.delete_retention_ms = 1000
    one = writer(lives)
    for number in range(30):
        one.write(b"kept %d" % number, key=b"k%d" % (number % 3))
        one.end(True)
        one.write(b"dropped %d" % number, key=b"k%d" % (number % 3))
        one.end(False)
        life.settle_down()
    stuck = writer(lives, "stuck", 900_000)
    stuck_at = stuck.write(b"open", key=b"open")
    for number in range(20):
        one.write(b"after %d" % number, key=b"k0")
        one.end(True)
    compact(life, partition)
    assert 0 < partition.cleaned_end <= stuck_at
    cleaned = [value or b"" for offset, _, value in records_of(life, partition) if offset < partition.cleaned_end]
    assert not [value for value in cleaned if value.startswith(b"dropped")]
    assert committed_values(life)[-3:] == [b"kept 27", b"kept 28", b"kept 29"]
    markers = _markers(life)
    stuck.end(True)
    for _ in range(4):
        for number in range(10):
            one.write(b"last %d" % number, key=b"k%d" % (number % 3))
            one.end(True)
        compact(life, partition)
        pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert partition.cleaned_end > stuck_at
    assert len([offset for offset in _markers(life) if offset < stuck_at]) < len(markers) / 2
    assert partition.transactions.aborted.count < 30
    found = committed_values(life)
    assert [value for value in found if value.startswith(b"last")][-3:] == [b"last 7", b"last 8", b"last 9"]
    assert b"open" in found


def _markers(life: Life) -> list[int]:
    partition = partition_of(life)
    found: list[int] = []
    offset = int(partition.start_offset)
    while offset < partition.durable_end:
        batches = partition.read(offset, partition.durable_end, 1 << 20)
        if batches is None:
            life.pump_until(lambda: not partition.loading, "a read")
            continue
        headers = [BatchHeader(batch.data) for batch in batches]
        found += [int(header.base_offset) for header in headers if header.is_control and header.record_count]
        offset = int(batches[-1].end_offset)
    return found


def test_states_have_kafkas_names(lives: Lives) -> None:
    one = writer(lives)
    states = [one.coordinator.find("x").head.state]
    for is_commit in (True, False):
        one.write(b"a")
        states.append(one.coordinator.find("x").head.state)
        one.end(is_commit)
        states.append(one.coordinator.find("x").head.state)
    assert states == [EMPTY, ONGOING, COMPLETE_COMMIT, ONGOING, COMPLETE_ABORT]


def test_no_group_is_part_of_a_transaction_whose_name_is_longer_than_groups_have(lives: Lives) -> None:
    one = writer(lives)
    with pytest.raises(InvalidGroupName):
        one.coordinator.add_group(one.id, one.identity, "g" * (GROUP_NAME_BYTES_MAX + 1))
    assert not one.coordinator.find(one.id).is_ongoing
