"""How groups are configured, under Kafka's names (IncrementalAlterConfigs of a resource GROUP).

Source: Apache Kafka, "Group Configs"; KIP-932, KIP-1240.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from millpond.base.errors import InvalidSetting
from millpond.base.limits import (
    SHARE_DELIVERIES_MAX,
    SHARE_LOCK_DURATION_MAX_MS,
    SHARE_LOCK_DURATION_MIN_MS,
    SHARE_LOCK_DURATION_MS,
    SHARE_RECORD_LOCKS_MAX,
)

RESET_EARLIEST: Final = "earliest"
RESET_LATEST: Final = "latest"
RESET_DURATION: Final = "by_duration:"

ISOLATION_UNCOMMITTED: Final = "read_uncommitted"
ISOLATION_COMMITTED: Final = "read_committed"

_ISOLATIONS: Final = (ISOLATION_COMMITTED, ISOLATION_UNCOMMITTED)

# Kafka's types of a configuration's values.
BOOLEAN: Final = 1
STRING: Final = 2
INT: Final = 3

_BOOLEANS: Final = {"true": True, "false": False}
_INT_MAX: Final = 0x7FFFFFFF

# ISO 8601, as Java's Duration reads it.
_DURATION: Final = re.compile(
    r"P(?:(?P<days>\d{1,9})D)?(?:T(?:(?P<hours>\d{1,9})H)?(?:(?P<minutes>\d{1,9})M)?"
    r"(?:(?P<seconds>\d{1,12})(?:\.(?P<fraction>\d{1,9}))?S)?)?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """One name: its type, default, and what its value may be."""

    name: str
    kind: int
    default: str
    least: int = 0
    most: int = _INT_MAX
    choices: tuple[str, ...] = ()

    def checked(self, value: str) -> str:
        """The value as it is kept. InvalidSetting."""
        value = value.strip()
        if self.kind == BOOLEAN:
            if value.lower() not in _BOOLEANS:
                raise self._invalid(value, "Expected value to be either true or false")
            return value.lower()
        if self.kind == INT:
            try:
                number = int(value)
            except ValueError:
                raise self._invalid(value, "Not a number of type INT") from None
            if not self.least <= number <= self.most:
                raise self._invalid(value, f"Value must be between {self.least} and {self.most}")
            return str(number)
        if self.name == AUTO_OFFSET_RESET:
            reset_age_ms(value)
        elif value not in self.choices:
            raise self._invalid(value, f"String must be one of: {', '.join(self.choices)}")
        return value

    def _invalid(self, value: str, why: str) -> InvalidSetting:
        return InvalidSetting(f"Invalid value {value} for configuration {self.name}: {why}")


AUTO_OFFSET_RESET: Final = "share.auto.offset.reset"
ISOLATION_LEVEL: Final = "share.isolation.level"
LOCK_DURATION: Final = "share.record.lock.duration.ms"
DELIVERY_COUNT_LIMIT: Final = "share.delivery.count.limit"
RECORD_LOCKS: Final = "share.partition.max.record.locks"
RENEW_ENABLE: Final = "share.renew.acknowledge.enable"
# Of a group's members. Where a group has none of its own, what the broker is configured with counts.
SHARE_SESSION_TIMEOUT: Final = "share.session.timeout.ms"
SHARE_HEARTBEAT_INTERVAL: Final = "share.heartbeat.interval.ms"
CONSUMER_SESSION_TIMEOUT: Final = "consumer.session.timeout.ms"
CONSUMER_HEARTBEAT_INTERVAL: Final = "consumer.heartbeat.interval.ms"

GROUP_CONFIGS: Final[dict[str, GroupConfig]] = {
    config.name: config
    for config in (
        GroupConfig(AUTO_OFFSET_RESET, STRING, RESET_LATEST),
        GroupConfig(ISOLATION_LEVEL, STRING, ISOLATION_UNCOMMITTED, choices=_ISOLATIONS),
        GroupConfig(
            LOCK_DURATION, INT, str(SHARE_LOCK_DURATION_MS), SHARE_LOCK_DURATION_MIN_MS, SHARE_LOCK_DURATION_MAX_MS
        ),
        GroupConfig(DELIVERY_COUNT_LIMIT, INT, str(SHARE_DELIVERIES_MAX), 2, 10),
        GroupConfig(RECORD_LOCKS, INT, str(SHARE_RECORD_LOCKS_MAX), 100, 4_000),
        GroupConfig(RENEW_ENABLE, BOOLEAN, "true"),
        GroupConfig(SHARE_SESSION_TIMEOUT, INT, "45000", 45_000, 60_000),
        GroupConfig(SHARE_HEARTBEAT_INTERVAL, INT, "5000", 5_000, 15_000),
        GroupConfig(CONSUMER_SESSION_TIMEOUT, INT, "45000", 45_000, 60_000),
        GroupConfig(CONSUMER_HEARTBEAT_INTERVAL, INT, "5000", 5_000, 15_000),
    )
}


def group_configs(lock_duration_min_ms: int, lock_duration_max_ms: int) -> dict[str, GroupConfig]:
    """What groups may be configured with where the operator bounds how long a record stays in a consumer's hands."""
    lock_duration = replace(GROUP_CONFIGS[LOCK_DURATION], least=lock_duration_min_ms, most=lock_duration_max_ms)
    return {**GROUP_CONFIGS, LOCK_DURATION: lock_duration}


def checked_group_config(name: str, value: str | None, known: Mapping[str, GroupConfig] = GROUP_CONFIGS) -> str:
    """The value as it is kept. InvalidSetting where there is no such name, or it cannot have this value."""
    config = known.get(name)
    if config is None:
        raise InvalidSetting(f"Unknown group config name: {name}")
    if value is None:
        raise InvalidSetting(f"Invalid value null for configuration {name}")
    return config.checked(value)


def reset_age_ms(value: str) -> int:
    """How long before now a group begins: 0 for the end, -1 for the beginning. InvalidSetting."""
    if value == RESET_LATEST:
        return 0
    if value == RESET_EARLIEST:
        return -1
    if value.startswith(RESET_DURATION):
        found = _DURATION.fullmatch(value[len(RESET_DURATION) :])
        if found is not None and any(found.groupdict().values()):
            parts = {name: int(part) for name, part in found.groupdict().items() if part and name != "fraction"}
            seconds = parts.get("days", 0) * 86_400 + parts.get("hours", 0) * 3_600 + parts.get("minutes", 0) * 60
            fraction = (found["fraction"] or "")[:3].ljust(3, "0")
            return (seconds + parts.get("seconds", 0)) * 1_000 + int(fraction)
    raise InvalidSetting(
        f"Invalid value {value} for configuration {AUTO_OFFSET_RESET}: must be 'earliest', 'latest' or of the format "
        "'by_duration:PnDTnHnMn.nS'"
    )


class ShareSettings:
    """What a group's configuration says of its deliveries."""

    def __init__(self, configs: Mapping[str, str]) -> None:
        def value(name: str) -> str:
            return configs.get(name, GROUP_CONFIGS[name].default)

        self.reset: Final = value(AUTO_OFFSET_RESET)
        self.is_committed_only: Final = value(ISOLATION_LEVEL) == ISOLATION_COMMITTED
        self.lock_ms: Final = int(value(LOCK_DURATION))
        self.deliveries_max: Final = int(value(DELIVERY_COUNT_LIMIT))
        self.locks_max: Final = int(value(RECORD_LOCKS))
        self.renews: Final = _BOOLEANS[value(RENEW_ENABLE)]


DEFAULTS: Final = ShareSettings({})
