"""`python -m bench`: run the workloads against the peers in turn, and print and keep the tables.

There are two parts, AMQP's and Kafka's. For each workload every peer is warmed up and measured A B A B; while one is
measured the others are idle. What a figure means is in `bench/README.md`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from bench import load, machine, report, syncs
from bench.build import BuildError
from bench.kafka import measure as kafka_measure
from bench.kafka.workloads import WORKLOADS as KAFKA_WORKLOADS
from bench.kafka.workloads import KafkaWorkload
from bench.peers import DEFAULT_PEERS, PEERS, PeerError, RunningPeer, kafka
from bench.workloads import WORKLOADS, Workload

RESULTS: Final = Path(__file__).with_name("results")
# What a workload costs beside its runs, for the announcement: starting and stopping RabbitMQ, declaring queues.
_START_SECONDS: Final = {"rabbitmq": 9.0, "millpond": 1.5}
_RUN_OVERHEAD_SECONDS: Final = 0.6
_FILE_WIDTH: Final = 160  # columns, where there is no terminal to ask

_SECONDS: Final = 4.0
_KAFKA_SECONDS: Final = 1.3
_TITLE: Final = "# Side by side"

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to run, and for how long."""

    workloads: Sequence[Workload]
    peers: Sequence[str]
    rounds: int
    seconds: float
    warm_up_seconds: float
    strace: bool

    @property
    def expected_seconds(self) -> float:
        runs = self.rounds * (self.seconds + _RUN_OVERHEAD_SECONDS) + self.warm_up_seconds + _RUN_OVERHEAD_SECONDS
        if self.strace:
            runs += self.seconds + 2 * _RUN_OVERHEAD_SECONDS
        return len(self.workloads) * sum(_START_SECONDS.get(peer, 5.0) + runs for peer in self.peers)


class _Bench:
    def __init__(self, plan: Plan, console: Console, folder: Path) -> None:
        self._plan = plan
        self._console = console
        self._folder = folder
        self._program = load.build(folder)
        self.versions: dict[str, str] = {}
        self.results: dict[tuple[str, str], list[load.Run]] = {}
        self.sync_counts: dict[tuple[str, str], syncs.SyncCount] = {}

    def run(self) -> None:
        for workload in self._plan.workloads:
            with self._peers(workload) as peers:
                self._measure(workload, peers)

    @contextmanager
    def _peers(self, workload: Workload) -> Iterator[list[RunningPeer]]:
        """Every peer of the plan, started afresh, so that no workload pays for what another left in memory."""
        with ExitStack() as stack:
            peers = []
            for name in self._plan.peers:
                folder = self._folder / f"{workload.name}-{name}"
                folder.mkdir()
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                peers.append(stack.enter_context(PEERS[name](folder)))
            self.versions = {peer.name: peer.version for peer in peers}
            yield peers

    def _measure(self, workload: Workload, peers: Sequence[RunningPeer]) -> None:
        for peer in peers:
            load.run(self._program, peer, workload.options, self._plan.warm_up_seconds)
        for number in range(self._plan.rounds):
            for peer in peers:
                run = load.run(self._program, peer, workload.options, self._plan.seconds)
                self.results.setdefault((workload.name, peer.name), []).append(run)
                self._console.print(
                    f"  {workload.name} {number + 1}/{self._plan.rounds} {peer.name}: {run.rate:,.0f}/s, "
                    f"{run.broker_cpu_us:.2f} µs CPU per message, broker {run.broker_busy:.0%} and generator "
                    f"{run.load_busy:.0%} of a core",
                    highlight=False,
                )
        if self._plan.strace and workload.is_confirmed:
            for peer in peers:
                self.sync_counts[workload.name, peer.name] = syncs.count(
                    self._program, peer, workload, self._plan.seconds, self._folder
                )


def _print_table(console: Console, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=index < 2)
    previous = ""
    for row in cells:
        if row[0] != previous and previous:
            table.add_section()
        table.add_row(*(("" if row[0] == previous else row[0]), *row[1:]))
        previous = row[0]
    console.print(table)


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """What one part of a run has to say."""

    name: str
    title: str
    markdown: str
    raw: dict[str, Any]
    is_whole: bool
    """Whether it has every workload and every peer at full length: then its table is kept with the source."""


