"""Captured conversations, changed with some sense for their frames, and played to a running broker.

Meanwhile bystanders who do nothing wrong must be served, and lose nothing.

    units       the greeting and frames of AMQP, the requests of Kafka, the lines of HTTP
    changes     units are swapped, doubled, dropped, cut, taken from other conversations; their channels, APIs, versions
                and bytes are changed, and their lengths then put right, or not
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import random
import socket
import struct
import time
from collections import deque
from pathlib import Path
from typing import Final

from faults.fuzz.captures import Recorder, capture
from faults.fuzz.mutate import mutated
from faults.hostile.bystanders import Bystanders
from faults.hostile.target import Target
from faults.report import Assignment, Failure, Report
from tests.support.broker_process import KAFKA_ARGUMENTS, BrokerProcess

PROTOCOLS: Final = ("amqp", "kafka", "http")
# How often each of them is chosen.
_WEIGHTS: Final = (5, 5, 1)
_AMQP_GREETING_BYTES: Final = 8
_AMQP_HEAD_BYTES: Final = 7
_AT_ONCE: Final = 12
# How long nothing more must have come for a conversation to be over, from the seed between these, and at most.
_SILENCE_S: Final = (0.002, 0.06)
_CONVERSATION_S_MAX: Final = 2.0
# Conversations of one round, after which the broker is looked at; they are those that a bug may be of.
_ROUND: Final = 240
# In a minute; a machine that does less has proved less.
CONVERSATIONS_PER_MINUTE_MIN: Final = 1000
_UNITS_MAX: Final = 400
_BYTES_MAX: Final = 1 << 18
_RESIDENT_BYTES_MAX: Final = 512 << 20
_ARGUMENTS: Final = ("--memory-budget", "64MiB", "--admin", "127.0.0.1:0", *KAFKA_ARGUMENTS)
_TRACE: Final = "Traceback (most recent call last)"
_FOUND_MAX: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """What one client says, in its units."""

    protocol: str
    units: tuple[bytes, ...]

    @property
    def data(self) -> bytes:
        return b"".join(self.units)


# --- Units ------------------------------------------------------------------------------------------------------------


def conversation(protocol: str, data: bytes) -> Conversation:
    """What was captured, taken apart. What follows the last whole unit is one of its own."""
    units: list[bytes] = []
    position = 0
    if protocol == "http":
        return Conversation(protocol, tuple(data.splitlines(keepends=True)))
    if protocol == "amqp":
        units.append(data[:_AMQP_GREETING_BYTES])
        position = _AMQP_GREETING_BYTES
    while position < len(data):
        end = position + _unit_bytes(protocol, data, position)
        units.append(data[position:end])
        position = end
    return Conversation(protocol, tuple(units))


def _unit_bytes(protocol: str, data: bytes, position: int) -> int:
    if protocol == "amqp":
        return _AMQP_HEAD_BYTES + int.from_bytes(data[position + 3 : position + 7], "big") + 1
    return 4 + int.from_bytes(data[position : position + 4], "big")


def changed_within(protocol: str, unit: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A unit with changed bytes, mostly with a length that is right again."""
    if protocol == "amqp" and len(unit) > _AMQP_HEAD_BYTES:
        payload = mutated(unit[_AMQP_HEAD_BYTES:-1], [other[_AMQP_HEAD_BYTES:-1] for other in others], chance)
        head = unit[:3]
        if chance.random() < 0.15:
            # Another kind of frame, or another channel.
            head = bytes([chance.choice([1, 1, 2, 3, 8, 4, 0])]) + chance.choice([0, 1, 2, 7, 0xFFFF]).to_bytes(
                2, "big"
            )
        length = len(payload) if chance.random() < 0.9 else chance.choice([0, 1, len(payload) + 1, 1 << 17, 0xFFFFFFFF])
        return head + length.to_bytes(4, "big") + payload + (b"\xce" if chance.random() < 0.97 else b"\0")
    if protocol == "kafka" and len(unit) > 8:
        head, body = unit[4:8], unit[8:]
        choice = chance.random()
        if choice < 0.15:
            # The same request in another version, or as another API's.
            api_key, version = struct.unpack(">hh", head)
            head = struct.pack(">hh", api_key, chance.choice([max(0, version - 1), version + 1, 0, 99]))
            if chance.random() < 0.3:
                head = struct.pack(">hh", chance.randrange(-1, 93), chance.randrange(0, 6))
        if choice > 0.1:
            body = mutated(body, [other[8:] for other in others], chance)
        size = len(head) + len(body)
        if chance.random() < 0.08:
            size = chance.choice([0, 1, size - 1, size + 1, 1 << 26, (1 << 31) - 1, 0xFFFFFFFF])
        return (size & 0xFFFFFFFF).to_bytes(4, "big") + head + body
    return mutated(unit, others, chance)


