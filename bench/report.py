"""Runs become a table: the median of the rounds, how far they spread, and how the peers compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bench.load import Run
from bench.syncs import SyncCount
from bench.workloads import Workload

OURS: Final = "millpond"
LOAD_BUSY_MAX: Final = 0.9
"""Above this share of its core the generator may have been the limit, and the rate says so with a `>=`."""
OTHERS_BUSY_MAX: Final = 0.15
"""Above this share of a core used by others, a run is named as disturbed: idle brokers and the driver need a few %."""

HEADINGS: Final = (
    "workload",
    "broker",
    "messages/s",
    "spread",
    "CPU µs each",
    "end to end ms p50 / p99",
    "confirm ms p50 / p99",
    "RSS MiB",
    "Millpond's rate",
    "Millpond's CPU",
)
SYNC_HEADINGS: Final = ("workload", "broker", "messages", "fdatasync + fsync", "messages per call", "files")


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one workload against one peer: medians."""

    rate: float
    spread: float
    """(largest - smallest) / median of the rate."""
    broker_cpu_us: float
    end_to_end_p50_us: float
    end_to_end_p99_us: float
    confirm_p50_us: float
    confirm_p99_us: float
    peak_memory_bytes: float
    load_busy: float


Results = Mapping[tuple[str, str], Sequence[Run]]
"""Runs by workload name and peer name."""


def summarize(runs: Sequence[Run]) -> Summary:
    def median(value: Callable[[Run], float]) -> float:
        return statistics.median(value(run) for run in runs)

    rates = [run.rate for run in runs]
    rate = statistics.median(rates)
    return Summary(
        rate=rate,
        spread=(max(rates) - min(rates)) / rate,
        broker_cpu_us=median(lambda run: run.broker_cpu_us),
        end_to_end_p50_us=median(lambda run: run.end_to_end.p50),
        end_to_end_p99_us=median(lambda run: run.end_to_end.p99),
        confirm_p50_us=median(lambda run: run.confirm.p50),
        confirm_p99_us=median(lambda run: run.confirm.p99),
        peak_memory_bytes=median(lambda run: run.peak_memory_bytes),
        load_busy=median(lambda run: run.load_busy),
    )


def _pair_ms(p50_us: float, p99_us: float) -> str:
    return f"{p50_us / 1000:.2f} / {p99_us / 1000:.2f}"


def _ratios(ours: Summary | None, peer: Summary) -> tuple[str, str]:
    """How Millpond compares with `peer`: its rate over the peer's, its CPU over the peer's."""
    if ours is None or ours is peer:
        return "", ""
    return f"{ours.rate / peer.rate:.1f}x", f"1/{peer.broker_cpu_us / ours.broker_cpu_us:.1f}"


def rows(workloads: Sequence[Workload], peers: Sequence[str], results: Results) -> list[tuple[str, ...]]:
    """The table's cells, one row for each workload and peer. A peer's row ends with how Millpond compares with it."""
    table: list[tuple[str, ...]] = []
    for workload in workloads:
        summaries = {peer: summarize(results[workload.name, peer]) for peer in peers}
        for peer, summary in summaries.items():
            bound = ">= " if summary.load_busy > LOAD_BUSY_MAX else ""
            rate_ratio, cpu_ratio = _ratios(summaries.get(OURS), summary)
            table.append(
                (
                    workload.name,
                    peer,
                    f"{bound}{summary.rate:,.0f}",
                    f"{summary.spread:.0%}",
                    f"{summary.broker_cpu_us:.2f}",
                    _pair_ms(summary.end_to_end_p50_us, summary.end_to_end_p99_us),
                    _pair_ms(summary.confirm_p50_us, summary.confirm_p99_us) if workload.is_confirmed else "",
                    f"{summary.peak_memory_bytes / 2**20:.0f}",
                    "" if workload.is_paced else rate_ratio,
                    cpu_ratio,
                )
            )
    return table


def sync_rows(counts: Mapping[tuple[str, str], SyncCount]) -> list[tuple[str, ...]]:
    return [
        (
            workload,
            peer,
            f"{count.messages:,}",
            f"{count.calls:,}",
            f"{count.messages / count.calls:,.1f}" if count.calls else "no calls",
            str(count.files),
        )
        for (workload, peer), count in counts.items()
    ]


def expectations(workloads: Sequence[Workload], peers: Sequence[str], results: Results) -> list[str]:
    """One line for each thing expected of Millpond, saying whether it was so."""
    lines = []
    for peer in (each for each in peers if OURS in peers and each != OURS):
        for workload in workloads:
            ours, theirs = (summarize(results[workload.name, name]) for name in (OURS, peer))
            rate_ratio, cpu_ratio = ours.rate / theirs.rate, ours.broker_cpu_us / theirs.broker_cpu_us
            if (wanted := workload.rate_ratio_min) is not None:
                verdict = "met" if rate_ratio >= wanted else "NOT met"
                lines.append(f"{workload.name}: at least {wanted:g}x {peer}'s rate: {verdict} ({rate_ratio:.1f}x)")
            if (share := workload.cpu_ratio_max) is not None:
                verdict = "met" if cpu_ratio <= share else "NOT met"
                lines.append(
                    f"{workload.name}: at most 1/{1 / share:g} of {peer}'s CPU per message: {verdict} "
                    f"(1/{1 / cpu_ratio:.1f})"
                )
    return lines


class Shared(Protocol):
    """A run, of whatever kind, on a machine that others may have used."""

    @property
    def others_busy(self) -> float: ...


def disturbances(results: Mapping[tuple[str, str], Sequence[Shared]]) -> list[str]:
    """One line for each workload and peer of which a run shared the machine with something else."""
    return [
        f"{workload}, {peer}: other processes used up to {worst:.0%} of a core during a run"
        for (workload, peer), runs in results.items()
        if (worst := max(run.others_busy for run in runs)) > OTHERS_BUSY_MAX
    ]


def markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_part(document: str, part: str, text: str) -> str:
    """`document` with one of its parts replaced, or added at its end. Comments mark where a part begins and ends."""
    begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    head, _, rest = document.partition(begin)
    tail = rest.partition(end)[2].strip()
    return "\n\n".join(each for each in (head.strip(), f"{begin}\n{text.strip()}\n{end}", tail) if each) + "\n"
