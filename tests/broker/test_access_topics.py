"""Topic permissions: routing keys at topic exchanges, by RabbitMQ's rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from millpond.base import limits
from millpond.base.errors import AccessRefused, NotFound, PreconditionFailed
from millpond.broker.access import DEFAULT_HASH, Access, Operation
from millpond.catalog.catalog import Catalog
from millpond.catalog.rows import TopicPermissionRow


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    catalog = Catalog(None)
    catalog.open()
    yield catalog
    catalog.close()


@pytest.fixture
def access(catalog: Catalog) -> Access:
    access = Access(catalog)
    for name in ("alice", "a.b*", "bob"):
        access.put_user(name, DEFAULT_HASH)
    return access


def allowed(access: Access, key: str, operation: Operation = Operation.WRITE, user: str = "alice", **at: str) -> bool:
    try:
        access.check_topic(user, at.get("vhost", "/"), operation, at.get("exchange", "x"), key)
    except AccessRefused:
        return False
    return True


def test_without_a_row_every_key_is_allowed(access: Access) -> None:
    assert allowed(access, "anything")
    access.set_topic_permission("alice", "/", "x", "^a$", "")
    for at in ({"user": "bob"}, {"vhost": "v"}, {"exchange": "y"}):
        assert allowed(access, "anything", **at)


def test_a_row_says_what_may_be_written_and_read(access: Access) -> None:
    access.set_topic_permission("alice", "/", "x", "^w", "r$")
    assert allowed(access, "wax")
    assert not allowed(access, "r")
    assert allowed(access, "far", Operation.READ)
    assert not allowed(access, "w", Operation.READ)


def test_the_empty_pattern_matches_the_empty_key_only(access: Access) -> None:
    access.set_topic_permission("alice", "/", "x", "", ".*")
    assert allowed(access, "")
    assert not allowed(access, "a")


@pytest.mark.parametrize(
    ("user", "vhost", "pattern", "key", "matches"),
    [
        ("alice", "/", "^{username}$", "alice", True),
        ("alice", "/", "^{username}$", "alicex", False),
        ("a.b*", "/", "^{username}$", "a.b*", True),
        ("a.b*", "/", "^{username}$", "aXbbb", False),
        ("alice", "v.1", "^{vhost}-{username}-{username}$", "v.1-alice-alice", True),
        ("alice", "v.1", "^{vhost}", "vX1", False),
        # What stands for nothing here is text.
        ("alice", "/", "^{client_id}$", "{client_id}", True),
    ],
)
def test_variables_stand_for_names_and_not_for_patterns(
    access: Access, user: str, vhost: str, pattern: str, key: str, matches: bool
) -> None:
    access.set_topic_permission(user, vhost, "x", pattern, "")
    assert allowed(access, key, user=user, vhost=vhost) is matches


def test_names_may_make_a_pattern_longer_than_one_may_write(access: Access) -> None:
    name = "n" * 200
    access.put_user(name, None)
    access.set_topic_permission(name, "/", "x", "^" + "{username}" * 10 + "$", "")
    assert allowed(access, name * 10, user=name)


def test_refusals_have_rabbitmqs_text(access: Access) -> None:
    access.set_topic_permission("alice", "/", "x", "^a", "^a")
    with pytest.raises(AccessRefused) as refused:
        access.check_topic("alice", "/", Operation.READ, "x", "b.c")
    assert str(refused.value) == "read access to topic 'b.c' in exchange 'x' in vhost '/' refused for user 'alice'"


def test_changes_are_noticed(access: Access) -> None:
    versions = [access.version]

    def changed() -> None:
        assert access.version not in versions
        versions.append(access.version)

    assert allowed(access, "b")
    access.set_topic_permission("alice", "/", "x", "^a", "")
    changed()
    assert not allowed(access, "b")
    access.set_topic_permission("alice", "/", "x", "^b", "")
    changed()
    assert allowed(access, "b")
    access.set_topic_permission("alice", "/", "y", "", "")
    access.clear_topic_permissions("alice", "/", "x")
    assert allowed(access, "a")
    assert not allowed(access, "a", exchange="y")
    access.clear_topic_permissions("alice", "/")
    assert allowed(access, "a", exchange="y")


def test_remembered_decisions_are_limited(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACCESS_DECISIONS_CACHED_MAX", 10)
    access.set_topic_permission("alice", "/", "x", "^1", "")
    for number in range(100):
        assert allowed(access, str(number)) is str(number).startswith("1")
    assert len(access._topic_decisions) <= 10


def test_they_are_there_after_a_restart_and_go_with_user_and_vhost(catalog: Catalog, access: Access) -> None:
    rows = [
        TopicPermissionRow(user, vhost, exchange, "^{username}", "^b")
        for user in ("alice", "bob")
        for vhost in ("/", "v")
        for exchange in ("x", "y")
    ]
    for row in rows:
        access.set_topic_permission(row.user, row.vhost, row.exchange, row.write, row.read)
    restarted = Access(catalog)
    restarted.load(catalog.load())
    assert restarted.list_topic_permissions() == rows
    assert restarted.list_topic_permissions("alice", "v") == rows[2:4]
    assert not allowed(restarted, "x")
    restarted.delete_user("alice")
    catalog.delete_vhost("v")
    restarted.forget_vhost("v")
    assert restarted.list_topic_permissions() == rows[4:6]
    assert catalog.load().topic_permissions == rows[4:6]


def test_what_cannot_be_set_changes_nothing(access: Access) -> None:
    for write, read in (("(", ""), ("", "["), ("x" * 1025, ""), ("[[:alpha:]]", "")):
        with pytest.raises(PreconditionFailed):
            access.set_topic_permission("alice", "/", "x", write, read)
    with pytest.raises(NotFound):
        access.set_topic_permission("nobody", "/", "x", "", "")
    with pytest.raises(NotFound):
        access.clear_topic_permissions("nobody", "/")
    assert access.list_topic_permissions() == []


def test_any_permission_is_enough_to_ask_whether_something_is_there(access: Access) -> None:
    access.set_permission("alice", "/", "^c", "^w", "^r")
    for name in ("c", "w", "r"):
        access.check_any("alice", "/", "queue", name)
    with pytest.raises(AccessRefused) as refused:
        access.check_any("alice", "/", "queue", "x")
    assert str(refused.value) == "configure access to queue 'x' in vhost '/' refused for user 'alice'"
