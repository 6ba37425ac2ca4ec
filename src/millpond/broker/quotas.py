"""Kafka's client quotas: how many bytes a second users and clients may produce and fetch.

A quota is of an entity: a user, a client id, or both, each by its name or for all that have none of their own (the
default, None here). The most special one counts, in Kafka's order:

    user and client, user and default client, user,
    default user and client, default user and default client, default user,
    client, default client

All connections of what the quota is of share it. The rate is measured over eleven samples of a second, as in Kafka;
whoever exceeds it is to wait until it would not be exceeded.

Times are monotonic. Quotas that are kept but do nothing are in `STORED_ONLY`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from millpond.base import limits
from millpond.base.errors import LimitExceeded, PreconditionFailed
from millpond.catalog.catalog import Catalog
from millpond.catalog.rows import QuotaRow

USER: Final = "user"
CLIENT: Final = "client-id"
PRODUCER: Final = "producer_byte_rate"
CONSUMER: Final = "consumer_byte_rate"
STORED_ONLY: Final = ("request_percentage", "controller_mutation_rate")
# Those that are whole numbers, and the others.
NAMES: Final = (PRODUCER, CONSUMER, *STORED_ONLY)

SAMPLE_MS: Final = 1_000
SAMPLES: Final = 11

# What a quota is of: name, or None for the default, by USER and CLIENT.
Entity = Mapping[str, str | None]
_Key = tuple[tuple[str, str | None], ...]


class ClientQuotas:
    """All quotas of a broker, and how much of them is used."""

    def __init__(self, catalog: Catalog) -> None:
        # Nobody asks further where there are none.
        self.is_set = False
        # For operators: how often somebody was made to wait, and for how long together, by the quota's name.
        self.throttled: Final[dict[str, int]] = {}
        self.throttled_ms: Final[dict[str, int]] = {}
        self._catalog: Final = catalog
        self._quotas: Final[dict[_Key, dict[str, float]]] = {}
        # By the quota's name, user and client id: the quota, and whose use of it is measured together.
        self._found: Final[dict[tuple[str, str, str], tuple[float, _Window] | None]] = {}
        self._windows: Final[dict[tuple[str, str, str], _Window]] = {}

    def load(self, rows: Iterable[QuotaRow]) -> None:
        """Take over what the catalog holds."""
        self._quotas.clear()
        for row in rows:
            self._quotas.setdefault(_key(row.entity), {})[row.name] = float(row.value)
        self._changed()

    def items(self) -> list[tuple[dict[str, str | None], dict[str, float]]]:
        """All entities that have quotas, with these."""
        return [(dict(key), dict(quotas)) for key, quotas in self._quotas.items()]

    def check(self, entity: Entity, changes: Mapping[str, float | None]) -> None:
        """Raises PreconditionFailed for what `alter` would refuse, in Kafka's words; LimitExceeded for too many."""
        if not entity:
            raise PreconditionFailed("Invalid empty client quota entity")
        for kind, name in entity.items():
            if kind not in {USER, CLIENT}:
                raise PreconditionFailed(f"Unhandled client quota entity type: {kind[:80]}")
            if name is not None and not 0 < len(name.encode(errors="surrogatepass")) <= limits.NAME_BYTES_MAX:
                raise PreconditionFailed(f"Empty {kind} not supported, nor one that is longer than a name")
        for quota, value in changes.items():
            if quota not in NAMES:
                raise PreconditionFailed(f"Invalid configuration key {quota[:80]}")
            if value is None:
                continue
            if not math.isfinite(value) or value <= 0:
                raise PreconditionFailed(f"Quota {quota} must be greater than 0")
            if quota not in STORED_ONLY and (value >= 2**63 or abs(value % 1.0) > 1e-6):
                raise PreconditionFailed(f"{quota} cannot be a fractional value, or one of more than 63 bits.")
        if _key(entity) not in self._quotas and len(self._quotas) >= limits.QUOTA_ENTITIES_MAX:
            raise LimitExceeded(f"there are quotas of {limits.QUOTA_ENTITIES_MAX} entities already")

    def alter(self, entity: Entity, changes: Mapping[str, float | None]) -> None:
        """Set quotas, or take them away where the value is None. Raises as `check` does."""
        self.check(entity, changes)
        key = _key(entity)
        quotas = self._quotas.setdefault(key, {})
        for quota, value in changes.items():
            if value is not None:
                self._catalog.put_quota(QuotaRow(dict(key), quota, float(value)))
                quotas[quota] = float(value)
            elif quota in quotas:
                self._catalog.delete_quota(dict(key), quota)
                del quotas[quota]
        if not quotas:
            del self._quotas[key]
        self._changed()

    def _changed(self) -> None:
        self.is_set = bool(self._quotas)
        self._found.clear()

    # --- Use --------------------------------------------------------------------------------------------------------

    def produced(self, user: str, client: str, size: int, now_ms: int) -> int:
        """So many bytes have been produced: how long the client is to wait now, in ms."""
        found = self._quota(PRODUCER, user, client)
        if found is None:
            return 0
        quota, window = found
        window.record(size, now_ms)
        return self._throttled(PRODUCER, window.excess_ms(quota, now_ms))

    def fetching(self, user: str, client: str, size: int, now_ms: int) -> int:
        """So many bytes are to be fetched: 0 where they may be, otherwise how long the client is to wait first."""
        found = self._quota(CONSUMER, user, client)
        if found is None:
            return 0
        quota, window = found
        is_first = window.used(now_ms) == 0
        window.record(size, now_ms)
        wait_ms = window.excess_ms(quota, now_ms)
        if wait_ms == 0 or is_first:
            # What alone is more than the quota comes through once nothing else has for long.
            return 0
        window.take_back(size)
        return self._throttled(CONSUMER, wait_ms)

    def fetched(self, user: str, client: str, size: int, now_ms: int) -> None:
        """So many bytes have been fetched, and cannot be taken back."""
        found = self._quota(CONSUMER, user, client)
        if found is not None:
            found[1].record(size, now_ms)

    def fetch_bytes_max(self, user: str, client: str) -> int:
        """What one fetch may bring without exceeding the quota by itself; -1 for any size."""
        found = self._quota(CONSUMER, user, client)
        return -1 if found is None else int(min(found[0] * (SAMPLES - 1), 2**62))

    def _throttled(self, name: str, wait_ms: int) -> int:
        if wait_ms > 0:
            self.throttled[name] = self.throttled.get(name, 0) + 1
            self.throttled_ms[name] = self.throttled_ms.get(name, 0) + wait_ms
        return wait_ms

    def _quota(self, name: str, user: str, client: str) -> tuple[float, _Window] | None:
        asked = (name, user, client)
        try:
            return self._found[asked]
        except KeyError:
            if len(self._found) >= limits.QUOTA_CLIENTS_MAX:
                self._found.clear()
                self._windows.clear()
            found = self._found[asked] = self._find(name, user, client)
            return found

    def _find(self, name: str, user: str, client: str) -> tuple[float, _Window] | None:
        for entity, of_user, of_client in _entities(user, client):
            quota = self._quotas.get(_key(entity), {}).get(name)
            if quota is not None:
                measured = (name, user if of_user else "", client if of_client else "")
                return quota, self._windows.setdefault(measured, _Window())
        return None


