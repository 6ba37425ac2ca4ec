"""Messages that wait for their time: in delayed exchanges, and in queues that hold back what is returned to them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from millpond.base.clock import ManualClock
from millpond.base.errors import AccessRefused, NotFound, PreconditionFailed
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.limits import DELAY_MS_MAX
from millpond.broker.commits import ALARM_MEMORY
from millpond.broker.exchanges.delayed import delay_ms
from millpond.broker.queues import delayed_backlog, page_store
from millpond.broker.queues.delay_queue import DelayQueue
from millpond.broker.queues.queue import Queue
from millpond.protocols.amqp.properties import encode_properties, parse_properties
from tests.broker.life import KIB, MIB, Inbox, Life, PlainProperties, copy_catalog, number_of, small_pages

DAY_MS = 86_400_000
long = pytest.mark.skipif(
    "MILLPOND_TEST_BACKLOG" not in os.environ or delayed_backlog.__file__.endswith(".py"),
    reason="`make faults` runs it: it takes long, and minutes uncompiled",
)


@pytest.fixture
def disk() -> FaultyFilesystem:
    return FaultyFilesystem(1)


@pytest.fixture
def life(disk: FaultyFilesystem, tmp_path: Path) -> Iterator[Life]:
    life = Life(disk, tmp_path / "catalog")
    yield life
    life.abandon()


def delayed_exchange(life: Life, name: str = "later", kind: str = "direct", durable: bool = True) -> DelayQueue:
    """Where the messages of a new delayed exchange wait."""
    life.vhost.declare_exchange(name, "x-delayed-message", durable, False, False, {"x-delayed-type": kind})
    return life.vhost.delay_queues[name]


def bound(life: Life, name: str, exchange: str = "later", key: str | None = None, **arguments: object) -> Queue:
    queue = life.declare(name, **arguments)
    life.vhost.bind(life.vhost.exchange(exchange), queue, name if key is None else key, {})
    return queue


def publish_later(
    life: Life, number: int, delay: object, *, key: str = "work", exchange: str = "later", persistent: bool = True,
    size: int = 0,
) -> None:  # fmt: skip
    properties = PlainProperties(persistent, -1, {"x-delay": delay})
    life.publish(exchange, key, number, size=size, properties=properties)


def let_pass(life: Life, duration_ms: int) -> None:
    """Move the clock, and do all that follows."""
    life.clock.advance(duration_ms)
    life.turn.now_ms = life.clock.wall_ms()
    life.end_turn()
    life.settle_down()


def taken(queue: Queue) -> list[int]:
    """The numbers of all messages that are ready, which are acknowledged."""
    numbers = []
    while (entry := queue.get()) is not None:
        numbers.append(number_of(entry.message))
        queue.settle(entry)
    return numbers


def copied(disk: FaultyFilesystem) -> FaultyFilesystem:
    # Threads may be at work on it.
    with disk.guard:
        return disk.copy()


def next_life(life: Life, disk: FaultyFilesystem, folder: Path, **options: object) -> Life:
    """What a kill leaves of `life`, started again at the same time."""
    life.settle_down()
    left = copied(disk)
    copy_catalog(life.catalog_folder, folder)
    clock = ManualClock(life.clock.wall_ms())
    return Life(left, folder, clock=clock, **options)  # type: ignore[arg-type]


class TestDelayedExchange:
    def test_messages_are_routed_in_the_order_of_their_times(self, life: Life) -> None:
        holder = delayed_exchange(life)
        work = bound(life, "work")
        for number, delay in enumerate([3000, 1000, 2000, 1000]):
            publish_later(life, number, delay)
        let_pass(life, 999)
        assert (work.ready, holder.delayed) == (0, 4)
        let_pass(life, 1)
        assert taken(work) == [1, 3]
        assert holder.delayed == 2
        let_pass(life, 5000)
        assert taken(work) == [2, 0]
        assert holder.delayed == 0
        life.check_counts()

    @pytest.mark.parametrize("delay", [None, 0, -5, True, "soon", "", [], DELAY_MS_MAX + 1, 1e300])
    def test_a_message_without_a_delay_that_counts_is_routed_at_once(self, life: Life, delay: object) -> None:
        delayed_exchange(life)
        work = bound(life, "work")
        publish_later(life, 7, delay)
        assert taken(work) == [7]

    @pytest.mark.parametrize("delay", [1500, "1500", "+1500", 1500.9])
    def test_texts_and_fractions_are_delays_too(self, life: Life, delay: object) -> None:
        assert delay_ms({"x-delay": delay}) == 1500

    def test_the_delay_is_negated_on_delivery(self, life: Life) -> None:
        delayed_exchange(life)
        work = bound(life, "work")
        publish_later(life, 1, 250)
        let_pass(life, 250)
        entry = work.get()
        assert entry is not None
        assert entry.message.properties.headers() == {"x-delay": -250}
        assert entry.message.address.exchange == "later"
        assert not entry.redelivered

    def test_bindings_of_the_time_of_routing_count(self, life: Life) -> None:
        delayed_exchange(life)
        work = bound(life, "work")
        publish_later(life, 1, 1000)
        life.vhost.unbind(life.vhost.exchange("later"), work, "work", {})
        late = bound(life, "late", key="work")
        let_pass(life, 1000)
        assert taken(work) == []
        assert taken(late) == [1]

    def test_a_message_that_nothing_is_bound_for_is_dropped_when_it_is_due(self, life: Life) -> None:
        holder = delayed_exchange(life)
        publish_later(life, 1, 1000)
        unroutable = life.vhost.unroutable_total
        let_pass(life, 1000)
        assert holder.delayed == 0
        assert life.vhost.unroutable_total == unroutable + 1
        life.check_counts()

    @pytest.mark.parametrize(("kind", "key"), [("topic", "w.#"), ("fanout", ""), ("x-random", "")])
    def test_the_inner_type_routes(self, life: Life, kind: str, key: str) -> None:
        delayed_exchange(life, kind=kind)
        work = bound(life, "work", key=key)
        publish_later(life, 1, 1000, key="w.1")
        publish_later(life, 2, 0, key="w.2")
        assert taken(work) == [2]
        let_pass(life, 1000)
        assert taken(work) == [1]

    def test_the_alternate_exchange_gets_what_is_due_and_goes_nowhere(self, life: Life) -> None:
        life.vhost.declare_exchange(
            "later", "x-delayed-message", True, False, False,
            {"x-delayed-type": "direct", "alternate-exchange": "amq.fanout"},
        )  # fmt: skip
        caught = bound(life, "caught", "amq.fanout")
        publish_later(life, 1, 1000)
        assert taken(caught) == []
        let_pass(life, 1000)
        assert taken(caught) == [1]

    def test_a_message_that_comes_through_another_exchange_waits_too(self, life: Life) -> None:
        holder = delayed_exchange(life)
        work = bound(life, "work")
        life.vhost.bind(life.vhost.exchange("amq.fanout"), life.vhost.exchange("later"), "", {})
        publish_later(life, 1, 1000, exchange="amq.fanout")
        assert holder.delayed == 1
        let_pass(life, 1000)
        assert taken(work) == [1]

    def test_a_dead_lettered_message_with_a_delay_waits_too(self, life: Life) -> None:
        delayed_exchange(life)
        source = life.declare("source", dead_letter_exchange="later", dead_letter_routing_key="work")
        work = bound(life, "work")
        publish_later(life, 1, 1000, exchange="", key="source")
        entry = source.get()
        assert entry is not None
        source.reject(entry)
        life.end_turn()
        assert taken(work) == []
        let_pass(life, 1000)
        assert taken(work) == [1]

    def test_a_message_waits_in_the_first_delayed_exchange_only(self, life: Life) -> None:
        delayed_exchange(life)
        second = delayed_exchange(life, "second")
        work = bound(life, "work", "second")
        life.vhost.bind(life.vhost.exchange("later"), life.vhost.exchange("second"), "work", {})
        publish_later(life, 1, 1000)
        let_pass(life, 1000)
        assert second.delayed == 0
        assert taken(work) == [1]

    def test_time_to_live_begins_when_the_message_is_routed(self, life: Life) -> None:
        delayed_exchange(life)
        work = bound(life, "work", message_ttl=500)
        publish_later(life, 1, 2000)
        let_pass(life, 2400)
        assert work.ready == 1
        let_pass(life, 600)
        assert work.ready == 0

    @pytest.mark.parametrize("kind", [None, 5, "x-delayed-message"])
    def test_the_inner_type_is_required(self, life: Life, kind: object) -> None:
        arguments = {} if kind is None else {"x-delayed-type": kind}
        with pytest.raises(PreconditionFailed, match="Invalid argument, 'x-delayed-type' must be an existing exchange"):
            life.vhost.declare_exchange("later", "x-delayed-message", True, False, False, arguments)
        assert not life.vhost.delay_queues

    def test_an_unknown_inner_type_is_refused(self, life: Life) -> None:
        with pytest.raises(PreconditionFailed, match="unknown exchange type 'x-none'"):
            delayed_exchange(life, kind="x-none")

    def test_a_binding_that_the_inner_type_cannot_have_is_refused(self, life: Life) -> None:
        delayed_exchange(life, kind="headers")
        with pytest.raises(PreconditionFailed):
            life.vhost.bind(life.vhost.exchange("later"), life.declare("work"), "", {"x-match": "some"})

    def test_where_messages_wait_is_no_queue_for_clients(self, life: Life) -> None:
        delayed_exchange(life)
        with pytest.raises(NotFound):
            life.vhost.queue("amq.delayed.later", None)
        with pytest.raises(AccessRefused):
            life.declare("amq.delayed.later")
        publish_later(life, 1, 1000, exchange="", key="amq.delayed.later")
        assert life.vhost.delay_queues["later"].delayed == 0

    def test_deleting_the_exchange_deletes_what_waits(self, life: Life, disk: FaultyFilesystem, tmp_path: Path) -> None:
        delayed_exchange(life)
        work = bound(life, "work")
        publish_later(life, 1, 1000)
        life.end_turn()
        queues = life.broker.context.queue_count
        life.vhost.delete_exchange("later", False)
        assert life.broker.context.queue_count == queues - 1
        let_pass(life, 2000)
        assert taken(work) == []
        life.check_counts()
        again = next_life(life, disk, tmp_path / "again")
        assert not again.vhost.delay_queues
        assert not again.catalog.load().queues[1:]
        delayed_exchange(again)
        assert again.vhost.delay_queues["later"].delayed == 0
        again.abandon()

    def test_deleting_the_virtual_host_deletes_what_waits(self, life: Life) -> None:
        vhost = life.broker.create_vhost("other")
        vhost.declare_exchange("later", "x-delayed-message", True, False, False, {"x-delayed-type": "direct"})
        life.end_turn()
        life.broker.delete_vhost("other")
        life.settle_down()
        assert not life.catalog.load().queues


class TestRestart:
    @pytest.mark.parametrize("with_checkpoint", [False, True])
    def test_delays_go_on_after_a_kill(
        self, life: Life, disk: FaultyFilesystem, tmp_path: Path, with_checkpoint: bool
    ) -> None:
        delayed_exchange(life)
        bound(life, "work")
        for number, delay in enumerate([3000, 1000, 2000]):
            publish_later(life, number, delay)
        publish_later(life, 9, 1000, persistent=False)
        if with_checkpoint:
            life.checkpoint()
        again = next_life(life, disk, tmp_path / "again")
        work, holder = again.queue("work"), again.vhost.delay_queues["later"]
        assert holder.delayed == 3
        let_pass(again, 999)
        assert taken(work) == []
        let_pass(again, 1)
        assert taken(work) == [1]
        let_pass(again, 10_000)
        assert taken(work) == [2, 0]
        again.check_counts()
        again.abandon()

    def test_what_is_overdue_after_a_restart_is_routed_at_once(
        self, life: Life, disk: FaultyFilesystem, tmp_path: Path
    ) -> None:
        delayed_exchange(life)
        bound(life, "work")
        for number, delay in enumerate([3000, 1000, 60_000]):
            publish_later(life, number, delay)
        life.settle_down()
        life.clock.advance(0)
        left = copied(disk)
        copy_catalog(life.catalog_folder, tmp_path / "again")
        again = Life(left, tmp_path / "again", clock=ManualClock(life.clock.wall_ms() + 5000))
        again.settle_down()
        assert taken(again.queue("work")) == [1, 0]
        again.abandon()

    def test_an_exchange_that_is_not_durable_goes_with_its_messages(
        self, life: Life, disk: FaultyFilesystem, tmp_path: Path
    ) -> None:
        delayed_exchange(life, durable=False)
        publish_later(life, 1, 1000)
        again = next_life(life, disk, tmp_path / "again")
        assert not again.vhost.delay_queues
        again.abandon()

    def test_without_any_checkpoint_the_logs_tell_the_times(
        self, disk: FaultyFilesystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small_pages(monkeypatch)
        life = Life(disk, tmp_path / "catalog", budget=64 * KIB, file_bytes=32 * KIB)
        delayed_exchange(life)
        bound(life, "work")
        for number in range(3000):
            publish_later(life, number, 1_000_000 + number, size=100)
            if number % 50 == 0:
                life.end_turn()
                life.pump()
        life.checkpoint()
        life.settle_down()
        left = copied(disk)
        for name in left.list("/data/checkpoints"):
            left.remove(f"/data/checkpoints/{name}")
        copy_catalog(life.catalog_folder, tmp_path / "again")
        clock = ManualClock(life.clock.wall_ms())
        life.abandon()
        again = Life(left, tmp_path / "again", clock=clock)
        assert again.vhost.delay_queues["later"].delayed == 3000
        let_pass(again, 999_000)
        assert again.queue("work").ready == 0
        let_pass(again, 10_000)
        assert taken(again.queue("work")) == list(range(3000))
        again.abandon()


class TestClock:
    def test_a_clock_that_is_set_back_loses_nothing(self, life: Life) -> None:
        delayed_exchange(life)
        work = bound(life, "work")
        publish_later(life, 1, 10_000)
        life.end_turn()
        life.clock._wall_ms -= 3_600_000
        let_pass(life, 10_000)
        assert taken(work) == []
        let_pass(life, 3_600_000)
        assert taken(work) == [1]

    def test_a_clock_that_is_set_forward_is_noticed_within_a_minute(self, life: Life) -> None:
        delayed_exchange(life)
        work = bound(life, "work")
        publish_later(life, 1, DAY_MS)
        life.end_turn()
        life.clock._wall_ms += DAY_MS
        let_pass(life, 60_000)
        assert taken(work) == [1]


def watch(life: Life, work: Queue, until: Callable[[], bool], step_ms: int) -> tuple[list[int], int]:
    """Let time pass in steps; the numbers that came out, and the most memory that messages took meanwhile."""
    numbers: list[int] = []
    highest = 0
    while not until():
        life.clock.advance(step_ms)
        life.turn.now_ms = life.clock.wall_ms()
        life.turn.touch()
        life.settle_down()
        numbers += taken(work)
        highest = max(highest, int(life.memory.used))
        life.end_turn()
    return numbers, highest


class TestDelayedRetry:
    """Messages that come back wait before they are delivered again."""

    @staticmethod
    def declare(life: Life, **arguments: object) -> Queue:
        named = {"delayed_retry_type": "all", "delayed_retry_min": 1000, **arguments}
        return life.declare("work", queue_type="quorum", **named)

    @staticmethod
    def fail(life: Life, queue: Queue, failed: bool = False) -> int:
        """Get a message and give it back; how often it had come back before."""
        entry = queue.get()
        assert entry is not None, "nothing was ready"
        returns = int(entry.returns)
        assert entry.redelivered == (returns > 0)
        queue.give_back([entry], failed)
        life.end_turn()
        return returns

    def test_a_returned_message_waits_longer_each_time(self, life: Life) -> None:
        work = self.declare(life, delayed_retry_max=4000)
        life.fill("work", range(1))
        for returns, wait_ms in enumerate([1000, 2000, 3000, 4000, 4000]):
            assert self.fail(life, work) == returns
            assert (work.ready, work.delayed) == (0, 1)
            let_pass(life, wait_ms - 1)
            assert work.get() is None
            let_pass(life, 1)
            assert (work.ready, work.delayed) == (1, 0)
        life.check_counts()
        assert taken(work) == [0]

    def test_exponential_backoff_doubles_the_wait(self, life: Life) -> None:
        work = self.declare(life, delayed_retry_backoff="exponential", delayed_retry_max=8000)
        life.fill("work", range(1))
        for wait_ms in [1000, 2000, 4000, 8000, 8000]:
            self.fail(life, work)
            let_pass(life, wait_ms - 1)
            assert work.ready == 0
            let_pass(life, 1)
            assert work.ready == 1

    @pytest.mark.parametrize(
        ("kind", "failed", "waits"),
        [
            ("all", False, True),
            ("all", True, True),
            ("returned", False, True),
            ("returned", True, False),
            ("failed", False, False),
            ("failed", True, True),
            ("disabled", False, False),
        ],
    )
    def test_the_type_says_which_returns_wait(self, life: Life, kind: str, failed: bool, waits: bool) -> None:
        work = self.declare(life, delayed_retry_type=kind)
        life.fill("work", range(1))
        self.fail(life, work, failed)
        assert (work.ready, work.delayed) == ((0, 1) if waits else (1, 0))

    def test_what_is_due_is_delivered_before_anything_else(self, life: Life) -> None:
        work = self.declare(life)
        life.fill("work", range(3))
        self.fail(life, work)
        assert taken(work) == [1, 2]
        life.fill("work", range(3, 5))
        let_pass(life, 1000)
        assert taken(work) == [0, 3, 4]
        life.check_counts()

    def test_a_consumer_gets_what_is_due_without_further_ado(self, life: Life) -> None:
        work = self.declare(life)
        inbox = Inbox(work, 1)
        work.add_consumer(inbox)
        life.fill("work", range(2))
        for number, returns in [(0, 0), (1, 0), (0, 1), (1, 1)]:
            (entry,) = inbox.take()
            assert (number_of(entry.message), entry.returns) == (number, returns)
            work.give_back([entry], False)
            life.end_turn()
            if number == 1:
                let_pass(life, 1000)
        assert work.delayed == 2

    def test_many_that_are_due_at_once_are_all_delivered(self, life: Life) -> None:
        work = self.declare(life)
        inbox = Inbox(work)
        work.add_consumer(inbox)
        life.fill("work", range(5000))
        work.give_back(inbox.take(), False)
        life.end_turn()
        assert work.delayed == 5000
        let_pass(life, 1000)
        life.pump_until(lambda: len(inbox.entries) == 5000)
        assert [number_of(entry.message) for entry in inbox.entries] == list(range(5000))
        for entry in inbox.take():
            work.settle(entry)
        life.check_counts()

    def test_the_delivery_limit_counts_over_all_of_it(self, life: Life) -> None:
        work = self.declare(life, delivery_limit=3, dead_letter_exchange="", dead_letter_routing_key="dead")
        dead = life.declare("dead")
        life.fill("work", range(1))
        for returns in range(4):
            assert dead.ready == 0
            assert self.fail(life, work, failed=returns == 2) == returns
            let_pass(life, 3000)
        assert (work.ready, work.delayed, dead.ready) == (0, 0, 1)
        entry = dead.get()
        assert entry is not None
        (death,) = entry.message.properties.headers()["x-death"]  # type: ignore[misc, attr-defined]
        assert (death["reason"], death["queue"], death["count"]) == ("delivery_limit", "work", 1)
        assert not entry.redelivered
        life.check_counts()

    @pytest.mark.parametrize("with_checkpoint", [False, True])
    def test_counts_and_waits_survive_a_kill(
        self, life: Life, disk: FaultyFilesystem, tmp_path: Path, with_checkpoint: bool
    ) -> None:
        work = self.declare(life, delivery_limit=5)
        life.fill("work", range(2))
        self.fail(life, work)
        let_pass(life, 1000)
        self.fail(life, work)
        if with_checkpoint:
            life.checkpoint()
        again = next_life(life, disk, tmp_path / "again")
        work = again.queue("work")
        assert (work.ready, work.delayed) == (1, 1)
        let_pass(again, 1999)
        entry = work.get()
        assert entry is not None
        assert (number_of(entry.message), entry.returns) == (1, 0)
        assert work.get() is None
        let_pass(again, 1)
        assert self.fail(again, work) == 2
        assert work.delayed == 1
        again.check_counts()
        again.abandon()

    def test_a_return_that_does_not_wait_counts_after_a_kill_too(
        self, life: Life, disk: FaultyFilesystem, tmp_path: Path
    ) -> None:
        work = self.declare(life, delayed_retry_type="failed")
        life.fill("work", range(1))
        self.fail(life, work, failed=True)
        let_pass(life, 1000)
        self.fail(life, work, failed=False)
        self.fail(life, work, failed=False)
        again = next_life(life, disk, tmp_path / "again")
        again.settle_down()
        assert self.fail(again, again.queue("work"), failed=True) == 3
        again.abandon()

    def test_what_waits_counts_for_the_length_limit_and_is_not_dropped(self, life: Life) -> None:
        work = self.declare(life, max_length=2)
        life.fill("work", range(2))
        self.fail(life, work)
        life.fill("work", range(2, 4))
        assert (work.ready, work.delayed) == (1, 1)
        self.fail(life, work)
        life.fill("work", range(4, 5))
        assert (work.ready, work.delayed) == (0, 2)
        let_pass(life, 1000)
        assert taken(work) == [0, 3]
        life.check_counts()

    def test_what_waits_keeps_a_queue_that_refuses_full(self, life: Life) -> None:
        work = self.declare(life, max_length=1, overflow="reject-publish")
        life.fill("work", range(1))
        self.fail(life, work)
        life.fill("work", range(1, 2))
        assert (work.ready, work.delayed) == (0, 1)

    def test_a_purge_removes_what_waits_too(self, life: Life) -> None:
        work = self.declare(life)
        life.fill("work", range(4))
        held = work.get()
        assert held is not None
        self.fail(life, work)
        assert work.purge() == 3
        let_pass(life, 5000)
        assert (work.ready, work.delayed) == (0, 0)
        work.settle(held)
        life.end_turn()
        life.check_counts()

    def test_a_purge_leaves_what_is_in_hands(self, life: Life) -> None:
        work = self.declare(life)
        life.fill("work", range(3))
        for _ in range(3):
            self.fail(life, work)
        let_pass(life, 1000)
        held = work.get()
        assert held is not None
        assert work.purge() == 2
        work.settle(held)
        life.end_turn()
        life.check_counts()

    def test_a_queue_with_something_that_waits_is_not_empty(self, life: Life) -> None:
        work = self.declare(life)
        life.fill("work", range(1))
        self.fail(life, work)
        with pytest.raises(PreconditionFailed, match="not empty"):
            life.vhost.delete_queue(work, False, True)

    def test_a_message_that_expires_meanwhile_is_dead_when_it_is_due(self, life: Life) -> None:
        work = self.declare(life, message_ttl=500, dead_letter_exchange="", dead_letter_routing_key="dead")
        dead = life.declare("dead")
        life.fill("work", range(1))
        self.fail(life, work)
        let_pass(life, 999)
        assert dead.ready == 0
        let_pass(life, 1)
        assert (work.ready, work.delayed, dead.ready) == (0, 0, 1)

    def test_a_deleted_queue_waits_for_nothing(self, life: Life) -> None:
        work = self.declare(life)
        life.fill("work", range(1))
        self.fail(life, work)
        life.vhost.delete_queue(work, False, False)
        let_pass(life, 5000)
        assert life.memory.used == 0


class TestPaging:
    def test_a_message_that_waits_for_long_does_not_keep_the_disk(
        self, disk: FaultyFilesystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page_store, "SEGMENT_BYTES", 64 * KIB)
        life = Life(disk, tmp_path / "catalog", budget=2 * MIB, file_bytes=256 * KIB)
        holder = delayed_exchange(life)
        work = bound(life, "work")
        holder.backlog.log_waste_max = 256 * KIB
        folder = f"/data/queues/{holder.log_id}"
        numbers: list[int] = []
        largest = 0
        for number in range(40_000):
            publish_later(life, number, DAY_MS if number % 1000 == 0 else 50_000, size=500)
            if number % 100 == 99:
                let_pass(life, 1000)
                life.store.resume()
                numbers += taken(work)
            if number % 2000 == 1999:
                life.checkpoint()
                if disk.exists(folder):
                    largest = max(largest, sum(len(disk.read_bytes(f"{folder}/{name}")) for name in disk.list(folder)))
        assert life.store.pages_written_total > 5
        # All of it together is more than 20 MB.
        assert largest < 6 * MIB
        let_pass(life, DAY_MS)
        life.pump_until(lambda: holder.delayed == 0)
        numbers += taken(work)
        assert numbers[-40:] == list(range(0, 40_000, 1000))
        assert sorted(numbers) == list(range(40_000))
        life.check_counts()
        life.abandon()

    @pytest.mark.parametrize(
        ("durable", "count", "budget"),
        [
            (True, 30_000, 8 * MIB),
            (False, 30_000, 8 * MIB),
            pytest.param(True, 200_000, 16 * MIB, marks=[pytest.mark.slow, long]),
        ],
    )
    def test_mixed_delays_in_little_memory_come_in_the_order_of_their_times(
        self, disk: FaultyFilesystem, tmp_path: Path, durable: bool, count: int, budget: int
    ) -> None:
        life = Life(disk, tmp_path / "catalog", budget=budget, file_bytes=64 * MIB)
        holder = delayed_exchange(life, durable=durable)
        work = bound(life, "work")
        choose = random.Random(5)
        delays = [choose.randrange(1, 3_600_000) for _ in range(count)]
        started_ms = life.clock.wall_ms()
        highest = 0
        for number, delay in enumerate(delays):
            # Those of AMQP, which are compiled: the pages are read and written often.
            headers: dict[str, object] = {"x-delay": delay + 60_000}
            life.publish(
                "later",
                "work",
                number,
                properties=parse_properties(encode_properties(headers=headers, delivery_mode=2)),
            )
            if number % 50 == 49:
                life.end_turn()
                life.pump()
                highest = max(highest, int(life.memory.used))
                if ALARM_MEMORY in life.alarms.reasons:
                    life.pump_until(lambda: ALARM_MEMORY not in life.alarms.reasons, "the end of the memory alarm")
        life.settle_down()
        assert life.clock.wall_ms() == started_ms
        assert highest < budget * 1.15
        assert holder.backlog.pages_out > 0
        numbers, highest = watch(life, work, lambda: holder.delayed == 0, 3_600_000 * 1000 // count)
        assert highest < budget * 1.15
        assert [delays[number] for number in numbers] == sorted(delays)
        assert len(set(numbers)) == count
        life.check_counts()
        # A page is read a few times, not once for each of its messages.
        assert life.store.pages_read_total < count / 100
        life.abandon()


def test_pages_are_not_read_and_written_again_all_the_while_where_memory_is_short(
    tmp_path: Path, disk: FaultyFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pages(monkeypatch)
    monkeypatch.setattr(delayed_backlog, "DELAYED_PAGES_AWAKE_MIN", 3)
    life = Life(disk, tmp_path / "small", budget=40 * KIB)
    holder = delayed_exchange(life)
    work = bound(life, "work")
    # All will be due before long, so all their pages are wanted, and there is no room for them.
    for number in range(200):
        publish_later(life, number, 500 + number * 5 % 997, size=300)
        life.end_turn()
        life.pump()
    life.settle_down()
    for _ in range(5):
        life.turn.touch_queue(holder)
        life.settle_down()
    # What is put at the end again has another offset.
    assert holder.backlog.next_offset < 1000
    let_pass(life, 2000)
    assert sorted(life.drain(work)) == list(range(200))
    life.check_counts()
    life.abandon()
