"""What a target is: a decoder, what it may raise, and where to begin; and the judgement of one input."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
import traceback
import tracemalloc
import types
from collections.abc import Callable, Sequence
from typing import Final

from millpond.base.errors import MillpondError

# No input is larger than a few KiB. It includes what coverage costs.
SECONDS_MAX: Final = 1.0
# What an input may take in memory for each of its bytes. A small object of Python's has 64 bytes, and a byte may well
# stand for one in a list and another in a dict.
MEMORY_PER_BYTE: Final = 512
INPUT_BYTES_MAX: Final = 4096

# Decodes, checks what it can of the result, and returns something that shows it.
Work = Callable[[bytes], object]
Seeds = Callable[[], Sequence[bytes]]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """`refusals` are the errors that say that the input is wrong; whatever else is raised is a bug."""

    name: str
    work: Work
    refusals: tuple[type[BaseException], ...]
    seeds: Seeds
    # What any input may take, however small it is.
    memory_bytes: int
    # More of the processor's time than this is a hang.
    seconds: float


class Broken(Exception):
    """A promise that a decoder did not keep for an input. `where` tells one bug from another."""

    def __init__(self, what: str, where: str, history: list[str]) -> None:
        super().__init__(what)
        self.what: Final = what
        self.where: Final = where
        self.history: Final = history


class Hung(BaseException):
    """It takes too long. No `Exception`: nothing may take it for a mistake of its input's."""


TARGETS: Final[dict[str, Target]] = {}


def target(
    name: str,
    seeds: Seeds,
    *refusals: type[MillpondError] | type[ValueError],
    memory_bytes: int = 1 << 20,
    seconds: float = SECONDS_MAX,
) -> Callable[[Work], Work]:
    """Add a decoder to the table."""

    def add(work: Work) -> Work:
        assert name not in TARGETS
        TARGETS[name] = Target(name, work, refusals, seeds, memory_bytes, seconds)
        return work

    return add


def judge(one: Target, data: bytes) -> str:
    """What becomes of an input: what the decoder shows, or the name of its refusal. Raises Broken."""
    previous = signal.signal(signal.SIGVTALRM, _hang)
    try:
        return judge_within_time(one, data)
    finally:
        signal.signal(signal.SIGVTALRM, previous)


def watch_time() -> None:
    """Let `judge_within_time` end what hangs, from now on in this process."""
    signal.signal(signal.SIGVTALRM, _hang)


def judge_within_time(one: Target, data: bytes) -> str:
    """As `judge`, after `watch_time`."""
    signal.setitimer(signal.ITIMER_VIRTUAL, one.seconds)
    try:
        shown = one.work(data)
    except one.refusals as error:
        return type(error).__name__
    except (Exception, Hung) as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        raise _broken(error) from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return hashlib.sha256(repr(shown).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def judge_memory(one: Target, data: bytes) -> None:
    """Raises Broken for an input that takes more memory than is in proportion to it."""
    # What is made once, for the first input, is not this one's.
    _ignoring(one, data)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        _ignoring(one, data)
        taken = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    allowed = one.memory_bytes + MEMORY_PER_BYTE * len(data)
    if taken > allowed:
        raise Broken(f"{len(data)} bytes take {taken} bytes of memory, {allowed} are allowed", "memory", [])


def _ignoring(one: Target, data: bytes) -> None:
    with contextlib.suppress(one.refusals):
        one.work(data)


def _hang(_number: int, _frame: types.FrameType | None) -> None:
    raise Hung("it takes too long")


def _broken(error: BaseException) -> Broken:
    frames = traceback.extract_tb(error.__traceback__)
    # A hang is found wherever it happens to be looked for.
    last = frames[1] if isinstance(error, Hung) and len(frames) > 1 else frames[-1]
    history = "".join(traceback.format_exception(error)).splitlines()
    text = str(error)[:200]
    return Broken(
        f"{type(error).__name__}: {text}", f"{type(error).__name__} at {last.filename}:{last.lineno}", history
    )
