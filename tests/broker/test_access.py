"""Who may log in and what they may do, by RabbitMQ's rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import argon2
import pytest

from millpond.base import limits
from millpond.base.errors import AccessRefused, NotAllowed, NotFound, PreconditionFailed
from millpond.broker import access as access_module
from millpond.broker.access import (
    ADMINISTRATOR,
    ARGON2_LANES,
    ARGON2_MEMORY_KIB,
    ARGON2_PASSES,
    DEFAULT_HASH,
    UNIX_SOCKET,
    Access,
    Operation,
    User,
    is_loopback,
)
from millpond.catalog.catalog import Catalog
from millpond.catalog.rows import PermissionRow

HASH = DEFAULT_HASH


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    catalog = Catalog(None)
    catalog.open()
    yield catalog
    catalog.close()


@pytest.fixture
def access(catalog: Catalog) -> Access:
    """Knows guest, and alice, who may configure c..., write w... and read r... in "/"."""
    access = Access(catalog)
    access.create_default_user()
    access.put_user("alice", HASH)
    access.set_permission("alice", "/", "^c", "^w", "^r")
    return access


def allowed(access: Access, operation: Operation, name: str, kind: str = "queue", user: str = "alice") -> bool:
    try:
        access.check(user, "/", operation, kind, name)
    except AccessRefused:
        return False
    return True


class Hashes:
    """Counts the hashes that are computed, and with which costs, instead of computing them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[argon2.Parameters] = []
        verify = argon2.PasswordHasher.verify

        def counting(hasher: argon2.PasswordHasher, stored: str, password: bytes) -> bool:
            self.costs.append(argon2.extract_parameters(stored))
            return verify(hasher, stored, password)

        monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    return Hashes(monkeypatch)


# --- Logging in ----------------------------------------------------------------------------------------------------


def test_the_right_password_is_accepted_and_others_are_not(access: Access) -> None:
    access.set_password_hash("alice", access.hash_password("pässword".encode()))
    assert access.verify_password("alice", "pässword".encode())
    for wrong in (b"", b"p", b"guest", "Pässword".encode(), b"pa\0ssword", "pässword ".encode()):
        assert not access.verify_password("alice", wrong)


def test_every_hash_has_a_salt_of_its_own() -> None:
    assert Access.hash_password(b"x") != Access.hash_password(b"x")


def test_the_ready_made_hash_is_of_guest_and_has_the_present_costs() -> None:
    assert argon2.PasswordHasher().verify(DEFAULT_HASH, b"guest")
    assert argon2.extract_parameters(DEFAULT_HASH) == argon2.extract_parameters(Access.hash_password(b"x"))
    costs = argon2.extract_parameters(DEFAULT_HASH)
    assert (costs.type, costs.time_cost) == (argon2.Type.ID, ARGON2_PASSES)
    assert (costs.memory_cost, costs.parallelism) == (ARGON2_MEMORY_KIB, ARGON2_LANES)


def test_an_unknown_user_costs_the_same_hash_as_a_wrong_password(access: Access, hashes: Hashes) -> None:
    access.put_user("nopassword", None)
    # With the password of the hash that stands in, too: it must not open anything.
    for name in ("alice", "nobody", "nopassword", ""):
        for password in (b"wrong", b"guest") if name != "alice" else (b"wrong", b"wronger"):
            before = len(hashes.costs)
            assert not access.verify_password(name, password)
            assert len(hashes.costs) == before + 1
    assert len(set(map(str, hashes.costs))) == 1


def test_an_empty_password_opens_nothing(access: Access, hashes: Hashes) -> None:
    empty = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(b"")
    access.put_user("alice", empty)
    assert not access.verify_password("alice", b"")
    assert len(hashes.costs) == 1
    with pytest.raises(PreconditionFailed):
        access.hash_password(b"")


def test_a_password_beyond_the_limit_is_refused_without_work(access: Access, hashes: Hashes) -> None:
    long = b"x" * (limits.PASSWORD_BYTES_MAX + 1)
    assert not access.verify_password("alice", long)
    assert hashes.costs == []
    with pytest.raises(PreconditionFailed):
        access.hash_password(long)


def test_a_damaged_hash_opens_nothing(access: Access) -> None:
    access.put_user("alice", "$argon2id$damaged")
    assert not access.verify_password("alice", b"guest")


def test_a_second_login_is_recognized_without_a_hash(access: Access, hashes: Hashes) -> None:
    assert not access.is_known_login("alice", b"guest")
    assert access.verify_password("alice", b"guest")
    assert access.is_known_login("alice", b"guest")
    assert access.verify_password("alice", b"guest")
    assert len(hashes.costs) == 1