def changed(one: Conversation, all_of_them: list[Conversation], chance: random.Random) -> bytes:
    """What is played instead of a captured conversation."""
    units = list(one.units)
    others = list(chance.choice(all_of_them).units)
    # Who is not let in is not listened to: what comes first is mostly left alone.
    first = 0 if chance.random() < 0.1 else min(5 if one.protocol == "amqp" else 1, len(units) - 1)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(first, len(units)) if len(units) > first else 0
        choice = chance.randrange(10)
        if choice < 4 and units:
            units[at] = changed_within(one.protocol, units[at], others, chance)
        elif choice == 4 and len(units) > 1:
            other = chance.randrange(min(first, len(units) - 1), len(units))
            units[at], units[other] = units[other], units[at]
        elif choice == 5:
            units[at:at] = units[at : at + 1] * chance.choice([1, 1, 2, 40])
        elif choice == 6:
            del units[at]
        elif choice == 7:
            start = chance.randrange(len(others))
            units[at:at] = others[start : start + chance.randint(1, 8)]
        elif choice == 8:
            tail = units[at:]
            chance.shuffle(tail)
            units[at:] = tail
        elif units:
            # Cut in the middle of a unit: the rest never comes, or what follows is taken for it.
            units[at] = units[at][: chance.randrange(len(units[at]) + 1)]
            if chance.random() < 0.5:
                del units[at + 1 :]
        if not units:
            return b""
    data = b"".join(units[:_UNITS_MAX])[:_BYTES_MAX]
    if chance.random() < 0.05 and data:
        flipped = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        data = bytes(flipped)
    return data


# --- Playing ----------------------------------------------------------------------------------------------------------


async def _play(port: int, data: bytes, chance: random.Random) -> bool:
    """Say it all, listen until there is silence, and go, politely or not. Whether there was any answer."""
    silence_s = chance.uniform(*_SILENCE_S)
    is_rude = chance.random() < 0.5
    heard = False
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    if is_rude:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        writer.write(data)
        give_up_at = time.monotonic() + _CONVERSATION_S_MAX
        while time.monotonic() < give_up_at:
            try:
                if not await asyncio.wait_for(reader.read(1 << 16), silence_s):
                    break
                heard = True
            except TimeoutError:
                break
    except OSError:
        # The broker has closed it: that is an answer to most of what is said here.
        heard = True
    finally:
        writer.transport.abort() if is_rude else writer.close()
    return heard


async def _play_all(ports: dict[str, int], said: list[tuple[str, bytes]], seed: str) -> int:
    """How many of them were answered."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int, protocol: str, data: bytes) -> bool:
        async with turns:
            return await _play(ports[protocol], data, random.Random(f"{seed}/{number}"))

    return sum(await asyncio.gather(*[one(number, *what) for number, what in enumerate(said)]))


# --- The campaign -----------------------------------------------------------------------------------------------------


class _Stage:
    """The broker that conversations are played to, and what is captured of real clients with it."""

    def __init__(self, folder: Path) -> None:
        self.recorders: Final = {protocol: Recorder() for protocol in PROTOCOLS}
        advertised = ("--kafka-advertised", f"127.0.0.1:{self.recorders['kafka'].port}")
        self.broker: Final = BrokerProcess(folder, arguments=(*_ARGUMENTS, *advertised), kafka=True)
        self.broker.start()
        listeners = {name: int(address.rpartition(":")[2]) for name, address in self.broker.listeners.items()}
        self.ports: Final = {"amqp": listeners["amqp"], "kafka": listeners["kafka"], "http": listeners["admin"]}
        for protocol, recorder in self.recorders.items():
            recorder.upstream = self.ports[protocol]
        self.target: Final = Target(self.broker.pid, listeners["amqp"], listeners["kafka"], listeners["admin"])
        self._log_seen = 0

    def captured(self) -> list[Conversation]:
        """What real clients say."""
        return [conversation(name, said) for name in PROTOCOLS for said in capture(self.recorders[name], name)]

    def new_traces(self) -> list[str]:
        """What the broker's log has of bugs since it was looked at last."""
        log = self.broker.log
        new, self._log_seen = log[self._log_seen :], len(log)
        if _TRACE not in new and "a bug:" not in new:
            return []
        at = max(0, min(found for found in (new.find(_TRACE), new.find("a bug:")) if found >= 0) - 400)
        return new[at : at + 4000].splitlines()

    def close(self) -> None:
        for recorder in self.recorders.values():
            recorder.close()
        self.broker.stop()


