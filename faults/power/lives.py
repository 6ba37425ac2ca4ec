"""One seed: some lives of a broker, one after the other on the same disk, all of which comes again with the seed.

Beside what `Simulation` does, the power fails in the middle of whatever threads do and in the middle of recoveries, the
disk has errors that stay, and in the end a bit may be another than it was.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from faults.power.disk import PowerCut, SimulatedDisk
from faults.power.scheduler import Scheduler, SimulatedThreads
from faults.power.simulated_life import SimulatedLife
from faults.power.simulation import Simulation, State, make_small
from millpond.base.clock import ManualClock
from millpond.base.errors import MillpondError
from tests.broker.life import Life, copy_catalog
from tests.broker.test_group_recovery import Lives
from tests.broker.transaction_simulation import TransactionSimulation

LIVES: Final = 5
STEPS: Final = (5, 60)
# Of so many steps one breaks the disk for the rest of the life.
BREAKS: Final = 150
# Of so many recoveries one is cut off, as often as chance will have it.
CUT_RECOVERIES: Final = 4
CALLS_UNTIL_CUT: Final = 300
# Of so many runs one ends with a damaged file.
DAMAGES: Final = 3
# Of so many runs one is of Kafka's transactions.
TRANSACTIONS: Final = 4
LAST_TURNS: Final = 10
TRACE_LINES: Final = 300


class Trace:
    """What has happened, of which the last is kept, and a digest of all."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.lines: deque[str] = deque(maxlen=TRACE_LINES)
        self._digest = hashlib.blake2b(digest_size=8)
        self._tell = tell

    def note(self, line: str) -> None:
        self.lines.append(line)
        self._digest.update(line.encode())
        if self._tell is not None:
            self._tell(line)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