def _section(title: str, head: str, table: str, titles: Mapping[str, str], lists: Mapping[str, Sequence[str]]) -> str:
    parts = [f"## {title}", head, table, "\n".join(f"- {name}: {text}" for name, text in titles.items())]
    for heading, lines in lists.items():
        if lines:
            parts += [f"### {heading}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts)


def _head(when: dt.datetime, host: machine.Machine, versions: Mapping[str, str], plan_text: str) -> str:
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{when:%Y-%m-%d}. {host}. {named}. {plan_text} What a column means: [bench/README.md](../README.md)."


def _run_amqp(
    plan: Plan, console: Console, folder: Path, host: machine.Machine, when: dt.datetime, is_whole: bool
) -> _Part:
    bench = _Bench(plan, console, folder)
    bench.run()
    cells = report.rows(plan.workloads, plan.peers, bench.results)
    expectations = report.expectations(plan.workloads, plan.peers, bench.results)
    disturbances = report.disturbances(bench.results)
    _print_table(console, "AMQP side by side", report.HEADINGS, cells)
    _print_lines(console, expectations, disturbances)
    plan_text = f"{plan.rounds} rounds of {plan.seconds:g} s, medians; generator and brokers share the machine."
    markdown = _section(
        "AMQP",
        _head(when, host, bench.versions, plan_text),
        report.markdown_table(report.HEADINGS, cells),
        {workload.name: workload.title for workload in plan.workloads},
        {"Expected": expectations, "Disturbed": disturbances},
    )
    if bench.sync_counts:
        cells = report.sync_rows(bench.sync_counts)
        _print_table(console, "Calls that wait for the disk", report.SYNC_HEADINGS, cells)
        markdown += "\n\n### Calls that wait for the disk\n\n" + report.markdown_table(report.SYNC_HEADINGS, cells)
    return _Part("amqp", "AMQP", markdown, _raw(bench, plan), is_whole)


def _run_kafka(
    plan: kafka_measure.Plan, console: Console, folder: Path, host: machine.Machine, when: dt.datetime, is_whole: bool
) -> _Part:
    bench = kafka_measure.KafkaBench(plan, console, folder)
    bench.run()
    cells = kafka_measure.rows(plan, bench.results)
    disturbances = report.disturbances(bench.results)
    _print_table(console, "Kafka side by side", kafka_measure.HEADINGS, cells)
    _print_lines(console, [kafka_measure.DURABILITY], disturbances)
    plan_text = f"{plan.rounds} rounds of {plan.seconds:g} s, medians; clients and brokers share the machine."
    markdown = _section(
        "Kafka",
        f"{_head(when, host, bench.versions, plan_text)}\n\n{kafka_measure.DURABILITY}",
        report.markdown_table(kafka_measure.HEADINGS, cells),
        {workload.name: workload.title for workload in plan.workloads},
        {"Disturbed": disturbances},
    )
    raw = {"versions": bench.versions, "plan": dataclasses.asdict(plan), "runs": kafka_measure.raw(bench.results)}
    return _Part("kafka", "Kafka", markdown, raw, is_whole)


def _print_lines(console: Console, lines: Sequence[str], alarming: Sequence[str]) -> None:
    for line in lines:
        console.print(line, highlight=False)
    for line in alarming:
        console.print(line, style="red", highlight=False)


def _keep(console: Console, parts: Sequence[_Part], host: machine.Machine, when: dt.datetime) -> None:
    RESULTS.mkdir(exist_ok=True)
    stem = f"{when:%Y%m%dT%H%M%SZ}"
    raw: dict[str, Any] = {"when": when.isoformat(), "machine": dataclasses.asdict(host)}
    raw |= {part.name: part.raw for part in parts}
    (RESULTS / f"{stem}.json").write_text(json.dumps(raw, indent=1))
    document = _TITLE
    for part in parts:
        document = report.with_part(document, part.name, part.markdown)
    (RESULTS / f"{stem}.md").write_text(document)
    console.print(f"Kept in bench/results/{stem}.json and .md")
    latest = RESULTS / "latest.md"
    document = latest.read_text() if latest.exists() else _TITLE
    for part in parts:
        if part.is_whole:
            document = report.with_part(document, part.name, part.markdown)
            console.print(f"The table of {part.title} in bench/results/latest.md is this one.")
    latest.write_text(document)


def _raw(bench: _Bench, plan: Plan) -> dict[str, Any]:
    return {
        "versions": bench.versions,
        "plan": dataclasses.asdict(plan),
        "runs": [
            {"workload": workload, "peer": peer, **dataclasses.asdict(run)}
            for (workload, peer), runs in bench.results.items()
            for run in runs
        ],
        "syncs": [
            {"workload": workload, "peer": peer, **dataclasses.asdict(count)}
            for (workload, peer), count in bench.sync_counts.items()
        ],
    }


def _chosen(names: Sequence[str], known: Mapping[str, _T], what: str) -> list[_T]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"no {what} is called {name}; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _kafka_peers(console: Console, named: Sequence[str]) -> list[str]:
    """The brokers of the Kafka part: Apache Kafka is left out, with a line that says so, where it cannot be run."""
    peers = [peer for peer in kafka_measure.PEERS if peer in named]
    if kafka_measure.THEIRS in peers:
        try:
            kafka.jars()
        except PeerError as error:
            console.print(f"Apache Kafka is not measured: {error}.", style="red", highlight=False)
            peers.remove(kafka_measure.THEIRS)
    return peers


def main(
    workload: Annotated[list[str] | None, typer.Argument(help="Workloads to run; all if none is named.")] = None,
    amqp: Annotated[bool, typer.Option("--amqp", help="AMQP's workloads alone.")] = False,
    only_kafka: Annotated[bool, typer.Option("--kafka", help="Kafka's workloads alone.")] = False,
    peer: Annotated[list[str] | None, typer.Option(help="A broker to measure; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each workload against each broker.")] = 3,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, help=f"How long each run publishes: by default {_SECONDS:g}, Kafka's {_KAFKA_SECONDS:g}."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option(help="One short round: to see that it works, not to quote.")] = False,
    strace: Annotated[bool, typer.Option(help="Also count fdatasync calls, in a run of their own.")] = False,
    data: Annotated[Path | None, typer.Option(help="Where the brokers keep their data: a folder on a disk.")] = None,
) -> None:
    """Measure brokers side by side."""
    # SIGTERM unwinds like Ctrl-C, so that no broker is left running.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    known: dict[str, Workload | KafkaWorkload] = {}
    if amqp or not only_kafka:
        known |= {each.name: each for each in WORKLOADS}
    if only_kafka or not amqp:
        known |= {each.name: each for each in KAFKA_WORKLOADS}
    workloads = _chosen(workload or list(known), known, "workload")
    default_peers = [*DEFAULT_PEERS, kafka_measure.THEIRS]
    named = _chosen(peer or default_peers, {name: name for name in (*PEERS, kafka_measure.THEIRS)}, "broker")
    amqp_workloads = [each for each in workloads if isinstance(each, Workload)]
    kafka_workloads = [each for each in workloads if isinstance(each, KafkaWorkload)]
    plan = Plan(
        amqp_workloads, [each for each in named if each in PEERS], rounds, seconds or _SECONDS, 1.0, strace=strace
    )
    kafka_peers = _kafka_peers(console, named) if kafka_workloads else []
    kafka_plan = kafka_measure.Plan(kafka_workloads, kafka_peers, rounds, seconds or _KAFKA_SECONDS)
    if quick:
        plan = dataclasses.replace(plan, rounds=1, seconds=1.5, warm_up_seconds=0.5)
        kafka_plan = dataclasses.replace(kafka_plan, rounds=1, seconds=0.5)
    for part in (plan, kafka_plan):
        if part.workloads and part.peers:
            minutes, rest = divmod(round(part.expected_seconds), 60)
            text = f"{len(part.workloads)} workloads against {', '.join(part.peers)}: about {minutes} min {rest} s."
            console.print(text, highlight=False)
    when = dt.datetime.now(dt.UTC)
    parts: list[_Part] = []
    try:
        if strace:
            syncs.ensure_available()
        with tempfile.TemporaryDirectory(prefix="bench-", dir=data) as folder:
            host = machine.describe(Path(folder))
            console.print(str(host), highlight=False)
            if host.file_system == "tmpfs":
                console.print("The data folder is in memory: confirmed figures mean nothing. Give --data.", style="red")
            if plan.workloads and plan.peers:
                is_whole = not quick and len(amqp_workloads) == len(WORKLOADS) and plan.peers == list(DEFAULT_PEERS)
                parts.append(_run_amqp(plan, console, Path(folder), host, when, is_whole))
            if kafka_plan.workloads and kafka_plan.peers:
                is_whole = not quick and len(kafka_workloads) == len(KAFKA_WORKLOADS)
                is_whole &= kafka_peers == list(kafka_measure.PEERS)
                parts.append(_run_kafka(kafka_plan, console, Path(folder), host, when, is_whole))
    except (BuildError, PeerError, load.LoadError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    if parts:
        _keep(console, parts, host, when)


if __name__ == "__main__":
    typer.run(main)
