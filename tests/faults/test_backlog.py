"""A backlog that is larger than the memory it may take, in a broker of its own, from a generator that is fast enough.

`bench/amqp_load.c` checks what comes back: no message lost, repeated or out of its publisher's order.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.build import BuildError, compile_program
from millpond.broker.queues import queue as queue_module
from tests.support.broker_process import BrokerProcess

BACKLOG_VARIABLE = "MILLPOND_TEST_BACKLOG"
IS_COMPILED = not str(queue_module.__file__).endswith(".py")
SOURCE = Path(__file__).parents[2] / "bench" / "amqp_load.c"

Load = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return compile_program(SOURCE, tmp_path_factory.mktemp("amqp_load"))
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], BrokerProcess]]:
    """Starts a broker with a memory budget."""
    started: list[BrokerProcess] = []

    def start_broker(memory_budget: str) -> BrokerProcess:
        started.append(BrokerProcess(tmp_path / "broker", arguments=["--memory-budget", memory_budget]))
        return started[-1].start()

    yield start_broker
    for broker in started:
        broker.stop()


@pytest.fixture
def load(program: Path) -> Load:
    """Runs the generator; its figures."""

    def run(broker: BrokerProcess, *arguments: str) -> dict[str, float]:
        finished = subprocess.run(
            [str(program), "--port", str(broker.port), "--keep", "--durable", *arguments],
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr + broker.log[-4000:]
        figures: dict[str, float] = json.loads(finished.stdout)
        return figures

    return run


def resident_bytes(broker: BrokerProcess, field: str = "VmRSS") -> int:
    """Memory of the broker's process: now, or with VmHWM at its highest."""
    status = Path(f"/proc/{broker.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def test_a_backlog_beyond_the_memory_budget_survives_a_kill_in_order(
    start: Callable[[str], BrokerProcess], load: Load
) -> None:
    messages = 300_000 if IS_COMPILED else 100_000
    broker = start("32MiB")
    before = resident_bytes(broker)
    published = load(
        broker, "--messages", str(messages), "--consumers", "0", "--persistent", "--confirms", "--size", "1024"
    )
    growth = resident_bytes(broker, "VmHWM") - before
    print(f"RSS grew by at most {growth >> 20} MiB; {published['rate']:.0f} messages/s")
    assert published["confirmed"] == messages
    # The budget, what is on its way to the disk and to the journal, and the interpreter's own slack.
    assert growth < 160 << 20

    broker.kill()
    broker.start()
    # A journal file at most is replayed into memory.
    recovered = resident_bytes(broker, "VmHWM") - before
    drained = load(broker, "--messages", str(messages), "--publishers", "0", "--no-purge", "--size", "1024")
    growth = resident_bytes(broker, "VmHWM") - before
    print(f"{recovered >> 20} MiB in recovery, {growth >> 20} MiB in all; {drained['delivered_rate']:.0f} messages/s")
    assert drained["delivered"] == messages
    assert growth < 320 << 20


@pytest.mark.slow
@pytest.mark.skipif(
    BACKLOG_VARIABLE not in os.environ, reason=f"takes a gigabyte of disk: {BACKLOG_VARIABLE}=1 asks for it"
)
@pytest.mark.skipif(not IS_COMPILED, reason="it would take the uncompiled source many minutes")
def test_ten_million_messages_wait_without_memory_in_proportion(
    start: Callable[[str], BrokerProcess], load: Load
) -> None:
    messages = 10_000_000
    broker = start("64MiB")
    before = resident_bytes(broker)
    published = load(
        broker, "--messages", str(messages), "--consumers", "0", "--persistent", "--confirms",
        "--outstanding", "20000", "--size", "24",
    )  # fmt: skip
    waiting = resident_bytes(broker, "VmHWM") - before
    print(f"{messages} messages wait: RSS grew by at most {waiting >> 20} MiB; {published['rate']:.0f} messages/s")
    assert published["confirmed"] == messages
    assert waiting < 200 << 20

    drained = load(broker, "--messages", str(messages), "--publishers", "0", "--no-purge", "--size", "24")
    growth = resident_bytes(broker, "VmHWM") - before
    print(f"drained: RSS had grown by at most {growth >> 20} MiB; {drained['delivered_rate']:.0f} messages/s")
    assert drained["delivered"] == messages
    assert growth < 200 << 20
