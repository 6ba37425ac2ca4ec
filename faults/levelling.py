"""Load levelling, for real: `make levelling`. Ten thousand messages a second come, five hundred a second leave.

For ten minutes a publisher, paced by the clock, brings persistent messages of 100 to 1,000 bytes with confirms, and
one consumer takes twenty times fewer. Then the consumer takes all that is left as fast as it comes. Every message has
its number, and the consumer checks that each comes once, and in order. What is measured is how long a confirm takes,
from the moment at which its message was due, and how the broker's memory grows once the backlog has its budget.
"""

from __future__ import annotations

import json
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import pamqp.commands as commands
import typer

from bench import process
from bench.build import compile_program
from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.raw_amqp import RawConnection

RATE_IN: Final = 10_000
RATE_OUT: Final = 500
BODY_BYTES_MIN, BODY_BYTES_MAX = 100, 1_000
# How the load program calls its only queue.
QUEUE: Final = "levelling.00000"
PREFETCH: Final = 2_000
ACKNOWLEDGED_AT_ONCE: Final = 50
SAMPLE_S: Final = 1.0
# Until the memory budget is full, memory grows as it should.
WARM_UP_S: Final = 60.0
CONFIRM_P99_MS_MAX: Final = 5.0
# What counts as flat: a thousandth of what comes in the same time.
SLOPE_BYTES_PER_S_MAX: Final = RATE_IN * (BODY_BYTES_MIN + BODY_BYTES_MAX) / 2 / 1000
# Nothing has come for so long: something is lost.
DRAIN_SILENCE_S: Final = 15.0

_FRAME_HEAD: Final = struct.Struct(">BHI")
_BODY_SIZE: Final = struct.Struct(">Q")
_NUMBER: Final = struct.Struct("=Q")
# Where the body of `bench/amqp_load.c` has the message's number, and a content header the body's size.
_NUMBER_AT: Final = 16
_BODY_SIZE_AT: Final = 4
_DELIVERY_TAG_AT: Final = 4
_METHOD, _HEADER, _BODY = 1, 2, 3


@dataclass
class Consumer:
    """Takes messages at a pace, or without one, and checks their numbers."""

    port: int
    # Messages a second; 0 when it is to take all that comes.
    pace: float
    received: int = 0
    wrong: list[str] = field(default_factory=list)
    # The time at which the consumer is done, whatever waits then; or the number of messages after which it is.
    until: float = 0.0
    until_received: int = 0

    def run(self) -> None:
        """Consume until the time is over, or all has come, or nothing comes any more."""
        with RawConnection(Endpoint("127.0.0.1", self.port)) as connection:
            connection.handshake()
            connection.open_channel()
            connection.rpc(commands.Basic.Qos(0, PREFETCH if not self.pace else 2 * ACKNOWLEDGED_AT_ONCE),
                           commands.Basic.QosOk)  # fmt: skip
            connection.rpc(commands.Basic.Consume(0, QUEUE, "levelling"), commands.Basic.ConsumeOk)
            self._take(connection)
            # Its answer comes after the broker has seen all acknowledgements.
            connection.send(commands.Channel.Close(200, "done", 0, 0), 1)
            connection.read_until(lambda frame: isinstance(frame, commands.Channel.CloseOk))

    def _take(self, connection: RawConnection) -> None:
        sock = connection.socket
        began = time.monotonic()
        already, acknowledged, tag = self.received, self.received, 0
        data = bytearray(connection._buffer)
        connection._buffer = b""
        sock.settimeout(DRAIN_SILENCE_S)
        while True:
            position = 0
            while len(data) - position >= _FRAME_HEAD.size:
                kind, _, size = _FRAME_HEAD.unpack_from(data, position)
                if len(data) - position < _FRAME_HEAD.size + size + 1:
                    break
                start = position + _FRAME_HEAD.size
                if kind == _METHOD:
                    (tag_bytes,) = struct.unpack_from(">B", data, start + _DELIVERY_TAG_AT)
                    (tag,) = _BODY_SIZE.unpack_from(data, start + _DELIVERY_TAG_AT + 1 + tag_bytes)
                elif kind == _HEADER:
                    (body_bytes,) = _BODY_SIZE.unpack_from(data, start + _BODY_SIZE_AT)
                elif kind == _BODY:
                    (number,) = _NUMBER.unpack_from(data, start + _NUMBER_AT)
                    # Not yet acknowledged when the paced consumer left: it comes again, and first.
                    if number != self.received or size != body_bytes:
                        self.wrong.append(f"message {number} of {size} bytes came in place of {self.received}")
                        return
                    self.received += 1
                position = start + size + 1
            del data[:position]
            is_over = bool(self.until_received) and self.received >= self.until_received
            if self.pace:
                is_over = time.monotonic() >= self.until
            if self.received - acknowledged >= ACKNOWLEDGED_AT_ONCE or is_over:
                if tag:
                    connection.send(commands.Basic.Ack(tag, True), 1)
                acknowledged = self.received
                if is_over:
                    return
            if self.pace:
                # The clock says how many may have been taken by now; the prefetch limit holds the rest back.
                due = began + (self.received - already) / self.pace
                time.sleep(max(0.0, min(due - time.monotonic(), self.until - time.monotonic())))
                if self.until - time.monotonic() <= 0:
                    continue
            try:
                piece = sock.recv(1 << 18)
            except TimeoutError:
                self.wrong.append(f"nothing came for {DRAIN_SILENCE_S:g} s after {self.received} messages")
                return
            if not piece:
                self.wrong.append("the broker hung up")
                return
            data += piece


