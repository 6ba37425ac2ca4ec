"""Runs Kafka workloads: client processes against a broker that is measured around what they do.

Both brokers are started once and filled with the history that consumers read, which also warms them up: a virtual
machine that has just been started compiles more than it works. For each workload they are then measured in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from rich.console import Console

from bench import process
from bench.kafka.workloads import KAFKA_PACED_RATE, WORKLOADS, KafkaWorkload
from bench.load import LoadError
from bench.peers import kafka, millpond
from bench.peers.server import RunningPeer

OURS: Final = "millpond"
THEIRS: Final = "kafka"
FLUSHED: Final = "kafka, flush.messages=1"
"""Apache Kafka again, with a topic whose every append is forced to the disk before it is acknowledged."""
PEERS: Final = (THEIRS, OURS)
DURABILITY: Final = (
    "Producers use acks=all. Millpond answers when a record is on the disk. Apache Kafka answers without waiting for "
    "the disk; on a topic with flush.messages=1 it waits, too."
)

_HISTORY_RECORDS: Final = {1: 1_000_000, 4: 500_000}
"""What there is to read, by the topic's number of partitions."""
_WARM_UP_SECONDS: Final = 0.5
# A virtual machine compiles what has run some ten thousand times: requests, that is, not records.
_FIRST_WARM_UP_SECONDS: Final = 4.0
_OVERTIME_SECONDS_MAX: Final = 180.0
_LIMIT_BUSY: Final = 0.9
# For the announcement: starting both brokers and filling them, starting clients and making a topic, reading history.
_START_SECONDS: Final = 15.0
_RUN_OVERHEAD_SECONDS: Final = 0.8
_REPLAY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one workload against one broker."""

    records: int
    duration_s: float
    rate: float
    broker_cpu_us: float
    """Per record that was produced or delivered."""
    broker_busy: float
    peak_memory_bytes: int
    load_busy: float
    """CPU seconds per second of all client processes together."""
    is_load_bound: bool
    """Whether a client's own thread, or the machine, had no more to give while the broker had."""
    others_busy: float
    p50_us: float
    p99_us: float


Results = Mapping[tuple[str, str], Sequence[Run]]
"""Runs by workload name and row: `OURS`, `THEIRS` or `FLUSHED`."""


@dataclass(frozen=True, slots=True)
class Plan:
    workloads: Sequence[KafkaWorkload]
    peers: Sequence[str]
    rounds: int
    seconds: float

    def rows(self, workload: KafkaWorkload) -> list[str]:
        """Whose figures the table has of a workload, in the order in which they are taken."""
        rows = [THEIRS] if THEIRS in self.peers else []
        if rows and workload.flushed_too:
            rows.append(FLUSHED)
        return rows + ([OURS] if OURS in self.peers else [])

    @property
    def expected_seconds(self) -> float:
        total = _START_SECONDS
        if THEIRS in self.peers:
            total += sum(_FIRST_WARM_UP_SECONDS for workload in self.workloads if workload.is_by_request)
        for workload in self.workloads:
            work = _REPLAY_SECONDS if workload.reads_history else self.seconds * workload.seconds_factor
            warm_up = 0.0 if workload.reads_history else _WARM_UP_SECONDS + _RUN_OVERHEAD_SECONDS
            total += len(self.rows(workload)) * (self.rounds * (work + _RUN_OVERHEAD_SECONDS) + warm_up)
        return total


