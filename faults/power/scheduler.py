"""Threads that take turns, in an order drawn from a seed.

Each thread of the broker's is a greenlet. One runs at a time, and only until it is about to do something that others
could notice: a call of the file system, or a wait. Then the event loop, which is the test, decides who goes on. So
every order of such steps can come about, and each comes about again with its seed.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from millpond.base.threads import Threads

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# So many steps without an end mean that something waits for ever.
STEPS_MAX = 200_000


class Task:
    """A thread: what it runs, and what it waits for."""

    def __init__(self, name: str, run: Callable[[], None], scheduler: Scheduler) -> None:
        self.name = name
        self.ready: Callable[[], bool] = _always
        self.greenlet: greenlet = greenlet(run, scheduler.loop)


class Scheduler:
    """The threads of one life of a broker. Whoever makes it is the event loop."""

    def __init__(self, choose: random.Random, note: Callable[[str], None]) -> None:
        self.loop = getcurrent()
        self.steps = 0
        self._choose = choose
        self._note = note
        self._tasks: list[Task] = []
        self._running: Task | None = None

    @property
    def is_loop(self) -> bool:
        """Whether it is the event loop that asks, and none of the threads."""
        return self._running is None

    def start(self, name: str, run: Callable[[], None]) -> Task:
        task = Task(name, run, self)
        self._tasks.append(task)
        return task

    def pause(self, what: str) -> None:
        """In a thread: let others go on."""
        if self._running is not None:
            self._note(f"{self._running.name}: {what}")
            self.loop.switch()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until it is so. The event loop has the threads run meanwhile."""
        task = self._running
        if task is None:
            while not ready():
                if not self.step():
                    raise AssertionError("the event loop waits for what never comes")
            return
        while not ready():
            task.ready = ready
            self.loop.switch()
        task.ready = _always

    def step(self) -> bool:
        """Have one thread do its next step; False where all of them wait."""
        ready = [task for task in self._tasks if task.ready()]
        if not ready:
            return False
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise AssertionError("a life does not come to its end")
        task = self._running = ready[0] if len(ready) == 1 else self._choose.choice(ready)
        try:
            task.greenlet.switch()
        finally:
            self._running = None
        if task.greenlet.dead:
            self._tasks.remove(task)
        return True

    def is_over(self, task: Task) -> bool:
        return bool(task.greenlet.dead)

    def end(self) -> None:
        """No thread does anything more, wherever it is."""
        for task in self._tasks:
            self._running = task
            task.greenlet.throw(GreenletExit)
        self._running = None
        self._tasks = []


class SimulatedThreads(Threads):
    """The threads of one life, for all that asks its file system for them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def start(self, name: str, run: Callable[[], None]) -> Callable[[], None]:
        scheduler = self.scheduler
        task = scheduler.start(name.removeprefix("millpond-"), run)
        return lambda: scheduler.wait(lambda: scheduler.is_over(task))

    def executor(self, name: str) -> Executor:
        return _Executor(self.scheduler, name.removeprefix("millpond-"))

    def queue(self) -> SimpleQueue[Any]:
        return _Queue(self.scheduler)

    def event(self) -> threading.Event:
        return _Event(self.scheduler)

    def guard(self) -> AbstractContextManager[Any]:
        return _Guard(self.scheduler)


class _Queue(SimpleQueue[Any]):
    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            self._scheduler.wait(lambda: not self.empty())
        return super().get(block=False)

    def get_nowait(self) -> Any:
        if self.empty():
            raise Empty
        return super().get(block=False)


class _Event(threading.Event):
    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            self._scheduler.wait(self.is_set)
        else:
            self._scheduler.pause("wait")
        return self.is_set()


class _Guard(AbstractContextManager[Any]):
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_free = True

    def __enter__(self) -> None:
        if not self._is_free:
            self._scheduler.wait(lambda: self._is_free)
        self._is_free = False

    def __exit__(self, *_error: object) -> None:
        self._is_free = True


class _Future(Future[Any]):
    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def result(self, timeout: float | None = None) -> Any:
        self._scheduler.wait(self.done)
        return super().result(0)


class _Executor(Executor):
    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self._due: deque[tuple[_Future, Callable[[], Any]]] = deque()
        self._is_busy = False
        self._is_over = False
        self._task = scheduler.start(name, self._run)
        self._task.ready = self._has_work

    def submit(
        self, task: Callable[Parameters, Result], /, *values: Parameters.args, **named: Parameters.kwargs
    ) -> Future[Result]:
        assert not self._is_over
        future = _Future(self._scheduler)
        self._due.append((future, lambda: task(*values, **named)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_over = True
        while cancel_futures and self._due:
            self._due.popleft()[0].cancel()
        self._scheduler.wait(lambda: self._scheduler.is_over(self._task))

    def _has_work(self) -> bool:
        return bool(self._due) or self._is_over

    def _run(self) -> None:
        while True:
            self._scheduler.wait(self._has_work)
            if not self._due:
                return
            future, task = self._due.popleft()
            future.set_running_or_notify_cancel()
            try:
                result = task()
            except GreenletExit:
                raise
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)
            else:
                future.set_result(result)
                del result


def _always() -> bool:
    return True
