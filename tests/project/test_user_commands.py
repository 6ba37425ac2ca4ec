"""`millpond user` and `millpond permission`, on the data of a broker that does not run and through one that does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.base.filesystem import OsFilesystem
from millpond.broker.access import Access
from millpond.catalog.catalog import Catalog
from millpond.cli import run
from millpond.embedded import Broker
from millpond.server.data_directory import CATALOG, LOCK

Captured = pytest.CaptureFixture[str]
Command = Callable[..., int]


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """The data directory of a broker that has run once."""
    async with Broker(tmp_path / "pond"):
        pass
    return tmp_path / "pond"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    def run_with_input(*arguments: str, typed: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return run(arguments)

    return run_with_input


def _access(data: Path) -> tuple[Catalog, Access]:
    catalog = Catalog(data / CATALOG)
    catalog.open()
    access = Access(catalog)
    access.load(catalog.load())
    return catalog, access


def test_a_user_is_added_changed_and_deleted_while_the_broker_is_stopped(
    data: Path, command: Command, capsys: Captured
) -> None:
    where = ("--data", str(data))
    assert command("user", "add", "ann", "--tag", "monitoring", *where, typed="first\n") == 0
    assert command("permission", "set", "ann", "^ann-", ".*", "", *where) == 0
    assert command("user", "passwd", "ann", *where, typed="second\n") == 0
    catalog, access = _access(data)
    assert access.user("ann").tags == ("monitoring",)
    assert access.verify_password("ann", b"second")
    assert not access.verify_password("ann", b"first")
    catalog.close()
    capsys.readouterr()
    assert command("permission", "list", *where) == 0
    assert "ann\t/\t^ann-\t.*\t\n" in capsys.readouterr().out
    assert command("permission", "clear", "ann", *where) == 0
    assert command("permission", "list", *where) == 0
    assert "ann" not in capsys.readouterr().out
    assert command("user", "delete", "ann", *where) == 0
    assert command("user", "list", "--json", *where) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "guest", "tags": ["administrator"]}]


@pytest.mark.parametrize(
    ("arguments", "typed", "code", "text"),
    [
        (["user", "add", "guest"], "x\n", 65, "user 'guest' exists already"),
        (["user", "add", "ann"], "\n", 65, "the password is empty"),
        (["user", "delete", "ann"], "", 66, "no user 'ann'"),
        (["user", "passwd", "ann"], "x\n", 66, "no user 'ann'"),
        (["permission", "set", "ann", "", "", ""], "", 66, "no user 'ann'"),
        (["permission", "set", "guest", "", "", "", "--vhost", "v"], "", 66, "vhost 'v' not found"),
        (["permission", "set", "guest", "(", "", ""], "", 65, "invalid regular expression '('"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    data: Path, command: Command, capsys: Captured, arguments: list[str], typed: str, code: int, text: str
) -> None:
    assert command(*arguments, "--data", str(data), typed=typed) == code
    told = capsys.readouterr().err
    assert told.startswith(f"millpond: {text}")
    assert told.count("\n") == 1


def test_a_data_directory_that_another_process_uses_is_left_alone(
    data: Path, command: Command, capsys: Captured
) -> None:
    lock = OsFilesystem().lock(str(data / LOCK))
    try:
        assert command("user", "list", "--data", str(data)) == 75
    finally:
        lock.close()
    assert "is in use by process" in capsys.readouterr().err


def test_without_data_and_without_a_broker_that_is_what_is_told(
    tmp_path: Path, command: Command, capsys: Captured
) -> None:
    assert command("user", "list", "--data", str(tmp_path)) == 69
    assert command("status", "--data", str(tmp_path)) == 69
    assert "no broker answers" in capsys.readouterr().err