class KafkaBench:
    def __init__(self, plan: Plan, console: Console, folder: Path) -> None:
        self._plan = plan
        self._console = console
        self._folder = folder
        self._number = 0
        self.versions: dict[str, str] = {}
        self.results: dict[tuple[str, str], list[Run]] = {}

    def run(self) -> None:
        with self._peers() as peers:
            self.versions = {name: peer.version for name, peer in peers.items()}
            for peer in peers.values():
                self._fill(peer)
            self._warm_up(peers)
            for workload in self._plan.workloads:
                self._measure(workload, peers)

    @contextmanager
    def _peers(self) -> Iterator[dict[str, RunningPeer]]:
        starts = {THEIRS: kafka.start, OURS: millpond.start_kafka}
        with ExitStack() as stack:
            peers = {}
            for name in self._plan.peers:
                folder = self._folder / f"kafka-{name}"
                folder.mkdir()
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                peers[name] = stack.enter_context(starts[name](folder))
            yield peers

    def _fill(self, peer: RunningPeer) -> None:
        for partitions in sorted({each.partitions for each in self._plan.workloads if each.reads_history}):
            topic = f"history-{partitions}"
            _make_topic(peer, topic, partitions, {})
            records = _HISTORY_RECORDS[partitions]
            _play(peer, [_task(peer, "flood", topic, WORKLOADS[0], partitions=partitions, records=records)])

    def _warm_up(self, peers: Mapping[str, RunningPeer]) -> None:
        """Let Apache Kafka see many requests before the first is measured, where the plan has such workloads."""
        for workload in self._plan.workloads:
            if workload.is_by_request and THEIRS in peers:
                self._run(workload, THEIRS, peers, _FIRST_WARM_UP_SECONDS)

    def _measure(self, workload: KafkaWorkload, peers: Mapping[str, RunningPeer]) -> None:
        rows = self._plan.rows(workload)
        if not workload.reads_history:
            for row in rows:
                self._run(workload, row, peers, _WARM_UP_SECONDS)
        for number in range(self._plan.rounds):
            for row in rows:
                run = self._run(workload, row, peers, self._plan.seconds * workload.seconds_factor)
                self.results.setdefault((workload.name, row), []).append(run)
                latency = f", {run.p50_us / 1000:.2f} / {run.p99_us / 1000:.2f} ms" if workload.has_latency else ""
                self._console.print(
                    f"  {workload.name} {number + 1}/{self._plan.rounds} {row}: {run.rate:,.0f}/s, "
                    f"{run.broker_cpu_us:.2f} µs CPU per record, broker {run.broker_busy:.0%} and clients "
                    f"{run.load_busy:.0%} of a core{latency}",
                    highlight=False,
                )

    def _run(self, workload: KafkaWorkload, row: str, peers: Mapping[str, RunningPeer], seconds: float) -> Run:
        peer = peers[OURS if row == OURS else THEIRS]
        self._number += 1
        name, partitions = f"run-{self._number}", workload.partitions
        if workload.reads_history:
            topic = f"history-{partitions}"
            # The topic has one record more in each partition: those that made the producer's connections.
            records = _HISTORY_RECORDS[partitions] + partitions
        else:
            topic = name
            records = round(KAFKA_PACED_RATE * seconds) if workload.is_paced else 0
            _make_topic(peer, topic, partitions, {"flush.messages": "1"} if row == FLUSHED else {})
        tasks = []
        for number, role in enumerate(workload.roles):
            # Two members share what there is.
            share, group = (
                (records // 2, f"{name}-{number // 2}") if role == "member" else (records, f"{name}-{number}")
            )
            tasks.append(_task(peer, role, topic, workload, seconds=seconds, records=share, group=group))
        return _play(peer, tasks)


def _make_topic(peer: RunningPeer, topic: str, partitions: int, settings: dict[str, str]) -> None:
    # Without what the library says by the way.
    admin = AdminClient({"bootstrap.servers": f"{peer.host}:{peer.port}", "log_level": 4})
    made = admin.create_topics([NewTopic(topic, partitions, 1, config=settings)], request_timeout=30)
    made[topic].result()


def _task(
    peer: RunningPeer,
    role: str,
    topic: str,
    workload: KafkaWorkload,
    *,
    partitions: int = 0,
    seconds: float = 0.0,
    records: int = 0,
    group: str = "",
) -> dict[str, Any]:
    """The fields of a `bench.kafka.client.Task`."""
    return {
        "role": role,
        "address": f"{peer.host}:{peer.port}",
        "topic": topic,
        "partitions": partitions or workload.partitions,
        "record_bytes": workload.record_bytes,
        "seconds": seconds,
        "records": records,
        "group": group,
        "settings": dict(workload.settings),
    }


def _play(peer: RunningPeer, tasks: Sequence[dict[str, Any]]) -> Run:
    """Let client processes work at the same time, from when all are ready until the last is done."""
    with ExitStack() as stack:
        clients = [stack.enter_context(_client(peer, task)) for task in tasks]
        for client in clients:
            if _line(client, peer) != "ready":
                raise LoadError(f"{peer.name}: a client did not start")
        process.reset_peak_memory(peer.pid)
        cpu_before_s, machine_before_s = process.own_cpu_seconds(peer.pid), process.machine_cpu_seconds()
        for client in clients:
            _tell(client)
        answers = [json.loads(_line(client, peer)) for client in clients]
        cpu_s = process.own_cpu_seconds(peer.pid) - cpu_before_s
        machine_s = process.machine_cpu_seconds() - machine_before_s
        peak_memory_bytes = process.peak_memory_bytes(peer.pid)
        for client in clients:
            _tell(client)
        for client in clients:
            if client.wait() != 0:
                raise LoadError(f"{peer.name}: {_words(client.stderr)}")
    return _result(answers, cpu_s, machine_s, peak_memory_bytes)


@contextmanager
def _client(peer: RunningPeer, task: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.kafka.client", json.dumps(task)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as client:
        overtime = threading.Timer(_OVERTIME_SECONDS_MAX, client.kill)
        overtime.start()
        try:
            yield client
        finally:
            overtime.cancel()
            client.kill()


def _tell(client: subprocess.Popen[str]) -> None:
    assert client.stdin is not None
    # A client that has ended has said why.
    with contextlib.suppress(BrokenPipeError):
        client.stdin.write("\n")


def _words(errors: IO[str] | None) -> str:
    assert errors is not None
    return errors.read().strip()[-2000:] or "a client was ended"


def _line(client: subprocess.Popen[str], peer: RunningPeer) -> str:
    assert client.stdout is not None
    line = client.stdout.readline().strip()
    if not line:
        raise LoadError(f"{peer.name}: {_words(client.stderr)}")
    return line


def _result(answers: Sequence[Mapping[str, Any]], cpu_s: float, machine_s: float, peak_memory_bytes: int) -> Run:
    duration_s = max(each["end_s"] for each in answers) - min(each["begin_s"] for each in answers)
    # A record that is produced and delivered in the same run is one record, not two.
    is_end_to_end = any(each["latencies_us"] for each in answers) and len(answers) > 1
    records = answers[0]["records"] if is_end_to_end else sum(each["records"] for each in answers)
    latencies = sorted(latency for each in answers for latency in each["latencies_us"])
    load_cpu_s = sum(each["cpu_s"] for each in answers)
    own_thread = max(each["thread_cpu_s"] / (each["end_s"] - each["begin_s"]) for each in answers)
    broker_busy, load_busy = cpu_s / duration_s, load_cpu_s / duration_s
    cores = len(os.sched_getaffinity(0))
    is_machine_full = broker_busy + load_busy > _LIMIT_BUSY * cores
    return Run(
        records=records,
        duration_s=duration_s,
        rate=records / duration_s,
        broker_cpu_us=cpu_s * 1e6 / records,
        broker_busy=broker_busy,
        peak_memory_bytes=peak_memory_bytes,
        load_busy=load_busy,
        is_load_bound=broker_busy < _LIMIT_BUSY and (own_thread > _LIMIT_BUSY or is_machine_full),
        others_busy=max(0.0, machine_s - cpu_s - load_cpu_s) / duration_s,
        p50_us=_percentile(latencies, 0.50),
        p99_us=_percentile(latencies, 0.99),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


# --- The table --------------------------------------------------------------------------------------------------------

HEADINGS: Final = (
    "workload",
    "broker",
    "records/s",
    "spread",
    "CPU µs each",
    "latency ms p50 / p99",
    "RSS MiB",
    "Millpond's rate",
    "Millpond's CPU",
)


def rows(plan: Plan, results: Results) -> list[tuple[str, ...]]:
    """The table's cells. A broker's row ends with how Millpond compares with it."""
    table: list[tuple[str, ...]] = []
    for workload in plan.workloads:
        ours = results.get((workload.name, OURS))
        for row in plan.rows(workload):
            runs = results[workload.name, row]
            bound = ">= " if sum(run.is_load_bound for run in runs) * 2 > len(runs) and not workload.is_paced else ""
            latency = f"{_median(runs, 'p50_us') / 1000:.2f} / {_median(runs, 'p99_us') / 1000:.2f}"
            rate_ratio = cpu_ratio = ""
            if ours is not None and row != OURS:
                rate_ratio = f"{_median(ours, 'rate') / _median(runs, 'rate'):.1f}x" if not workload.is_paced else ""
                cpu_ratio = f"1/{_median(runs, 'broker_cpu_us') / _median(ours, 'broker_cpu_us'):.1f}"
            rates = [run.rate for run in runs]
            table.append((
                workload.name,
                row,
                f"{bound}{_median(runs, 'rate'):,.0f}",
                f"{(max(rates) - min(rates)) / statistics.median(rates):.0%}",
                f"{_median(runs, 'broker_cpu_us'):.2f}",
                latency if workload.has_latency else "",
                f"{_median(runs, 'peak_memory_bytes') / 2**20:.0f}",
                rate_ratio,
                cpu_ratio,
            ))  # fmt: skip
    return table


def _median(runs: Sequence[Run], what: str) -> float:
    return float(statistics.median(getattr(run, what) for run in runs))


def raw(results: Results) -> list[dict[str, Any]]:
    return [
        {"workload": workload, "peer": row, **asdict(run)} for (workload, row), runs in results.items() for run in runs
    ]
