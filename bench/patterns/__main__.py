"""`python -m bench.patterns`: measure the patterns against the peers, and print and keep the tables.

What the figures mean is in `bench/README.md`.
"""

from __future__ import annotations

import datetime as dt
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench import machine
from bench.patterns import client, competing, failures, fanout, levelling, slow_consumer
from bench.patterns.pattern import OURS, Effort, Outcome, Pattern
from bench.peers import DEFAULT_PEERS, PEERS, PeerError
from bench.report import markdown_table

RESULTS: Final = Path(__file__).parent.with_name("results")
PATTERNS: Final = (competing.PATTERN, slow_consumer.PATTERN, fanout.PATTERN, failures.PATTERN, levelling.PATTERN)


def _section(pattern: Pattern, outcomes: dict[str, Outcome]) -> str:
    rows = [(peer, *row) for peer, outcome in outcomes.items() for row in outcome.rows]
    parts = [f"## {pattern.name}", f"{pattern.title}.", markdown_table(("broker", *pattern.headings), rows)]
    if OURS in outcomes and (expected := outcomes[OURS].expected):
        parts.append("\n".join(f"- {'met' if is_met else 'NOT met'}: {text}" for text, is_met in expected))
    return "\n\n".join(parts)


def _measure(
    pattern: Pattern, peers: Sequence[str], effort: Effort, folder: Path
) -> tuple[dict[str, Outcome], set[str]]:
    """What each broker did, started afresh, and which brokers they were."""
    outcomes: dict[str, Outcome] = {}
    versions: set[str] = set()
    for name in peers:
        own = folder / f"{pattern.name}-{name}"
        own.mkdir()
        with PEERS[name](own, pattern.options if name == OURS else ()) as peer:
            outcomes[name] = client.run(pattern.measure(peer, effort))
            versions.add(f"{name} {peer.version}")
    return outcomes, versions


def main(
    pattern: Annotated[list[str] | None, typer.Argument(help="Patterns to measure; all if none is named.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="A broker to measure; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long each figure is measured.")] = 4.0,
    levelling_seconds: Annotated[float, typer.Option(min=3, help="How long the backlog grows.")] = 60.0,
    data: Annotated[Path | None, typer.Option(help="Where the brokers keep their data: a folder on a disk.")] = None,
) -> None:
    """Measure the patterns of messaging."""
    # SIGTERM unwinds like Ctrl-C, so that no broker is left running.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 160)
    known = {each.name: each for each in PATTERNS}
    peers = peer or list(DEFAULT_PEERS)
    for kind, names, all_names in (("pattern", pattern or [], list(known)), ("broker", peers, list(PEERS))):
        for name in names:
            if name not in all_names:
                raise typer.BadParameter(f"no {kind} is called {name}; there are {', '.join(all_names)}")
    chosen = [known[name] for name in pattern or known]
    effort = Effort(seconds, levelling_seconds)
    when = dt.datetime.now(dt.UTC)
    sections: list[str] = []
    versions: set[str] = set()
    try:
        with tempfile.TemporaryDirectory(prefix="patterns-", dir=data) as folder:
            host = machine.describe(Path(folder))
            for each in chosen:
                outcomes, measured = _measure(each, peers, effort, Path(folder))
                versions |= measured
                sections.append(_section(each, outcomes))
                console.print(f"{sections[-1]}\n", highlight=False, markup=False, soft_wrap=True)
    except (PeerError, client.ClientError, TimeoutError) as error:
        console.print(f"patterns: {error!r}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    head = (
        f"{when:%Y-%m-%d}. {host}. {', '.join(sorted(versions))}. Clients and brokers share the machine; each broker "
    )
    head += "is started afresh for each pattern. What a column means: [bench/README.md](../README.md)."
    text = "\n\n".join(["# Patterns", head, *sections]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / f"{when:%Y%m%dT%H%M%SZ}-patterns.md"
    kept.write_text(text)
    if len(chosen) == len(PATTERNS) and peers == list(DEFAULT_PEERS):
        (RESULTS / "patterns.md").write_text(text)
    console.print(f"Kept in bench/results/{kept.name}")


if __name__ == "__main__":
    typer.run(main)