@dataclass
class Memory:
    """The broker's resident memory, a sample a second."""

    pid: int
    samples: list[tuple[float, int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        began = time.monotonic()
        while not self.over.wait(SAMPLE_S):
            self.samples.append((time.monotonic() - began, process.resident_bytes(self.pid)))

    def slope_bytes_per_s(self) -> float:
        """How fast it has grown after the first minute, or in the second half of a shorter run."""
        last = self.samples[-1][0]
        late = [sample for sample in self.samples if sample[0] >= min(WARM_UP_S, last / 2)]
        return statistics.linear_regression([at for at, _ in late], [size for _, size in late]).slope


@dataclass(frozen=True)
class Outcome:
    """What was measured, and what was wrong."""

    load: dict[str, Any]
    taken: int
    drain_s: float
    memory: Memory
    peak_bytes: int
    others_busy: float
    wrong: list[str]


def measure(folder: Path, seconds: float) -> Outcome:
    """Publish for `seconds`, then drain."""
    program = compile_program(Path(__file__).parents[1] / "bench" / "amqp_load.c", folder)
    with BrokerProcess(folder) as broker:
        options = (
            *("--rate", str(RATE_IN), "--size-min", str(BODY_BYTES_MIN), "--size", str(BODY_BYTES_MAX)),
            *("--durable", "--persistent", "--confirms", "--outstanding", str(RATE_IN * 10)),
            *("--consumers", "0", "--keep", "--prefix", QUEUE.partition(".")[0], "--step"),
        )
        with subprocess.Popen(
            [str(program), "--port", str(broker.port), "--seconds", str(seconds), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        ) as load:  # fmt: skip
            assert load.stdin is not None
            assert load.stdout is not None
            assert load.stdout.readline().strip() == "ready", "the load program did not start"
            consumer = Consumer(broker.port, RATE_OUT, until=time.monotonic() + seconds)
            memory = Memory(broker.pid)
            threads = [threading.Thread(target=consumer.run), threading.Thread(target=memory.run)]
            before = process.cpu_seconds(broker.pid), process.machine_cpu_seconds(), time.process_time()
            load.stdin.write("\n")
            for thread in threads:
                thread.start()
            assert load.stdout.readline().strip() == "drained", "the load program gave up"
            broker_s = process.cpu_seconds(broker.pid) - before[0]
            others_s = process.machine_cpu_seconds() - before[1] - broker_s - (time.process_time() - before[2])
            load.stdin.write("\n")
            published = json.loads(load.stdout.read())
        memory.over.set()
        for thread in threads:
            thread.join()
        taken = consumer.received
        rest = Consumer(broker.port, 0, taken, consumer.wrong, until_received=published["published"])
        began = time.monotonic()
        if not rest.wrong:
            rest.run()
        drain_s = time.monotonic() - began
        wrong = list(rest.wrong)
        if rest.received != published["published"] and not wrong:
            wrong.append(f"{rest.received:,} messages came of {published['published']:,}")
        others_busy = (others_s - published["load_cpu_s"]) / published["duration_s"]
        return Outcome(published, taken, drain_s, memory, process.peak_memory_bytes(broker.pid), others_busy, wrong)


def main(
    minutes: Annotated[float, typer.Option(help="how long messages come; the drain is not in it")] = 10.0,
) -> None:
    """Measure load levelling, and print the rows for docs/guarantees.md."""
    print(f"{RATE_IN:,}/s in and {RATE_OUT:,}/s out for {minutes:g} minutes, then the drain", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="millpond-levelling-") as folder:
        outcome = measure(Path(folder), minutes * 60)
    confirm = {name: outcome.load["confirm_us"][name] / 1000 for name in ("p50", "p99", "p999", "max")}
    slope = outcome.memory.slope_bytes_per_s()
    published = outcome.load["published"]
    rest = published - outcome.taken
    wrong = list(outcome.wrong)
    if confirm["p99"] >= CONFIRM_P99_MS_MAX:
        wrong.append(f"the 99th percentile of confirms is {confirm['p99']:.1f} ms, not below {CONFIRM_P99_MS_MAX:g} ms")
    if slope > SLOPE_BYTES_PER_S_MAX:
        wrong.append(f"memory grew by {slope / 1000:.0f} kB a second")
    if outcome.load["rate"] < RATE_IN * 0.999:
        wrong.append(f"only {outcome.load['rate']:,.0f} messages a second came in")
    sizes = [size for _, size in outcome.memory.samples]
    print("| what | measured |")
    print("| --- | --- |")
    print(f"| published, each confirmed | {published:,} in {outcome.load['duration_s']:.0f} s |")
    print(f"| taken meanwhile | {outcome.taken:,} ({outcome.taken / outcome.load['duration_s']:.0f}/s) |")
    print(f"| publish to confirm, p50 / p99 / p99.9 / max | {confirm['p50']:.1f} / {confirm['p99']:.1f} / "
          f"{confirm['p999']:.1f} / {confirm['max']:.1f} ms |")  # fmt: skip
    print(f"| resident memory: largest, and its slope after the first minute | {max(sizes) >> 20:,} MiB, "
          f"{slope * 60 / 1e6:+.2f} MB/min |")  # fmt: skip
    print(f"| drained, in order, none lost and none twice | {rest:,} in {outcome.drain_s:.0f} s "
          f"({rest / outcome.drain_s:,.0f}/s) |")  # fmt: skip
    print(f"others used {outcome.others_busy:.2f} cores meanwhile: more than a little spoils the percentiles")
    print(f"memory in MiB, every tenth sample: {' '.join(str(size >> 20) for size in sizes[::10])}")
    for what in wrong:
        print(f"WRONG: {what}")
    print(f"levelling took {time.monotonic() - began:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
