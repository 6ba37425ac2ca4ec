"""`python -m bench`: run the workloads against the peers in turn, and print and keep the table.

For each workload every peer is started afresh, warmed up, and measured A B A B; while one is measured the others are
idle. What a figure means is in `bench/README.md`.
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
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from bench import load, machine, report, syncs
from bench.build import BuildError
from bench.peers import DEFAULT_PEERS, PEERS, PeerError, RunningPeer
from bench.workloads import WORKLOADS, Workload

RESULTS: Final = Path(__file__).with_name("results")
# What a workload costs beside its runs, for the announcement: starting and stopping RabbitMQ, declaring queues.
_START_SECONDS: Final = {"rabbitmq": 9.0, "millpond": 1.5}
_RUN_OVERHEAD_SECONDS: Final = 0.6
_FILE_WIDTH: Final = 160  # columns, where there is no terminal to ask

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


def _markdown(bench: _Bench, plan: Plan, host: machine.Machine, when: dt.datetime) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    plan_text = f"{plan.rounds} rounds of {plan.seconds:g} s, medians; generator and brokers share the machine."
    parts = [
        "# Side by side",
        f"{when:%Y-%m-%d}. {host}. {versions}. {plan_text} What a column means: [bench/README.md](../README.md).",
        report.markdown_table(report.HEADINGS, report.rows(plan.workloads, plan.peers, bench.results)),
        "\n".join(f"- {workload.name}: {workload.title}" for workload in plan.workloads),
    ]
    if lines := report.expectations(plan.workloads, plan.peers, bench.results):
        parts += ["## Expected", "\n".join(f"- {line}" for line in lines)]
    if lines := report.disturbances(bench.results):
        parts += ["## Disturbed", "\n".join(f"- {line}" for line in lines)]
    if bench.sync_counts:
        cells = report.sync_rows(bench.sync_counts)
        parts += ["## Calls that wait for the disk", report.markdown_table(report.SYNC_HEADINGS, cells)]
    return "\n\n".join(parts) + "\n"


def _raw(bench: _Bench, plan: Plan, host: machine.Machine, when: dt.datetime) -> str:
    return json.dumps(
        {
            "when": when.isoformat(),
            "machine": dataclasses.asdict(host),
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
        },
        indent=1,
    )


def _chosen(names: Sequence[str], known: Mapping[str, _T], what: str) -> list[_T]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"no {what} is called {name}; there are {', '.join(known)}")
    return [known[name] for name in names or known]


def main(
    workload: Annotated[list[str] | None, typer.Argument(help="Workloads to run; all if none is named.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="A broker to measure; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each workload against each broker.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each run publishes.")] = 4.0,
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
    workloads = _chosen(workload or [], {each.name: each for each in WORKLOADS}, "workload")
    peers = _chosen(peer or DEFAULT_PEERS, {name: name for name in PEERS}, "broker")
    plan = Plan(workloads, peers, rounds, seconds, warm_up_seconds=1.0, strace=strace)
    if quick:
        plan = dataclasses.replace(plan, rounds=1, seconds=1.5, warm_up_seconds=0.5)
    minutes, rest = divmod(round(plan.expected_seconds), 60)
    console.print(f"{len(workloads)} workloads against {', '.join(peers)}: about {minutes} min {rest} s.")
    when = dt.datetime.now(dt.UTC)
    try:
        if strace:
            syncs.ensure_available()
        with tempfile.TemporaryDirectory(prefix="bench-", dir=data) as folder:
            host = machine.describe(Path(folder))
            console.print(str(host), highlight=False)
            if host.file_system == "tmpfs":
                console.print("The data folder is in memory: confirmed figures mean nothing. Give --data.", style="red")
            bench = _Bench(plan, console, Path(folder))
            bench.run()
    except (BuildError, PeerError, load.LoadError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    _print_table(console, "Side by side", report.HEADINGS, report.rows(plan.workloads, plan.peers, bench.results))
    for line in report.expectations(plan.workloads, plan.peers, bench.results):
        console.print(line, highlight=False)
    for line in report.disturbances(bench.results):
        console.print(line, style="red", highlight=False)
    if bench.sync_counts:
        cells = report.sync_rows(bench.sync_counts)
        _print_table(console, "Calls that wait for the disk", report.SYNC_HEADINGS, cells)
    RESULTS.mkdir(exist_ok=True)
    stem = f"{when:%Y%m%dT%H%M%SZ}"
    (RESULTS / f"{stem}.json").write_text(_raw(bench, plan, host, when))
    (RESULTS / f"{stem}.md").write_text(_markdown(bench, plan, host, when))
    console.print(f"Kept in bench/results/{stem}.json and .md")
    # The table that is kept with the source is a whole one: every workload, every peer, full length.
    if not quick and len(workloads) == len(WORKLOADS) and peers == list(DEFAULT_PEERS):
        shutil.copyfile(RESULTS / f"{stem}.md", RESULTS / "latest.md")


if __name__ == "__main__":
    typer.run(main)
