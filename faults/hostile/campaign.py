"""One attack after the other against one broker, and what it did to the broker and to the bystanders."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final

from faults.hostile import wire
from faults.hostile.attacks import ATTACKS, Attack
from faults.hostile.bystanders import KINDS, Bystanders, Wait
from faults.hostile.target import Target
from faults.report import Assignment
from tests.support.broker_process import BrokerProcess

MIB: Final = 1 << 20
# No bystander waits longer, and hardly any longer than the second.
STALL_MS_MAX: Final = 500.0
P99_MS_MAX: Final = 250.0
# How long the bystanders are by themselves before an attack.
CALM_S: Final = 0.7
# An attack that takes longer than this is itself kept waiting too long.
ATTACK_S_MAX: Final = 30.0
# What an attack had is given back within this time of its end.
GIVEN_BACK_S: Final = 8.0
DESCRIPTORS_KEPT_MAX: Final = 24
LOG_BYTES_MAX: Final = 128 << 10
WATCH_INTERVAL_S: Final = 0.02
ARGUMENTS: Final = ("--memory-budget", "128MiB", "--admin", "127.0.0.1:0")


@dataclasses.dataclass(slots=True)
class Outcome:
    """What one attack did, and what came of it."""

    attack: Attack
    did: str = ""
    seconds: float = 0.0
    resident_before: int = 0
    resident_most: int = 0
    resident_after: int = 0
    log_bytes: int = 0
    before: list[Wait] = dataclasses.field(default_factory=list)
    during: list[Wait] = dataclasses.field(default_factory=list)
    wrongs: list[str] = dataclasses.field(default_factory=list)

    @property
    def row(self) -> str:
        """The attack in one line."""
        return (
            f"{self.did}; {self.seconds:.1f} s; RSS {self.resident_before // MIB} -> {self.resident_most // MIB} -> "
            f"{self.resident_after // MIB} MiB; p99 {percentile(self.before):.0f} -> {percentile(self.during):.0f} ms; "
            f"worst {worst(self.during)}; log {self.log_bytes // 1024} KiB"
        )


def percentile(waits: Sequence[Wait]) -> float:
    """The 99th percentile of what bystanders waited, in ms."""
    ordered = sorted(wait.excess_ms for wait in waits)
    return ordered[int(len(ordered) * 0.99)] if ordered else 0.0


def worst(waits: Sequence[Wait]) -> str:
    """The longest of them, without and with what the machine was to blame for."""
    if not waits:
        return "nothing"
    longest = max(waits, key=lambda wait: wait.excess_ms)
    return f"{longest.excess_ms:.0f} ms of {max(wait.ms for wait in waits):.0f} ms ({longest.kind})"


class Campaign:
    """A broker, its bystanders, and what is done to them."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment: Final = assignment
        self._broker: Final = BrokerProcess(assignment.folder, arguments=ARGUMENTS, kafka=True)
        self._broker.start()
        ports = {name: int(address.rpartition(":")[2]) for name, address in self._broker.listeners.items()}
        self.target: Final = Target(self._broker.pid, ports["amqp"], ports["kafka"], ports["admin"])
        self._bystanders: Final = Bystanders(self.target)

    def run(self, attack: Attack, scale: float) -> Outcome:
        """Attack, and look at what becomes of it."""
        outcome = Outcome(attack)
        target = self.target
        self._bystanders.waits()
        time.sleep(CALM_S)
        outcome.before = self._bystanders.waits()
        outcome.resident_before = outcome.resident_most = target.resident_bytes
        descriptors = target.descriptor_count
        log_before = self._log_bytes
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        seed = self._assignment.seed
        attacker = context.Process(target=_attack, args=(attack.name, target, seed, scale, theirs), daemon=True)
        began = time.monotonic()
        attacker.start()
        theirs.close()
        try:
            while not ours.poll(WATCH_INTERVAL_S):
                if not target.is_alive:
                    outcome.wrongs.append("the broker's process is gone")
                    return outcome
                outcome.resident_most = max(outcome.resident_most, target.resident_bytes)
                if time.monotonic() - began > ATTACK_S_MAX:
                    outcome.wrongs.append(f"the attack was not over within {ATTACK_S_MAX:g} s")
                    break
            else:
                try:
                    outcome.did, wrong = ours.recv()
                    if wrong:
                        outcome.wrongs.append(wrong)
                except EOFError:
                    outcome.wrongs.append("the attacker died")
        finally:
            # With it all its connections are lost at once, which is part of every attack.
            attacker.kill()
            attacker.join()
        outcome.seconds = time.monotonic() - began
        self._wait_for_peace(outcome, descriptors)
        if target.is_alive:
            # Sockets are closed before what they had is given back: an answer says that this is done as well.
            wire.manage(target, "GET", "/api/nodes")
        outcome.during = self._bystanders.waits()
        outcome.log_bytes = self._log_bytes - log_before
        self._judge(outcome)
        return outcome

    def _wait_for_peace(self, outcome: Outcome, descriptors: int) -> None:
        """Wait until the broker has given back what the attack had."""
        target, attack = self.target, outcome.attack
        give_up_at = time.monotonic() + GIVEN_BACK_S
        kept_max = outcome.resident_before + attack.kept_mib * MIB
        while time.monotonic() < give_up_at and target.is_alive:
            outcome.resident_after = target.resident_bytes
            outcome.resident_most = max(outcome.resident_most, outcome.resident_after)
            if target.descriptor_count <= descriptors + DESCRIPTORS_KEPT_MAX and outcome.resident_after <= kept_max:
                return
            time.sleep(WATCH_INTERVAL_S)
        if not target.is_alive:
            outcome.wrongs.append("the broker's process is gone")
            return
        if target.descriptor_count > descriptors + DESCRIPTORS_KEPT_MAX:
            outcome.wrongs.append(f"{target.descriptor_count - descriptors} descriptors were not given back")
        if outcome.resident_after > kept_max:
            kept = (outcome.resident_after - outcome.resident_before) // MIB
            outcome.wrongs.append(f"{kept} MiB were not given back, {attack.kept_mib} may be kept")

    def _judge(self, outcome: Outcome) -> None:
        attack = outcome.attack
        grown = (outcome.resident_most - outcome.resident_before) // MIB
        if grown > attack.memory_mib:
            outcome.wrongs.append(f"memory has grown by {grown} MiB, {attack.memory_mib} are allowed")
        if any(wait.excess_ms > STALL_MS_MAX for wait in outcome.during):
            outcome.wrongs.append(f"a bystander waited {worst(outcome.during)}, {STALL_MS_MAX:g} are allowed")
        if percentile(outcome.during) > max(P99_MS_MAX, 2 * percentile(outcome.before)):
            outcome.wrongs.append(f"p99 of the bystanders was {percentile(outcome.during):.0f} ms")
        silent = set(KINDS) - {wait.kind for wait in outcome.before + outcome.during}
        if silent:
            outcome.wrongs.append(f"bystanders were not served at all: {', '.join(sorted(silent))}")
        if outcome.log_bytes > LOG_BYTES_MAX:
            outcome.wrongs.append(f"the log has grown by {outcome.log_bytes} bytes, {LOG_BYTES_MAX} are allowed")

    @property
    def _log_bytes(self) -> int:
        return (self._assignment.folder / "broker.log").stat().st_size

    @property
    def log_end(self) -> list[str]:
        return self._broker.log[-6000:].splitlines()

    def stop(self) -> list[str]:
        """End the bystanders and the broker. What has gone wrong for them in all the time."""
        wrongs: list[str] = []
        if self._broker.running:
            account = self._bystanders.stop()
            wrongs += [f"a bystander: {wrong}" for wrong in account.wrongs]
            if account.delivered != account.confirmed or account.fetched != account.acknowledged:
                wrongs.append(f"bystanders have lost something: {account}")
            # A turn that failed closes one connection and is told with its trace.
            traces = self._broker.log.count("Traceback")
            if traces:
                wrongs.append(f"the broker's log has {traces} traces")
            code = self._broker.terminate()
            if code != 0:
                wrongs.append(f"the broker ended with {code}")
        return wrongs


def _attack(name: str, target: Target, seed: int, scale: float, pipe: Connection) -> None:
    """The process of an attacker, which leaves the cores to those whose time is measured."""
    os.nice(10)
    attack = ATTACKS[name]
    chance = Assignment(seed, 0.0, None, print).choose(name)  # type: ignore[arg-type]
    wrong = ""
    did = ""
    try:
        did = attack.run(target, chance, scale)
    except BaseException:  # noqa: BLE001 Whatever it is: the campaign tells it.
        wrong = f"the attack went another way: {traceback.format_exc(limit=-3)}"
    pipe.send((did, wrong))
    # Until it is killed, with all that it has open.
    pipe.poll(None)
