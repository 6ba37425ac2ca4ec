"""Random producers, random ends of their transactions, and a broker that is killed or loses its power at any moment:
after every crash a transaction's records and its offset are there in all of its partitions, or nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.broker.transactions.errors import TransactionError
from tests.broker.life import DATA
from tests.broker.test_group_recovery import Lives
from tests.broker.transactional import Writer, committed_values, offset_of

# The journal's file begins with this much that a torn write cannot take away again.
JOURNAL_HEADER_BYTES = 4096
PARTITIONS = 4
PRODUCERS = 3
STEPS = 60


@dataclass
class Attempt:
    """One transaction, by its number."""

    number: int
    partitions: set[int] = field(default_factory=set)
    # Of the commit that its end was told with; 0 as long as that is open.
    sequence: int = 0
    is_commit: bool = False


class TransactionSimulation:
    def __init__(self, lives: Lives, seed: int, has_checkpoints: bool = True) -> None:
        self.has_checkpoints = has_checkpoints
        self.choose = random.Random(seed)
        self.lives = lives
        self.writers = [Writer(lambda: self.lives.life, f"x{index}", 5000) for index in range(PRODUCERS)]
        self.open: list[Attempt | None] = [None] * PRODUCERS
        self.attempts: list[list[Attempt]] = [[] for _ in range(PRODUCERS)]
        self.count = 0
        self.lives.life.settle_down()

    def step(self) -> None:
        index = self.choose.randrange(PRODUCERS)
        acts = [self.write] * 6 + [self.end] * 4 + [self.checkpoint, self.let_time_pass, self.take_over, self.settle]
        try:
            self.act(self.choose.choice(acts), index)
        except TransactionError:
            # It was aborted for its timeout.
            self.take_over(index)
        if self.choose.random() < 0.7:
            self.lives.life.end_turn()
        if self.choose.random() < 0.5:
            self.lives.life.pump()

    def act(self, action: Callable[[int], None], index: int) -> None:
        action(index)

    def write(self, index: int) -> None:
        attempt = self.open[index]
        if attempt is None:
            self.count += 1
            attempt = self.open[index] = Attempt(self.count)
            self.attempts[index].append(attempt)
        for partition in self.choose.sample(range(PARTITIONS), self.choose.randint(1, PARTITIONS)):
            self.writers[index].write(b"%d" % attempt.number, partition)
            attempt.partitions.add(partition)

    def end(self, index: int) -> None:
        attempt = self.open[index]
        if attempt is None:
            return
        writer, is_commit = self.writers[index], self.choose.random() < 0.7
        writer.commit_offset(f"g{index}", 0, attempt.number)
        writer.end(is_commit, raises_epoch=self.choose.random() < 0.5)
        attempt.is_commit = is_commit
        attempt.sequence = int(self.lives.life.ledger.sequence())
        self.open[index] = None

    def take_over(self, index: int) -> None:
        self.writers[index].begin_anew()
        self.open[index] = None

    def checkpoint(self, _index: int) -> None:
        life = self.lives.life
        if self.has_checkpoints and not life.checkpointer.running:
            life.turn.touch()
            life.end_turn()
            life.checkpointer.begin()

    def let_time_pass(self, _index: int) -> None:
        self.lives.advance(self.choose.choice([10, 1000, 3000]))

    def settle(self, _index: int) -> None:
        self.lives.life.settle_down()

    def crash(self) -> None:
        life = self.lives.life
        told = life.told.durable
        if self.choose.random() < 0.7:
            self.lives.cut_power(keeps_some=self.choose.random() < 0.5)
        else:
            life.end_turn()
            told = self.lives.told_by_kill()
            self.lives.kill()
        self.take_all_over(told)

    def tear(self) -> None:
        """A kill, after which the journal ends anywhere: within a turn, or between two."""
        self.lives.life.settle_down()
        self.lives.life.abandon()
        folder = f"{DATA}/journal"
        name = max(self.lives.disk.list(folder))
        file = self.lives.disk.open(f"{folder}/{name}", False)
        used = len(file.pread(0, file.size()).rstrip(b"\0"))
        file.truncate(self.choose.randrange(JOURNAL_HEADER_BYTES, used))
        file.close()
        self.lives.kill()
        self.take_all_over(0)

    def take_all_over(self, told: int) -> None:
        # What others have open would hide what lies behind it.
        for index in range(PRODUCERS):
            self.take_over(index)
        self.lives.life.settle_down()
        self.check(told)

    def check(self, durable: int) -> None:
        """`durable` is the commit up to which the broker had told that all is durable before the crash."""
        life = self.lives.life
        found = [{int(value) for value in committed_values(life, number)} for number in range(PARTITIONS)]
        for index, attempts in enumerate(self.attempts):
            latest = -1
            for attempt in attempts:
                where = {number for number in range(PARTITIONS) if attempt.number in found[number]}
                what = f"transaction {attempt.number} of producer {index} is in {where} of {attempt.partitions}"
                assert where in (set(), attempt.partitions), what
                if 0 < attempt.sequence <= durable:
                    assert bool(where) == attempt.is_commit, what
                else:
                    assert not where or attempt.is_commit, what
                # From now on it is decided.
                attempt.is_commit, attempt.sequence = bool(where), 1
                if where:
                    latest = attempt.number
            assert offset_of(life, f"g{index}", 0) == latest, f"the offset of producer {index}"

    def run(self) -> None:
        for _ in range(self.choose.randint(2, 5)):
            for _ in range(self.choose.randint(5, STEPS)):
                self.step()
            self.crash()