def test_the_first_login_of_the_default_user_is_recognized_without_a_hash(access: Access, hashes: Hashes) -> None:
    fresh = Catalog(None)
    fresh.open()
    access = Access(fresh)
    access.create_default_user()
    assert access.verify_password("guest", b"guest")
    assert hashes.costs == []
    fresh.close()


def test_the_default_user_and_password_are_settings(catalog: Catalog) -> None:
    access = Access(catalog)
    access.create_default_user("root", b"toor", "v")
    assert [user.name for user in access.list_users()] == ["root"]
    assert access.verify_password("root", b"toor")
    assert not access.verify_password("root", b"guest")
    access.check_vhost("root", "v")


@pytest.mark.parametrize(
    ("name", "password"), [("alice", b"gues"), ("alic", b"eguest"), ("aliceg", b"uest"), ("ALICE", b"guest")]
)
def test_only_the_same_name_and_password_are_recognized(access: Access, name: str, password: bytes) -> None:
    assert access.verify_password("alice", b"guest")
    assert not access.is_known_login(name, password)


def test_a_wrong_password_is_never_remembered(access: Access, hashes: Hashes) -> None:
    for _ in range(2):
        assert not access.verify_password("alice", b"wrong")
    assert len(hashes.costs) == 2


def test_a_changed_password_forgets_logins(access: Access) -> None:
    assert access.verify_password("alice", b"guest")
    access.set_password_hash("alice", access.hash_password(b"new"))
    assert not access.is_known_login("alice", b"guest")
    assert not access.verify_password("alice", b"guest")
    assert access.verify_password("alice", b"new")


def test_a_deleted_user_cannot_log_in_even_when_remembered(access: Access) -> None:
    assert access.verify_password("alice", b"guest")
    access.delete_user("alice")
    assert not access.is_known_login("alice", b"guest")
    assert not access.verify_password("alice", b"guest")


@pytest.mark.parametrize("change", ["password", "deleted"])
def test_a_change_while_the_hash_is_computed_wins(access: Access, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    matches = access_module._matches

    def changing_meanwhile(stored: str, password: bytes) -> bool:
        if change == "deleted":
            access.delete_user("alice")
        else:
            access.set_password_hash("alice", HASH.replace("$m=", "$m=1"))
        return matches(stored, password)

    monkeypatch.setattr(access_module, "_matches", changing_meanwhile)
    assert not access.verify_password("alice", b"guest")
    assert not access.is_known_login("alice", b"guest")


def test_remembered_logins_are_limited(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.base.limits.LOGINS_CACHED_MAX", 3)
    monkeypatch.setattr(access_module, "_matches", lambda _stored, _password: True)
    for password in (b"1", b"2", b"3", b"1", b"4"):
        assert access.verify_password("alice", password)
    known = [password for password in (b"1", b"2", b"3", b"4") if access.is_known_login("alice", password)]
    assert known == [b"1", b"3", b"4"]


def test_hashes_computed_at_once_are_limited(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.base.limits.PASSWORD_HASHES_AT_ONCE_MAX", 2)
    access = Access(catalog)
    lock = threading.Lock()
    two_inside = threading.Barrier(2, timeout=20)
    inside, inside_max = 0, 0

    def hashing(_stored: str, _password: bytes) -> bool:
        nonlocal inside, inside_max
        with lock:
            inside += 1
            inside_max = max(inside_max, inside)
        # Both places are taken before either is given back, so a third would be seen.
        two_inside.wait()
        with lock:
            inside -= 1
        two_inside.wait()
        return False

    monkeypatch.setattr(access_module, "_matches", hashing)
    threads = [threading.Thread(target=access.verify_password, args=("nobody", b"x")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside_max == 2


# --- Where from ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.255.0.3", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", UNIX_SOCKET]
)
def test_these_addresses_are_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "128.0.0.1", "0.0.0.0", "::", "::2", "::ffff:10.0.0.1", "::127.0.0.1", "localhost", "127.1", "", None],
)
def test_these_addresses_are_not(address: str | None) -> None:
    assert not is_loopback(address)


def test_guest_logs_in_from_this_machine_only(access: Access) -> None:
    access.check_address("guest", "127.0.0.1")
    for address in ("192.168.1.7", None):
        with pytest.raises(AccessRefused, match="user 'guest' can only connect via localhost"):
            access.check_address("guest", address)


def test_other_users_log_in_from_anywhere(access: Access) -> None:
    access.check_address("alice", "192.168.1.7")
    access.check_address("alice", None)


def test_who_is_held_to_this_machine_is_a_setting(catalog: Catalog) -> None:
    access = Access(catalog, loopback_users={"alice"})
    access.check_address("guest", "192.168.1.7")
    with pytest.raises(AccessRefused):
        access.check_address("alice", "192.168.1.7")


# --- Permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [Operation.CONFIGURE, Operation.WRITE, Operation.READ])
@pytest.mark.parametrize("first", ["c", "w", "r", "x"])
def test_each_operation_is_decided_by_its_own_pattern(access: Access, operation: Operation, first: str) -> None:
    assert allowed(access, operation, f"{first}-name") == operation.value.startswith(first)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (".*", "anything", True),
        (".*", "", True),
        ("", "anything", False),
        ("", "", True),
        ("^$", "anything", False),
        ("b", "abc", True),  # searched, not matched from the start
        ("^b", "abc", False),
        ("^abc$", "abc", True),
        ("^abc$", "abcd", False),
        ("^(a|b)\\.", "b.x", True),
        ("(?i)^ORDERS", "orders-1", True),
        ("^\\d+$", "42", True),
        ("^\\d+$", "\u0664\u0662", False),  # digits are ASCII, as in PCRE
        ("^.{2}$", "ab", True),
        ("^ü", "über", True),
        ("amq.default", "amqXdefault", True),
    ],
)
def test_a_pattern_is_searched_in_the_name(access: Access, pattern: str, name: str, matches: bool) -> None:
    access.set_permission("alice", "/", pattern, "", "")
    assert allowed(access, Operation.CONFIGURE, name) == matches