def _entities(user: str, client: str) -> Iterable[tuple[dict[str, str | None], bool, bool]]:
    """The entities whose quota may count for a client, the most special first, and of what its use is measured."""
    for named in (user, None):
        yield {USER: named, CLIENT: client}, True, True
        yield {USER: named, CLIENT: None}, True, True
        yield {USER: named}, True, False
    yield {CLIENT: client}, False, True
    yield {CLIENT: None}, False, True


def _key(entity: Entity) -> _Key:
    return tuple(sorted(entity.items(), key=lambda item: item[0]))


class _Window:
    """How much was used in the last seconds."""

    __slots__ = ("_samples", "_total")

    def __init__(self) -> None:
        # When each began, and how much there was in it.
        self._samples: Final[deque[list[int]]] = deque()
        self._total = 0

    def used(self, now_ms: int) -> int:
        samples = self._samples
        while samples and samples[0][0] <= now_ms - SAMPLES * SAMPLE_MS:
            self._total -= samples.popleft()[1]
        return self._total

    def record(self, size: int, now_ms: int) -> None:
        self.used(now_ms)
        if not self._samples or self._samples[-1][0] <= now_ms - SAMPLE_MS:
            self._samples.append([now_ms, 0])
        self._samples[-1][1] += size
        self._total += size

    def take_back(self, size: int) -> None:
        """What was recorded last is not used."""
        self._samples[-1][1] -= size
        self._total -= size

    def excess_ms(self, quota: float, now_ms: int) -> int:
        """How long it takes until what was used is no more than the quota."""
        elapsed_ms = now_ms - self._samples[0][0]
        # What has just begun is measured as if it had gone on for long.
        elapsed_ms += max(0, SAMPLES - 1 - elapsed_ms // SAMPLE_MS) * SAMPLE_MS
        wait_ms = self._total * 1000 / quota - elapsed_ms
        return min(math.ceil(wait_ms), limits.QUOTA_WAIT_MS_MAX) if wait_ms > 0 else 0
