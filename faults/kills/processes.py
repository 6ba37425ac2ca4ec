"""The processes that the clients of a workload live in: started, stopped, paused, replaced and killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from faults.kills.history import LINES_MAX, Broken
from faults.report import Assignment

ROOT: Final = Path(__file__).parents[2]
# How long a client that was asked to end may take, before it is killed.
END_S: Final = 25.0


@dataclass(slots=True)
class Slot:
    """What one client is and does. Its processes follow each other, each with a name of its own."""

    name: str
    told: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    count: int = 0


class Processes:
    """All clients of a workload. `disturb` is called by a thread of the workload, all else when that has ended."""

    def __init__(self, kind: str, assignment: Assignment, done: Counter[str]) -> None:
        """Of a kind: `faults.kills.KIND_clients` is what they run."""
        self.folder = assignment.folder / kind
        self.folder.mkdir(parents=True, exist_ok=True)
        self.slots: list[Slot] = []
        self._kind = kind
        self._choose = assignment.choose(f"{kind} clients")
        self._done = done
        # A process that was paused, and goes on beside the one that has taken its place.
        self._zombies: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, name: str, role: str, **told: Any) -> Slot:
        slot = Slot(name, {"role": role} | told)
        self.slots.append(slot)
        self.begin(slot)
        return slot

    def begin(self, slot: Slot) -> None:
        slot.count += 1
        name = f"{slot.name}-{slot.count}"
        told = slot.told | {
            "name": name,
            "notes": str(self.folder / f"{name}.notes"),
            "seed": self._choose.randrange(1 << 32),
        }
        with (self.folder / f"{name}.errors").open("ab") as errors:
            slot.process = subprocess.Popen(
                [sys.executable, "-m", f"faults.kills.{self._kind}_clients", json.dumps(told)],
                stdin=subprocess.PIPE, stdout=errors, stderr=errors, cwd=ROOT,
            )  # fmt: skip

    def disturb(self, pause_s: float) -> None:
        """Begin to kill, pause and replace clients at random moments, `pause_s` apart on average."""

        def live() -> None:
            while not self._over.wait(self._choose.expovariate(1 / pause_s)):
                self.revive()
                self._disturb_one(self._choose.choice(self.slots))

        self._thread = threading.Thread(target=live, daemon=True, name=f"what kills {self._kind} clients")
        self._thread.start()

    def _disturb_one(self, slot: Slot) -> None:
        process = slot.process
        if process is None:
            return
        chance = self._choose.random()
        if chance < 0.5:
            self._done[f"{self._kind} clients killed"] += 1
            process.kill()
            _bury(process)
            self.begin(slot)
        elif chance < 0.75:
            self._done[f"{self._kind} clients paused"] += 1
            process.send_signal(signal.SIGSTOP)
            self._over.wait(self._choose.uniform(0.1, 3.0))
            process.send_signal(signal.SIGCONT)
        else:
            # The one that is paused wakes up when another has taken its place, and must not do any harm.
            self._done[f"{self._kind} clients paused and replaced"] += 1
            process.send_signal(signal.SIGSTOP)
            self.begin(slot)
            self._over.wait(self._choose.uniform(0.5, 3.0))
            process.send_signal(signal.SIGCONT)
            self._zombies.append(process)
            while len(self._zombies) > 2:
                oldest = self._zombies.pop(0)
                oldest.kill()
                _bury(oldest)

    def calm(self) -> None:
        """From now on nobody is disturbed. Zombies are gone, and who has ended by itself is there again."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for zombie in self._zombies:
            zombie.kill()
            _bury(zombie)
        self._zombies.clear()
        self.revive()

    def revive(self) -> None:
        """Who has ended by itself, as a fenced producer has to, begins again."""
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is not None:
                self._done[f"{self._kind} clients that ended by themselves"] += 1
                _bury(slot.process)
                self.begin(slot)

    def end(self, *roles: str) -> list[str]:
        """Ask the clients of these roles to end, and wait. Returns the names of those that had to be killed."""
        ending = [slot for slot in self.slots if slot.told["role"] in roles and slot.process is not None]
        stuck = []
        for slot in ending:
            assert slot.process is not None
            assert slot.process.stdin is not None
            slot.process.stdin.close()
        for slot in ending:
            assert slot.process is not None
            try:
                slot.process.wait(END_S)
            except subprocess.TimeoutExpired:
                stuck.append(f"{slot.name}-{slot.count}")
                slot.process.kill()
            _bury(slot.process)
            slot.process = None
        return stuck

    def kill(self) -> None:
        """Who is still there is killed."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                _bury(slot.process)
                slot.process = None

    def errors(self) -> Iterator[Broken]:
        """Clients that have ended because of what they did not expect."""
        for path in sorted(self.folder.glob("*.errors")):
            text = path.read_text(errors="replace")
            if "Traceback" in text or "Fatal Python error" in text:
                yield Broken(f"{path.stem} has failed", text.splitlines()[-LINES_MAX:])


def _bury(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
