"""Logins that have failed, and how long those who try again are kept waiting.

Two counts grow with each failure, that of the address and that of the user, and are forgotten when nothing has failed
for a while. Beyond a few failures each further one doubles how long its refusal is withheld, up to a limit. So that
nothing is won by many connections at once, logins of one user from one address, of which some have failed, are looked
at one after the other, at the pace at which they are refused. What is right is never delayed by the failures of others:
not by those of other users from the same address, nor by those of the same user from other addresses.

What is remembered is bounded, by forgetting what has been quiet for longest. Reads no clock: the time is passed in.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from millpond.base.limits import (
    LOGIN_DELAY_MS,
    LOGIN_DELAY_MS_MAX,
    LOGIN_FAILURES_FORGOTTEN_MS,
    LOGIN_FAILURES_FREE_PER_ADDRESS,
    LOGIN_FAILURES_FREE_PER_USER,
    LOGIN_FAILURES_REMEMBERED_MAX,
    NAME_BYTES_MAX,
)

# An IPv6 client usually has all addresses of such a network to choose from.
_IPV6_NETWORK_BITS: Final = 64


class FailedLogins:
    """All failures of a broker, whatever the protocol. Belongs on the event loop's thread."""

    def __init__(self) -> None:
        self._addresses: Final = _Counts(LOGIN_FAILURES_FREE_PER_ADDRESS)
        self._users: Final = _Counts(LOGIN_FAILURES_FREE_PER_USER)
        self._pairs: Final = _Counts(LOGIN_FAILURES_FREE_PER_USER)
        # (address, user) -> when the next login is looked at.
        self._free_ms: Final[OrderedDict[tuple[str, str], int]] = OrderedDict()

    def wait_ms(self, address: str | None, user: str, now_ms: int) -> int | None:
        """How long a login is to wait before its password is looked at; None where too many wait already, so that it
        is to be refused unseen."""
        place, name = _place(address), _name(user)
        free_ms = max(self._free_ms.get((place, name), 0), now_ms)
        if free_ms - now_ms > LOGIN_DELAY_MS_MAX:
            return None
        if free_ms > now_ms or self._pairs.is_used_up(f"{place} {name}", now_ms):
            # Whoever comes meanwhile comes after this one.
            self._look_next(place, name, free_ms + max(LOGIN_DELAY_MS, self._delay_ms(place, name, now_ms)))
        return free_ms - now_ms

    def failed(self, address: str | None, user: str, now_ms: int) -> int:
        """A login has failed. Returns for how long its refusal is to be withheld."""
        place, name = _place(address), _name(user)
        self._addresses.add(place, now_ms)
        self._users.add(name, now_ms)
        self._pairs.add(f"{place} {name}", now_ms)
        delay_ms = self._delay_ms(place, name, now_ms)
        if delay_ms > 0:
            self._look_next(place, name, now_ms + delay_ms)
        return delay_ms

    def remembered(self) -> int:
        """How many things are remembered: four times LOGIN_FAILURES_REMEMBERED_MAX at most."""
        counts = (self._addresses, self._users, self._pairs)
        return sum(len(one.known) for one in counts) + len(self._free_ms)

    def _look_next(self, place: str, name: str, at_ms: int) -> None:
        key = (place, name)
        self._free_ms[key] = max(self._free_ms.get(key, 0), at_ms)
        self._free_ms.move_to_end(key)
        if len(self._free_ms) > LOGIN_FAILURES_REMEMBERED_MAX:
            self._free_ms.popitem(last=False)

    def _delay_ms(self, place: str, name: str, now_ms: int) -> int:
        return max(self._addresses.delay_ms(place, now_ms), self._users.delay_ms(name, now_ms))


class _Counts:
    """How often something has failed, by a name, of which the first `free` times have no consequence."""

    def __init__(self, free: int) -> None:
        self._free: Final = free
        # (failures, time of the last one), what has failed last at the end.
        self.known: Final[OrderedDict[str, tuple[int, int]]] = OrderedDict()

    def add(self, name: str, now_ms: int) -> None:
        self.known[name] = (self._failures(name, now_ms) + 1, now_ms)
        self.known.move_to_end(name)
        if len(self.known) > LOGIN_FAILURES_REMEMBERED_MAX:
            self.known.popitem(last=False)

    def delay_ms(self, name: str, now_ms: int) -> int:
        beyond = self._failures(name, now_ms) - self._free
        # Shifting without a bound would make numbers of thousands of digits.
        return min(LOGIN_DELAY_MS << min(beyond - 1, 16), LOGIN_DELAY_MS_MAX) if beyond > 0 else 0

    def is_used_up(self, name: str, now_ms: int) -> bool:
        """Whether the next failure has a consequence."""
        return self._failures(name, now_ms) >= self._free

    def _failures(self, name: str, now_ms: int) -> int:
        failures, last_ms = self.known.get(name, (0, now_ms))
        return failures if now_ms - last_ms < LOGIN_FAILURES_FORGOTTEN_MS else 0


def _place(address: str | None) -> str:
    """The address; of IPv6 the network."""
    if address is None or ":" not in address:
        return address or ""
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return address[:NAME_BYTES_MAX]
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{int(ip) >> (128 - _IPV6_NETWORK_BITS):x}"


def _name(user: str) -> str:
    """Names are what clients send: no user has a longer one than this."""
    return user[: NAME_BYTES_MAX + 1]