class Complaints(logging.Handler):
    """Counts what the broker's log says of damage."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


class PowerSimulation(Simulation):
    """See the module."""

    def __init__(self, seed: int, folder: Path, trace: Trace, done: Counter[str], complaints: Complaints) -> None:
        self.complaints = complaints
        self.seed = seed
        self.trace = trace
        self.done = done
        self.is_broken = False
        self._schedules = 0
        self.is_to_be_damaged = random.Random(f"{seed}/damage").randrange(DAMAGES) == 0
        # All that was ever there, by log: offset and number. Known where it will be asked for.
        self._known: dict[int, set[tuple[int, int]]] = {}
        super().__init__(seed, folder)

    def new_disk(self, seed: int) -> SimulatedDisk:
        return SimulatedDisk(seed)

    def begin_life(self, budget: int, file_bytes: int, clock: ManualClock) -> Life:
        self.is_broken = False
        # What is shared by all who use a disk belongs to the threads of the life before.
        self.disk = self.disk.copy_for_crash()
        while True:
            self._schedules += 1
            disk = self.disk
            assert isinstance(disk, SimulatedDisk)
            choose = random.Random(f"{self.seed}/{self._schedules}")
            scheduler = Scheduler(choose, self.trace.note)
            disk.simulated = SimulatedThreads(scheduler)
            disk.calls_left = choose.randrange(CALLS_UNTIL_CUT) if choose.randrange(CUT_RECOVERIES) == 0 else -1
            try:
                life = SimulatedLife(
                    disk, self.catalog, scheduler, choose, budget=budget, file_bytes=file_bytes, clock=clock
                )
            except PowerCut:
                self.trace.note("the power fails at the start")
                self.done["power cuts at the start"] += 1
                scheduler.end()
                self._lose_power(disk, choose)
                continue
            disk.calls_left = -1
            return life

    def _lose_power(self, disk: SimulatedDisk, choose: random.Random) -> None:
        left = disk.copy_for_crash()
        left.crash(keeps_some=choose.random() < 0.7)
        self.disk = left
        durable = self.catalog.with_name(self.catalog.name + "-durable")
        catalog = self.folder / f"{self.catalog.name}x"
        copy_catalog(durable if durable.exists() else self.catalog, catalog)
        self.catalog = catalog

    def act(self, action: Callable[[], None]) -> None:
        self.trace.note(f"loop: {action.__name__}")
        self.done["steps"] += 1
        if not self.is_broken and self.choose.randrange(BREAKS) == 0:
            self.break_disk()
        action()

    def break_disk(self) -> None:
        operation = self.choose.choice(["write", "sync"])
        self.trace.note(f"the next {operation} of the journal fails")
        self.done["broken disks"] += 1
        self.is_broken = True
        self.disk.fail(operation, errno.EIO, nth=self.choose.randrange(1, 4), times=1 << 30, path="journal")

    def fill_disk(self) -> None:
        self.done["full disks"] += 1
        operation = self.choose.choice(["write", "write", "allocate", "open"])
        self.disk.fail(operation, errno.ENOSPC, nth=self.choose.randrange(1, 4), times=self.choose.randrange(1, 4))

    def way_to_end(self) -> str:
        ways = (
            ["power cut", "power cut", "kill"] if self.is_broken else ["power cut", "power cut", "kill", "clean stop"]
        )
        way = self.choose.choice(ways)
        self.trace.note(f"end: {way}")
        self.done[{"power cut": "power cuts", "kill": "kills", "clean stop": "clean stops"}[way]] += 1
        self.done["messages confirmed durable"] += max(0, self.life.told.durable)
        return way

    # --- Damage -----------------------------------------------------------------------------------------------------

    def damage(self) -> None:
        """Stop, have one bit another than it was, and start: what is wrong is found out, and nothing wrong is shown."""
        old = self.life
        self.disk.heal()
        while not old.told.has_failed and old.told.durable < int(old.journal.sequence) - 1:
            # What comes of settling has to settle as well.
            self.note(old.settle_down)
        if old.told.has_failed:
            # What there was last was never durable, so there is nothing to compare with.
            old.vanish()
            return
        way = self.choose.choice(["stop", "kill"])
        if way == "stop":
            self.note(old.checkpoint)
            old.stop()
        disk = self.disk.copy()
        catalog = self.folder / "catalog-damaged"
        copy_catalog(self.catalog, catalog)
        if way == "kill":
            old.vanish()
        path, bit = self._choose_bit(disk)
        disk.flip_bit(path, bit)
        self.trace.note(f"after a {way}, bit {bit} of {path} is another")
        self.done["bits changed"] += 1
        self._remember()
        last = self.history[-1][1]
        self.disk, self.catalog = disk, catalog
        before = self.complaints.count
        try:
            life = self._new_life(self.deleted, old.clock.wall_ms())
            found = self.state()
        except MillpondError as error:
            self.trace.note(f"refused: {error}")
            self.done["bits changed, and refused"] += 1
            return
        if way == "kill" and "/journal/" in path and self._is_of_the_end(found):
            # Nothing tells a damage of the last turn from one that a kill has kept from being written.
            self.done["bits changed in the last turns"] += 1
        else:
            self._check_damaged(found, last, self.complaints.count - before + len(life.damages))
        life.vanish()

    def _choose_bit(self, disk: SimulatedDisk) -> tuple[str, int]:
        files = [(path, disk.size_of(path)) for path in disk.files()]
        paths = [path for path, size in files if size]
        path = self.choose.choice(paths)
        return path, self.choose.randrange(disk.size_of(path) * 8)

    def end(self) -> None:
        if self.is_to_be_damaged:
            self._remember()
        super().end()

    def _remember(self) -> None:
        for _, state in self.history:
            for log_id, entries in state.items():
                self._known.setdefault(log_id, set()).update((offset, number) for offset, number, _ in entries)
        for log_id, transients in self.transients.items():
            self._known.setdefault(log_id, set()).update(transients.items())

    def _is_of_the_end(self, found: State) -> bool:
        """Whether this is what there was after one of the last turns."""
        states = [{log_id: state.get(log_id, []) for log_id in found} for _, state in self.history[-LAST_TURNS:]]
        return any(self._is_same(found, state) for state in states)

    def _check_damaged(self, found: State, last: State, complaints: int) -> None:
        """Nothing is there that never was; and if anything is gone, or has come back, the log says so."""
        changed = {}
        for log_id, entries in found.items():
            there = {entry[:2] for entry in entries}
            never = there - self._known.get(log_id, set())
            assert not never, f"after a damage there is what never was in {log_id}: {sorted(never)[:5]}"
            before = {entry[:2] for entry in last.get(log_id, ())}
            if log_id == self.recent:
                # Its retention deletes without a commit.
                before, there = before & there, before & there
            if before != there:
                changed[log_id] = sorted(before ^ there)[:5]
        if not changed:
            self.done["bits changed without harm"] += 1
            return
        assert complaints, f"something is another by a damage, and nobody says so: {changed}"
        self.done["bits changed, and told"] += 1


class SimulatedLives(Lives):
    """What the simulation of transactions goes through, with threads that take turns."""

    def __init__(self, seed: int, folder: Path, trace: Trace) -> None:
        self._seed = seed
        self._trace = trace
        super().__init__(folder)

    def new_disk(self) -> SimulatedDisk:
        return SimulatedDisk(self._seed)

    def begin(self, clock: ManualClock) -> Life:
        disk = self.disk.copy_for_crash()
        assert isinstance(disk, SimulatedDisk)
        self.disk = disk
        choose = random.Random(f"{self._seed}/{self.number}")
        scheduler = Scheduler(choose, self._trace.note)
        disk.simulated = SimulatedThreads(scheduler)
        return SimulatedLife(disk, self.catalog, scheduler, choose, clock=clock)

    def told_by_kill(self) -> int:
        return int(self.life.journal.written_sequence)


class TracedTransactions(TransactionSimulation):
    """With a trace of what it does."""

    def __init__(self, lives: Lives, seed: int, trace: Trace, done: Counter[str]) -> None:
        self._trace = trace
        self._done = done
        super().__init__(lives, seed)

    def act(self, action: Callable[[int], None], index: int) -> None:
        self._trace.note(f"loop: {action.__name__} {index}")
        self._done["steps"] += 1
        super().act(action, index)

    def crash(self) -> None:
        self._trace.note("end")
        super().crash()
        self._done["lives"] += 1
        self._done["lives with transactions"] += 1


@contextmanager
def _complaints() -> Iterator[Complaints]:
    """What is logged meanwhile, which nobody else is to hear."""
    logger = logging.getLogger("millpond")
    complaints = Complaints()
    logger.addHandler(complaints)
    logger.propagate = False
    try:
        yield complaints
    finally:
        logger.propagate = True
        logger.removeHandler(complaints)


def simulate(seed: int, folder: Path, trace: Trace, done: Counter[str]) -> None:
    """Raises AssertionError, or whatever the broker raises, where a promise is not kept."""
    chance = random.Random(f"{seed}/chance")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with _complaints() as complaints, pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(os, "urandom", chance.randbytes)
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=chance.randbytes(16), version=4))
        if random.Random(f"{seed}/kind").randrange(TRANSACTIONS) == 0:
            lives = SimulatedLives(seed, folder, trace)
            TracedTransactions(lives, seed, trace, done).run()
            lives.life.vanish()
            done["seeds"] += 1
            return
        simulation = PowerSimulation(seed, folder, trace, done, complaints)
        simulation.set_up()
        simulation.note(simulation.life.settle_down)
        for _ in range(LIVES):
            for _ in range(simulation.choose.randrange(*STEPS)):
                simulation.step()
            simulation.end()
            done["lives"] += 1
        if simulation.is_to_be_damaged:
            simulation.damage()
        else:
            simulation.finish()
        done["lives"] += 1
    done["seeds"] += 1