def replay_conversation(folder: Path, protocol: str, data: bytes) -> list[str]:
    """Play one conversation to a new broker. What went wrong."""
    stage = _Stage(folder)
    try:
        asyncio.run(_play(stage.ports[protocol], data, random.Random(0)))
        # Another one shows that it is over with the first.
        asyncio.run(_play(stage.ports[protocol], data, random.Random(1)))
        return stage.new_traces() or ([] if stage.target.is_alive else ["the broker's process is gone"])
    finally:
        stage.close()


def converse(assignment: Assignment, report: Report, end_at: float) -> None:
    """Play changed conversations until `end_at` by the monotonic clock, and tell what came of them."""
    stage = _Stage(assignment.folder / "conversations")
    try:
        captured = stage.captured()
        by_protocol = {name: [one for one in captured if one.protocol == name] for name in PROTOCOLS}
        report.figures["captured"] = ", ".join(
            f"{name}: {len(found)} conversations of {sum(len(one.units) for one in found)} units"
            for name, found in by_protocol.items()
        )
        bystanders = Bystanders(stage.target)
        _play_until(assignment, report, stage, by_protocol, end_at)
        if stage.target.is_alive:
            account = bystanders.stop()
            for wrong in account.wrongs:
                _fail(assignment, report, f"a bystander of conversations: {wrong}", [])
            if account.delivered != account.confirmed or account.fetched != account.acknowledged:
                _fail(assignment, report, f"bystanders of conversations have lost something: {account}", [])
            report.done["messages of bystanders confirmed and delivered"] += account.delivered + account.fetched
            code = stage.broker.terminate()
            if code != 0:
                _fail(assignment, report, f"the broker ended with {code}", stage.broker.log[-4000:].splitlines())
    finally:
        stage.close()


def _play_until(
    assignment: Assignment, report: Report, stage: _Stage, captured: dict[str, list[Conversation]], end_at: float
) -> None:
    chance = assignment.choose("conversations")
    began = time.monotonic()
    resident_most = 0
    number = 0
    recent: deque[tuple[str, bytes]] = deque(maxlen=2 * _ROUND)
    while time.monotonic() < end_at:
        said: list[tuple[str, bytes]] = []
        for _ in range(_ROUND):
            (protocol,) = chance.choices(PROTOCOLS, _WEIGHTS)
            one = chance.choice(captured[protocol])
            said.append((protocol, changed(one, captured[protocol], chance)))
        number += 1
        recent.extend(said)
        report.done["conversations answered"] += asyncio.run(
            _play_all(stage.ports, said, f"{assignment.seed}/{number}")
        )
        report.done["conversations"] += len(said)
        if not stage.target.is_alive:
            _fail(assignment, report, "the broker's process is gone", _as_history(recent))
            return
        resident_most = max(resident_most, stage.target.resident_bytes)
        traces = stage.new_traces()
        if traces:
            _blame(assignment, report, stage, recent, traces)
            recent.clear()
            if len(report.failures) >= _FOUND_MAX:
                break
    minutes = (time.monotonic() - began) / 60
    report.figures["conversations a minute"] = f"{report.done['conversations'] / max(minutes, 1e-3):,.0f}"
    report.figures["memory of the broker in conversations"] = f"{resident_most >> 20} MiB at most"
    if resident_most > _RESIDENT_BYTES_MAX:
        _fail(assignment, report, f"the broker's memory has grown to {resident_most >> 20} MiB", [])


def _blame(
    assignment: Assignment, report: Report, stage: _Stage, recent: deque[tuple[str, bytes]], traces: list[str]
) -> None:
    """Find the conversation that the broker's log complains of, by playing each once more."""
    for protocol, data in reversed(recent):
        with contextlib.suppress(OSError):
            asyncio.run(_play(stage.ports[protocol], data, random.Random(0)))
        if found := stage.new_traces():
            encoded = base64.b64encode(data).decode()
            what = f"a bug in a conversation by {protocol}: {found[-1] if found else ''}"
            report.failures.append(Failure(what, found, f"python -m faults.fuzz.replay {protocol} {encoded}"))
            return
    _fail(assignment, report, "a bug in a conversation, which does not show when they are played one by one", traces)


def _as_history(recent: deque[tuple[str, bytes]]) -> list[str]:
    return [f"{protocol} {base64.b64encode(data).decode()}" for protocol, data in list(recent)[-_AT_ONCE * 2 :]]


def _fail(assignment: Assignment, report: Report, what: str, history: list[str]) -> None:
    report.failures.append(Failure(what, history, f"python -m faults fuzz --seed {assignment.seed} --minutes 2"))
