"""The course of the overload: what the disk does, for how long, and what has to be so meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import confluent_kafka.admin
import pamqp.commands as commands

from bench import process
from faults.overload.disk import JOURNAL, LOGS, Disk
from faults.overload.drain import Tally, drain_queue, drain_topic
from faults.overload.publishers import PERSISTENT, AmqpPublisher, KafkaPublisher, Publisher
from faults.report import Assignment, Failure, Report
from millpond.base import limits
from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.management import Management
from tests.support.raw_amqp import RawConnection
from tests.support.waiting import eventually

QUEUES: Final = [f"overload.{number}" for number in range(4)]
# A queue with a few messages, that a consumer takes while publishers are held back.
ASIDE: Final = "overload.aside"
ASIDE_MESSAGES: Final = 20
TOPIC: Final = "overload"
PARTITIONS: Final = 2
AMQP_PUBLISHERS, KAFKA_PUBLISHERS = 3, 2

# For a full run, and for a short one, which is to get to the same places sooner.
MEMORY_BUDGET_MIB, MEMORY_BUDGET_SHORT_MIB = 64, 16
DISK_FREE_MIN_BYTES: Final = 64 << 20
# Far below what the publishers bring: 16 MiB a second for each thread that writes, and 50 MiB in a short run.
WRITE_NS_PER_BYTE, WRITE_NS_PER_BYTE_SHORT = 60, 20
SLOW_SYNC_US: Final = 150_000
# What the interpreter, SQLite and the allocator take besides, more or less.
SLACK_BYTES: Final = 64 << 20
# The parts of the time, the drain excepted, which is as long as it takes.
PHASES: Final = {
    "faster than the disk": 0.16,
    "little room": 0.06,
    "no room": 0.10,
    "room again": 0.06,
    "slow syncs": 0.08,
    "logs cannot be written": 0.08,
    "killed without room": 0.06,
    "the journal cannot be synced": 0.05,
}
# In a run of this length or a longer one there has to be so much of everything.
FULL_RUN_S: Final = 240.0
CONFIRMED_MIN: Final = 20_000
# How a broker says at its start that the disk is full.
NO_ROOM: Final = "there is no room on the disk"
# Far longer than it takes on an idle machine.
PATIENCE_S: Final = 60.0


class Campaign:
    """One broker, its publishers, its disk."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment: Final = assignment
        self._report: Final = Report()
        self._history: Final[list[str]] = []
        self._is_full: Final = assignment.seconds >= FULL_RUN_S
        self._budget_mib: Final = MEMORY_BUDGET_MIB if self._is_full else MEMORY_BUDGET_SHORT_MIB
        folder = assignment.folder
        self._disk: Final = Disk(folder / "disk", folder / "data")
        self._broker: Final = BrokerProcess(
            folder,
            arguments=(
                *("--memory-budget", f"{self._budget_mib}MiB", "--disk-free-min", str(DISK_FREE_MIN_BYTES)),
                *("--admin", "127.0.0.1:0"),
            ),
            kafka=True,
            environment=self._disk.environment,
        )
        self._publishers: Final[list[Publisher]] = []
        self._over: Final = threading.Event()
        self._memory_bound = 0
        self._memory_peak = 0
        self._publishing_began = time.monotonic()
        self._published_s = 0.0
        # Until every publisher is confirmed something again, when there is room, and when a broken broker is replaced.
        self._recoveries_s: Final[list[float]] = []

    def run(self) -> Report:
        """Everything, whatever goes wrong on the way."""
        report = self._report
        sampler = threading.Thread(target=self._sample, daemon=True)
        try:
            self._begin()
            sampler.start()
            for name, part in PHASES.items():
                self._note(name)
                getattr(self, "_" + name.replace(" ", "_"))(part * self._assignment.seconds)
                report.done["phases"] += 1
                self._look()
            self._wind_down()
            self._check_what_is_there()
        except Exception as error:  # noqa: BLE001
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._over.set()
            for publisher in self._publishers:
                publisher.over.set()
            for publisher in self._publishers:
                publisher.join(PATIENCE_S)
            self._disk.heal()
            self._broker.stop()
        self._figure()
        for publisher in self._publishers:
            report.done["messages sent"] += publisher.sent
            report.done["messages confirmed"] += publisher.confirmed
            report.done["messages refused while the journal was broken"] += publisher.refused
            report.done["times publishers were told to wait"] += len(publisher.blocked)
            for wrong in publisher.wrong:
                self._fail(wrong)
        for name in ("refused_for_room", "halved", "broken_writes", "broken_syncs", "delayed_syncs"):
            report.done[f"disk: {name.replace('_', ' ')}"] = self._disk.count(name)
            if not report.done[f"disk: {name.replace('_', ' ')}"]:
                self._fail(f"the disk has never done this: {name.replace('_', ' ')}")
        if self._is_full and report.done["messages confirmed"] < CONFIRMED_MIN:
            self._fail(f"only {report.done['messages confirmed']:,} messages were confirmed")
        return report

    def _figure(self) -> None:
        """What it was like: nothing is demanded of these, as it is the disk that they depend on."""
        figures = self._report.figures
        figures["resident memory, largest, and what it may be"] = (
            f"{self._memory_peak >> 20} MiB of {self._memory_bound >> 20} MiB"
        )
        for name, kind in (("AMQP", AmqpPublisher), ("Kafka", KafkaPublisher)):
            of_kind = [publisher for publisher in self._publishers if isinstance(publisher, kind)]
            times = sorted(seconds for publisher in of_kind for seconds in publisher.confirm_s)
            if self._published_s > 0 and times:
                rate = sum(publisher.confirmed for publisher in of_kind) / self._published_s
                figures[f"{name}: confirmed a second"] = f"{rate:,.0f}"
                figures[f"{name}: until the confirm, p50 and p99"] = (
                    f"{times[len(times) // 2] * 1000:,.0f} ms, {times[len(times) * 99 // 100] * 1000:,.0f} ms"
                )
        told = [publisher.blocked_s for publisher in self._publishers if isinstance(publisher, AmqpPublisher)]
        if told:
            figures["AMQP: told to wait, of each publisher"] = (
                f"{sum(told) / len(told):,.1f} s of {self._published_s:,.0f} s"
            )
        if self._recoveries_s:
            figures["publishing again after a bad disk, latest"] = f"{max(self._recoveries_s):.1f} s"

    # --- The phases -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._disk.become(write_ns_per_byte=WRITE_NS_PER_BYTE if self._is_full else WRITE_NS_PER_BYTE_SHORT)
        self._broker.start()
        port = self._broker.port
        with RawConnection(Endpoint("127.0.0.1", port)) as connection:
            connection.handshake()
            connection.open_channel()
            for queue in (*QUEUES, ASIDE):
                connection.rpc(commands.Queue.Declare(0, queue, durable=True), commands.Queue.DeclareOk)
            connection.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk)
            for number in range(ASIDE_MESSAGES):
                connection.publish(1, ASIDE, b"%d" % number, properties=PERSISTENT)
            acknowledged = 0
            while acknowledged < ASIDE_MESSAGES:
                acknowledged = connection.expect(commands.Basic.Ack).delivery_tag
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": self._broker.kafka_address, "log_level": 0})
        made = admin.create_topics([confluent_kafka.admin.NewTopic(TOPIC, PARTITIONS, 1)])
        made[TOPIC].result(PATIENCE_S)
        # The budget is for messages. Beside it: what waits for the journal, what streams keep of reads, and what
        # connections have half received or not yet sent.
        connections = AMQP_PUBLISHERS + KAFKA_PUBLISHERS + 2
        self._memory_bound = (
            process.resident_bytes(self._broker.pid)
            + (self._budget_mib << 20)
            + limits.JOURNAL_PENDING_BYTES_MAX
            + limits.STREAM_CACHE_BYTES
            + connections * 2 * limits.OUTPUT_BYTES_MAX
            + SLACK_BYTES
        )
        for number in range(AMQP_PUBLISHERS):
            self._publishers.append(AmqpPublisher(number, QUEUES, port, number % 2 == 0, self._note))
        for number in range(KAFKA_PUBLISHERS):
            self._publishers.append(
                KafkaPublisher(100 + number, TOPIC, PARTITIONS, self._broker.kafka_address, self._note)
            )
        self._publishing_began = time.monotonic()
        for publisher in self._publishers:
            publisher.start()

    def _faster_than_the_disk(self, seconds: float) -> None:
        # It takes what it gets and never acknowledges anything; when it goes all that comes back to its place.
        with RawConnection(Endpoint("127.0.0.1", self._broker.port)) as stuck:
            stuck.handshake()
            stuck.open_channel()
            stuck.rpc(commands.Basic.Consume(0, QUEUES[0], "stuck"), commands.Basic.ConsumeOk)
            self._pass(seconds)
            self._expect_progress()

    def _little_room(self, seconds: float) -> None:
        self._disk.become(free_bytes=1 << 20)
        self._expect_alarm("disk")
        self._expect_blocked()
        self._pass(seconds)
        self._disk.heal()
        self._expect_no_alarm("disk")
        self._expect_progress()

    def _no_room(self, seconds: float) -> None:
        before = self._disk.count("refused_for_room")
        self._disk.fill()
        eventually(lambda: self._disk.count("refused_for_room") > before, "the broker writes", deadline_s=PATIENCE_S)
        self._expect_alarm("disk")
        self._expect_blocked()
        # What had become durable is still told of. Then nothing is, as nothing can be written.
        confirmed = self._settled()
        self._pass(seconds / 2)
        self._consume_aside()
        self._pass(seconds / 2)
        if self._confirmed() != confirmed:
            self._fail(f"{self._confirmed() - confirmed} messages were confirmed while nothing could be written")
        if "disk" not in self._alarms():
            self._fail("the management API does not tell of the alarm while the disk is full")

    def _room_again(self, seconds: float) -> None:
        self._disk.heal()
        began = time.monotonic()
        self._expect_no_alarm("disk")
        self._expect_progress()
        self._recoveries_s.append(time.monotonic() - began)
        self._pass(seconds)

    def _slow_syncs(self, seconds: float) -> None:
        self._disk.become(sync_delay_us=SLOW_SYNC_US)
        self._pass(seconds)
        self._expect_progress()
        self._disk.heal()

    def _logs_cannot_be_written(self, seconds: float) -> None:
        """Pages that cannot leave memory stay in it; the journal goes on until there is no memory."""
        self._disk.become(broken_writes=LOGS)
        before = self._disk.count("broken_writes")
        eventually(lambda: self._disk.count("broken_writes") > before, "pages are written", deadline_s=PATIENCE_S)
        self._pass(seconds)
        self._disk.heal()
        self._expect_progress()

    def _killed_without_room(self, seconds: float) -> None:
        self._disk.fill()
        self._expect_alarm("disk")
        self._pass(seconds)
        self._forgive(True)
        self._kill()
        try:
            self._broker.start()
            self._disk.heal()
        except AssertionError as error:
            # It may refuse to start without room. Then it says why, and starts as soon as there is some.
            if NO_ROOM not in str(error):
                raise
            self._disk.heal()
            self._broker.start()
        self._report.done["starts on a full disk"] += 1
        self._expect_no_alarm("disk")
        self._expect_progress()
        self._forgive(False)

    def _the_journal_cannot_be_synced(self, seconds: float) -> None:
        self._forgive(True)
        self._disk.become(broken_syncs=JOURNAL)
        self._expect_alarm("storage")
        confirmed = self._settled()
        self._disk.heal()
        self._pass(seconds)
        if self._confirmed() != confirmed:
            self._fail(f"{self._confirmed() - confirmed} messages were confirmed after a sync had failed")
        self._kill()
        began = time.monotonic()
        self._broker.start()
        self._expect_progress()
        self._recoveries_s.append(time.monotonic() - began)
        self._forgive(False)

    def _wind_down(self) -> None:
        self._note("the end of the publishers")
        self._disk.become(write_ns_per_byte=0)
        self._published_s = time.monotonic() - self._publishing_began
        for publisher in self._publishers:
            publisher.enough.set()
        for publisher in self._publishers:
            publisher.join(2 * PATIENCE_S)
            if publisher.is_alive():
                self._fail(f"{publisher.name} was never told of all that it had sent")
                publisher.over.set()
        self._look()
        self._expect_no_alarm("memory")

    def _check_what_is_there(self) -> None:
        self._kill()
        self._broker.start()
        self._note("the drain")
        began = time.monotonic()
        queues = Tally([one for one in self._publishers if isinstance(one, AmqpPublisher)])
        for queue in QUEUES:
            drain_queue(self._broker.port, queue, queues)
        topics = Tally([one for one in self._publishers if isinstance(one, KafkaPublisher)])
        drain_topic(self._broker.kafka_address, TOPIC, PARTITIONS, topics)
        for tally in (queues, topics):
            tally.finish()
            self._report.done["messages drained"] += tally.received
            for wrong in tally.wrong:
                self._fail(wrong)
        seconds = time.monotonic() - began
        self._report.figures["drain"] = f"{(queues.received + topics.received) / seconds:,.0f} messages a second"
        self._look()

    # --- What has to be so ------------------------------------------------------------------------------------------

    def _management(self, path: str) -> Any:
        host, _, port = self._broker.listeners["admin"].rpartition(":")
        return Management((host, int(port))).call("GET", path)

    def _alarms(self) -> list[str]:
        answer = self._management("/api/health/checks/alarms")
        return [alarm["resource"] for alarm in answer.json.get("alarms", [])]

    def _expect_alarm(self, reason: str) -> None:
        eventually(lambda: reason in self._alarms(), f"the alarm {reason}", deadline_s=PATIENCE_S)
        [node] = self._management("/api/nodes").json
        if not node[{"disk": "disk_free_alarm", "storage": "storage_alarm"}[reason]]:
            self._fail(f"/api/nodes does not tell of the alarm {reason}")
        self._report.done["alarms told by the management API"] += 1

    def _expect_no_alarm(self, reason: str) -> None:
        eventually(lambda: reason not in self._alarms(), f"the end of the alarm {reason}", deadline_s=PATIENCE_S)

    def _expect_blocked(self) -> None:
        """Whoever was blocked already for another reason is not told of one more, as with RabbitMQ."""
        for publisher in self._publishers:
            if isinstance(publisher, AmqpPublisher):
                eventually(
                    lambda publisher=publisher: publisher.is_blocked,
                    f"{publisher.name} is told that its connection is blocked", deadline_s=PATIENCE_S,
                )  # fmt: skip

    def _confirmed(self) -> int:
        return sum(publisher.confirmed for publisher in self._publishers)

    def _expect_progress(self) -> None:
        """Every publisher is confirmed something new."""
        before = {publisher: publisher.confirmed for publisher in self._publishers}
        for publisher in self._publishers:
            eventually(
                lambda publisher=publisher: publisher.confirmed > before[publisher],
                f"a confirm for {publisher.name}, of {publisher.sent} sent and {before[publisher]} confirmed; "
                f"alarms {self._alarms()}", deadline_s=PATIENCE_S,
            )  # fmt: skip

    def _settled(self) -> int:
        """How many are confirmed when for a while none has been."""
        confirmed = self._confirmed()
        quiet_since = time.monotonic()
        give_up_at = quiet_since + PATIENCE_S
        while time.monotonic() - quiet_since < 0.5 and time.monotonic() < give_up_at:
            self._over.wait(0.05)
            if self._confirmed() != confirmed:
                confirmed, quiet_since = self._confirmed(), time.monotonic()
        return confirmed

    def _consume_aside(self) -> None:
        """A consumer goes on while publishers are held back."""
        with RawConnection(Endpoint("127.0.0.1", self._broker.port)) as connection:
            connection.handshake()
            connection.open_channel()
            got = connection.rpc(commands.Basic.Get(0, ASIDE, True), commands.Basic.GetOk)
            assert got.routing_key == ASIDE
        self._report.done["messages consumed while the disk was full"] += 1

    def _look(self) -> None:
        """What is the memory now, and is it more than it may be?"""
        peak = process.peak_memory_bytes(self._broker.pid)
        self._memory_peak = max(self._memory_peak, peak)
        self._note(
            f"{self._confirmed():,} confirmed of {sum(one.sent for one in self._publishers):,}, "
            f"{peak >> 20} MiB, alarms: {', '.join(self._alarms()) or 'none'}"
        )
        # What had been in memory may be replayed from a journal file or two before it is paged out again.
        replayed = 2 * limits.JOURNAL_FILE_BYTES if self._report.done["kills"] else 0
        if peak > self._memory_bound + replayed:
            self._fail(f"memory was {peak >> 20} MiB, which may be {(self._memory_bound + replayed) >> 20} MiB")

    def _sample(self) -> None:
        """A row of the history every few seconds, so that a failure shows how it came about."""
        while not self._over.wait(max(1.0, self._assignment.seconds / 30)):
            confirmed, resident = self._confirmed(), process.resident_bytes(self._broker.pid)
            self._history.append(f"{self._at()}   {confirmed:,} confirmed, {resident >> 20} MiB resident")

    def _forgive(self, is_forgiving: bool) -> None:
        for publisher in self._publishers:
            (publisher.forgives.set if is_forgiving else publisher.forgives.clear)()

    def _kill(self) -> None:
        self._look()
        self._broker.kill()
        self._report.done["kills"] += 1

    def _pass(self, seconds: float) -> None:
        self._over.wait(seconds)

    def _at(self) -> str:
        return f"{time.monotonic() - self._assignment.began:6.1f} s"

    def _note(self, what: str) -> None:
        self._history.append(f"{self._at()} {what}")
        self._assignment.say(self._history[-1])

    def _fail(self, what: str) -> None:
        self._note(f"WRONG: {what}")
        self._report.failures.append(
            Failure(
                what,
                [*self._history, *self._broker.log.splitlines()[-40:]],
                f"python -m faults overload --seed {self._assignment.seed} --minutes {self._assignment.seconds / 60:g}",
            )
        )