def test_the_default_exchange_is_called_amq_default(access: Access) -> None:
    assert not allowed(access, Operation.WRITE, "", "exchange")
    access.set_permission("alice", "/", "", "^amq\\.default$", "")
    assert allowed(access, Operation.WRITE, "", "exchange")
    assert allowed(access, Operation.WRITE, "amq.default", "exchange")
    assert not allowed(access, Operation.WRITE, "", "queue")


def test_refusals_have_rabbitmqs_text(access: Access) -> None:
    for operation, kind, name, text in (
        (Operation.CONFIGURE, "queue", "q", "configure access to queue 'q' in vhost '/' refused for user 'alice'"),
        (Operation.WRITE, "exchange", "e", "write access to exchange 'e' in vhost '/' refused for user 'alice'"),
        (
            Operation.WRITE,
            "exchange",
            "",
            "write access to exchange 'amq.default' in vhost '/' refused for user 'alice'",
        ),
        (Operation.READ, "queue", "q", "read access to queue 'q' in vhost '/' refused for user 'alice'"),
    ):
        # Once decided, and once remembered.
        for _ in range(2):
            with pytest.raises(AccessRefused) as refused:
                access.check("alice", "/", operation, kind, name)
            assert str(refused.value) == text


def test_a_vhost_is_open_to_those_who_have_permissions_in_it(access: Access) -> None:
    access.check_vhost("alice", "/")
    access.set_permission("alice", "empty", "", "", "")
    access.check_vhost("alice", "empty")
    with pytest.raises(NotAllowed) as refused:
        access.check_vhost("alice", "other")
    assert str(refused.value) == "access to vhost 'other' refused for user 'alice'"


def test_permissions_in_one_vhost_mean_nothing_in_another(access: Access) -> None:
    access.set_permission("alice", "other", ".*", ".*", ".*")
    assert not allowed(access, Operation.CONFIGURE, "x")


def test_administrators_have_no_permissions_by_their_tag(access: Access) -> None:
    access.put_user("root", HASH, (ADMINISTRATOR,))
    assert not access.has_vhost("root", "/")
    assert not allowed(access, Operation.READ, "q", user="root")


@pytest.mark.parametrize("change", ["set", "clear", "delete user", "forget vhost"])
def test_a_change_takes_effect_with_the_next_operation(access: Access, change: str) -> None:
    assert allowed(access, Operation.CONFIGURE, "c")
    version = access.version
    match change:
        case "set":
            access.set_permission("alice", "/", "^new", "", "")
        case "clear":
            access.clear_permission("alice", "/")
        case "delete user":
            access.delete_user("alice")
        case "forget vhost":
            access.forget_vhost("/")
    assert access.version > version
    assert not allowed(access, Operation.CONFIGURE, "c")


