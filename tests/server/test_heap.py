"""Memory that is free is given back to the system."""

from __future__ import annotations

from collections.abc import Callable

from millpond.server.heap import KEPT_BYTES_MAX, Heap, give_back, resident_bytes


class Process:
    def __init__(self) -> None:
        self.resident = 100 << 20
        self.asked: list[tuple[Callable[[], object], Callable[[object], None]]] = []
        self.heap = Heap(lambda task, done: self.asked.append((task, done)), lambda: self.resident, self.give_back)

    def give_back(self) -> None:
        self.resident = 110 << 20


def test_it_is_given_back_on_a_thread_when_there_is_much_more_than_there_was() -> None:
    process = Process()
    process.heap.look()
    process.resident += KEPT_BYTES_MAX - 1
    process.heap.look()
    assert not process.asked
    process.resident += 1
    process.heap.look()
    process.heap.look()
    [(task, done)] = process.asked
    done(task())
    process.heap.look()
    assert len(process.asked) == 1
    process.resident += KEPT_BYTES_MAX
    process.heap.look()
    assert len(process.asked) == 2


def test_the_system_is_asked() -> None:
    assert resident_bytes() >= 0
    give_back()
