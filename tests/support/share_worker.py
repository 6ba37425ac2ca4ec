"""Workers of share groups: each polls in a thread of its own, and does with every record what the test says.

Run as a program (`python -m tests.support.share_worker SERVERS GROUP TOPIC`) one worker lives in a process that a test
may kill: it takes records, says on its standard output how many, one number a line, and acknowledges none.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import AcknowledgeType, Message, ShareConsumer

from tests.support.kafka_client import quiet
from tests.support.waiting import DEADLINE_S, eventually

Decide = Callable[[Message], AcknowledgeType]


def accept(_message: Message) -> AcknowledgeType:
    return AcknowledgeType.ACCEPT


def share_consumer(servers: str, group: str, **settings: Any) -> ShareConsumer:
    named = {key.replace("_", "."): value for key, value in settings.items()}
    explicit = {"group.id": group, "share.acknowledgement.mode": "explicit", "fetch.wait.max.ms": 100}
    return ShareConsumer(quiet(servers) | explicit | named)


class ShareWorker:
    """One member of a share group. `done` are the values of the records that it has accepted, known to be so by the
    broker; `seen` those of all that it was given, as (value, partition, offset)."""

    def __init__(self, servers: str, group: str, topic: str, decide: Decide = accept, **settings: Any) -> None:
        self.done: list[bytes] = []
        self.seen: list[tuple[bytes, int, int]] = []
        self.failure: BaseException | None = None
        self._decide = decide
        self._leaving = threading.Event()
        self._consumer = share_consumer(servers, group, **settings)
        self._topic = topic
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        try:
            self._consumer.subscribe([self._topic])
            while not self._leaving.is_set():
                self._work()
            self._consumer.close()
        except Exception as failure:  # noqa: BLE001 - whoever waits for it raises it
            self.failure = failure

    def _work(self) -> None:
        accepted: dict[tuple[str | None, int | None], list[bytes]] = {}
        for message in self._consumer.poll(0.1):
            if message.error() is not None:
                continue
            value, partition, offset = message.value(), message.partition(), message.offset()
            assert value is not None
            assert partition is not None
            assert offset is not None
            self.seen.append((value, partition, offset))
            kind = self._decide(message)
            self._consumer.acknowledge(message, kind)
            if kind == AcknowledgeType.ACCEPT:
                accepted.setdefault((message.topic(), partition), []).append(value)
        for place, error in self._consumer.commit_sync(DEADLINE_S).items():
            if error is None:
                self.done += accepted.get((place.topic, place.partition), [])

    def leave(self) -> None:
        self._leaving.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "a worker did not close"
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> ShareWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class WorkerProcess:
    """A worker in a process of its own, which holds what it was given until it is killed."""

    def __init__(self, servers: str, group: str, topic: str) -> None:
        self.taken = 0
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.share_worker", servers, group, topic],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=root,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.taken = int(line)

    def wait_for(self, count: int) -> None:
        eventually(lambda: self.taken >= count, f"{count} records for the worker in a process")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def main(servers: str, group: str, topic: str) -> None:
    consumer = share_consumer(servers, group)
    consumer.subscribe([topic])
    taken = 0
    while not taken:
        taken += len(consumer.poll(0.5))
    print(taken, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