def test_remembered_decisions_are_limited(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.base.limits.ACCESS_DECISIONS_CACHED_MAX", 10)
    for number in range(100):
        assert allowed(access, Operation.CONFIGURE, f"c{number}")
        assert not allowed(access, Operation.CONFIGURE, f"x{number}")
        assert len(access._decisions) <= 10


@pytest.mark.parametrize(
    "pattern",
    ["(", "[", "*", "a{99999999999}", "(" * 1000, "x" * (limits.PATTERN_CHARACTERS_MAX + 1), "[[:alpha:]]", "\\"],
    ids=lambda pattern: pattern[:12],
)
@pytest.mark.parametrize("place", range(3))
def test_a_pattern_that_cannot_be_used_is_refused_and_changes_nothing(access: Access, pattern: str, place: int) -> None:
    patterns = [".*", ".*", ".*"]
    patterns[place] = pattern
    before = access.list_permissions()
    with pytest.raises(PreconditionFailed):
        access.set_permission("alice", "/", *patterns)
    assert access.list_permissions() == before


def test_a_stored_pattern_that_does_not_compile_any_more_matches_nothing(catalog: Catalog, access: Access) -> None:
    catalog.put_permission(PermissionRow("alice", "/", "(", ".*", ".*"))
    access.load(catalog.load())
    assert not allowed(access, Operation.CONFIGURE, "(")
    assert not allowed(access, Operation.CONFIGURE, "")
    assert allowed(access, Operation.WRITE, "x")


# --- Administration --------------------------------------------------------------------------------------------------


def test_the_default_user_may_do_anything_in_the_default_vhost(access: Access) -> None:
    assert access.user("guest") == User("guest", (ADMINISTRATOR,))
    access.check_vhost("guest", "/")
    for operation in (Operation.CONFIGURE, Operation.WRITE, Operation.READ):
        assert allowed(access, operation, "any", user="guest")
        assert allowed(access, operation, "", "exchange", user="guest")


def test_everything_is_there_again_after_a_restart(catalog: Catalog, access: Access) -> None:
    access.set_tags("alice", ["monitoring", "monitoring", "policymaker"])
    catalog.commit()
    again = Access(catalog)
    again.load(catalog.load())
    assert again.list_users() == [User("alice", ("monitoring", "policymaker")), User("guest", (ADMINISTRATOR,))]
    assert again.list_permissions() == access.list_permissions()
    assert again.verify_password("alice", b"guest")
    assert not allowed(again, Operation.READ, "x")


def test_what_is_deleted_stays_deleted_after_a_restart(catalog: Catalog, access: Access) -> None:
    access.delete_user("alice")
    access.clear_permission("guest", "/")
    catalog.commit()
    again = Access(catalog)
    again.load(catalog.load())
    assert [user.name for user in again.list_users()] == ["guest"]
    assert again.list_permissions() == []


def test_permissions_are_listed_by_user_and_by_vhost(access: Access) -> None:
    access.set_permission("alice", "b", "", "", "")
    assert [(row.user, row.vhost) for row in access.list_permissions()] == [
        ("alice", "/"),
        ("alice", "b"),
        ("guest", "/"),
    ]
    assert [row.vhost for row in access.list_permissions(user="alice")] == ["/", "b"]
    assert [row.user for row in access.list_permissions(vhost="/")] == ["alice", "guest"]
    assert access.list_permissions(user="alice", vhost="nowhere") == []


def test_changing_the_tags_keeps_the_password_and_the_other_way_round(access: Access) -> None:
    access.set_tags("alice", ["monitoring"])
    assert access.verify_password("alice", b"guest")
    access.set_password_hash("alice", None)
    assert access.user("alice").tags == ("monitoring",)
    assert not access.verify_password("alice", b"guest")


def test_unknown_users_are_not_found(access: Access) -> None:
    for action in (
        lambda: access.user("nobody"),
        lambda: access.delete_user("nobody"),
        lambda: access.set_tags("nobody", ()),
        lambda: access.set_password_hash("nobody", HASH),
        lambda: access.set_permission("nobody", "/", "", "", ""),
        lambda: access.clear_permission("nobody", "/"),
    ):
        with pytest.raises(NotFound, match="no user 'nobody'"):
            action()


@pytest.mark.parametrize("name", ["", "x" * 256, "ü" * 128])
def test_a_name_that_does_not_fit_is_refused(access: Access, name: str) -> None:
    with pytest.raises(PreconditionFailed):
        access.put_user(name, HASH)


def test_too_many_tags_are_refused(access: Access) -> None:
    access.put_user("many", HASH, [str(number) for number in range(limits.TAGS_PER_USER_MAX)])
    with pytest.raises(PreconditionFailed):
        access.put_user("many", HASH, [str(number) for number in range(limits.TAGS_PER_USER_MAX + 1)])


def test_a_password_passed_as_a_hash_is_neither_stored_nor_shown(access: Access) -> None:
    with pytest.raises(PreconditionFailed) as refused:
        access.put_user("bob", "hunter2")
    assert "hunter2" not in str(refused.value)
    assert [user.name for user in access.list_users()] == ["alice", "guest"]


def test_no_hash_is_in_what_is_shown(access: Access) -> None:
    shown = repr([access.list_users(), access._users, access.user("alice"), access.list_permissions()])
    assert "argon2" not in shown
