"""How long who fails to log in is kept waiting, and who is not."""

from __future__ import annotations

import pytest

from millpond.base.limits import (
    LOGIN_DELAY_MS,
    LOGIN_DELAY_MS_MAX,
    LOGIN_FAILURES_FORGOTTEN_MS,
    LOGIN_FAILURES_FREE_PER_ADDRESS,
    LOGIN_FAILURES_FREE_PER_USER,
    LOGIN_FAILURES_REMEMBERED_MAX,
)
from millpond.broker.failed_logins import FailedLogins

HERE, THERE = "192.0.2.1", "198.51.100.1"


@pytest.fixture
def failures() -> FailedLogins:
    return FailedLogins()


def fail(failures: FailedLogins, times: int, address: str = HERE, user: str = "ann", now_ms: int = 0) -> list[int]:
    return [failures.failed(address, user, now_ms) for _ in range(times)]


def test_a_few_failures_cost_nothing_and_then_each_costs_twice_the_last(failures: FailedLogins) -> None:
    assert fail(failures, LOGIN_FAILURES_FREE_PER_USER) == [0] * LOGIN_FAILURES_FREE_PER_USER
    assert failures.wait_ms(HERE, "ann", 0) == 0
    delays = fail(failures, 100)
    assert delays[:4] == [LOGIN_DELAY_MS, 2 * LOGIN_DELAY_MS, 4 * LOGIN_DELAY_MS, 8 * LOGIN_DELAY_MS]
    assert delays[-1] == LOGIN_DELAY_MS_MAX
    assert delays == sorted(delays)


def test_a_user_is_counted_from_all_addresses_together(failures: FailedLogins) -> None:
    delays = [failures.failed(f"192.0.2.{number}", "ann", 0) for number in range(20)]
    assert delays[LOGIN_FAILURES_FREE_PER_USER] == LOGIN_DELAY_MS
    assert delays[-1] == LOGIN_DELAY_MS_MAX


def test_an_address_is_counted_for_all_users_together(failures: FailedLogins) -> None:
    delays = [failures.failed(HERE, f"user-{number}", 0) for number in range(LOGIN_FAILURES_FREE_PER_ADDRESS + 2)]
    assert delays[-3:] == [0, LOGIN_DELAY_MS, 2 * LOGIN_DELAY_MS]


def test_many_at_once_are_looked_at_one_after_the_other(failures: FailedLogins) -> None:
    [*_, delay_ms] = fail(failures, LOGIN_FAILURES_FREE_PER_USER + 4)
    waits = [failures.wait_ms(HERE, "ann", 0) for _ in range(20)]
    in_turn = [wait for wait in waits if wait is not None]
    assert in_turn == [delay_ms * (number + 1) for number in range(len(in_turn))]
    assert in_turn[-1] <= LOGIN_DELAY_MS_MAX
    assert waits[len(in_turn) :] == [None] * (20 - len(in_turn)), "the others are refused unseen"
    assert failures.wait_ms(HERE, "ann", 10 * LOGIN_DELAY_MS_MAX) == 0, "the line is empty again"


def test_nobody_else_waits(failures: FailedLogins) -> None:
    fail(failures, 1_000)
    assert failures.wait_ms(HERE, "bob", 0) == 0, "another user at the same address"
    assert failures.wait_ms(THERE, "ann", 0) == 0, "the same user at another address"
    assert failures.failed(THERE, "bob", 0) == 0


def test_after_a_while_all_is_forgotten(failures: FailedLogins) -> None:
    fail(failures, 1_000)
    assert failures.failed(HERE, "ann", LOGIN_FAILURES_FORGOTTEN_MS) == 0
    assert failures.wait_ms(HERE, "ann", LOGIN_FAILURES_FORGOTTEN_MS) == 0


def test_who_goes_on_is_not_forgotten(failures: FailedLogins) -> None:
    fail(failures, 100)
    now_ms = 0
    for _ in range(5):
        now_ms += LOGIN_FAILURES_FORGOTTEN_MS - 1
        assert failures.failed(HERE, "ann", now_ms) == LOGIN_DELAY_MS_MAX


def test_what_is_remembered_is_bounded_and_the_latest_is_kept(failures: FailedLogins) -> None:
    for number in range(3 * LOGIN_FAILURES_REMEMBERED_MAX):
        failures.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "x" * 10_000 + str(number), 0)
        if number % 1_000 == 0:
            fail(failures, 1, THERE, "ann")
    assert failures.remembered() <= 4 * LOGIN_FAILURES_REMEMBERED_MAX
    assert failures.failed(THERE, "ann", 0) == LOGIN_DELAY_MS_MAX


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("unix", "192.0.2.1", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
    ],
)
def test_a_network_of_ipv6_is_one_place(failures: FailedLogins, one: str, other: str, is_same: bool) -> None:
    fail(failures, 100, one)
    assert (failures.wait_ms(other, "ann", 0) != 0) == is_same
