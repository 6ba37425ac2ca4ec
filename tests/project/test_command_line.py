"""The command line's contract: what scripts depend on."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from millpond import __version__
from millpond.cli import run
from tests.support.broker_process import BrokerProcess
from tests.support.waiting import eventually

Captured = pytest.CaptureFixture[str]


def _told(capsys: Captured) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_version_is_shown(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"millpond {__version__}\n"


def test_every_setting_but_secrets_is_an_option_of_serve(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--data", "--memory", "--amqp", "--amqps", "--ready-file", "--memory-budget", "--log-format"):
        assert option in shown
    assert "--default-password" not in shown


def test_check_config_says_that_the_settings_are_valid_and_starts_nothing(capsys: Captured, tmp_path: Path) -> None:
    assert run(["serve", "--check-config", "--data", "somewhere", "--amqp", "127.0.0.1:0"]) == 0
    assert capsys.readouterr().out == "The settings are valid.\n"
    assert list(tmp_path.iterdir()) == []


def test_check_config_names_what_is_wrong_with_its_place(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "pond.toml").write_text("\nmemory_budget = 'plenty'\n")
    assert run(["serve", "--check-config", "--config", "pond.toml"]) == 78
    assert _told(capsys).startswith("millpond: pond.toml:2: memory_budget: 'plenty': ")


def test_check_config_looks_at_the_certificates(capsys: Captured) -> None:
    options = ["--amqps", "127.0.0.1:0", "--tls-certificate", "absent.pem", "--tls-key", "absent.key"]
    assert run(["serve", "--check-config", *options]) == 78
    assert _told(capsys) == "millpond: tls_certificate: absent.pem cannot be read"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing command."),
        (["serve", "--ampq", "off"], "No such option: --ampq"),
        (["dance"], "No such command 'dance'."),
        (["consume"], "Missing argument 'queue'."),
        (["publish", "--header", "nonsense", "body"], "'nonsense' is not a header: write NAME=VALUE"),
    ],
)
def test_a_command_line_that_is_not_valid_is_told_in_one_line(
    arguments: list[str], text: str, capsys: Captured
) -> None:
    assert run(arguments) == 64
    assert text in _told(capsys)


def test_an_address_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = subprocess.run(
            [sys.executable, "-m", "millpond", "serve", "--memory", "--amqp", address, "--admin", "off"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 71
    assert ended.stderr == f"millpond: amqp: {address} is in use by another program\n"


def test_a_second_broker_on_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "pond") as process:
        command = [sys.executable, "-m", "millpond", "serve", "--data", str(process.data)]
        ended = subprocess.run(
            [*command, "--amqp", "127.0.0.1:0", "--admin", "off"], capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 75
        assert ended.stderr == f"millpond: the data directory {process.data} is in use by process {process.pid}\n"


def test_the_ready_file_says_who_listens_where_and_goes_with_the_broker(tmp_path: Path) -> None:
    ready = tmp_path / "pond" / "ready.json"
    with BrokerProcess(tmp_path / "pond") as process:
        facts = json.loads(ready.read_text())
        assert facts == {
            "pid": process.pid,
            "listeners": {"amqp": f"127.0.0.1:{process.port}"},
            "data": str(process.data),
        }
        with socket.create_connection(("127.0.0.1", process.port)):
            assert process.terminate() == 0
        assert not ready.exists()
        assert [path.name for path in ready.parent.iterdir() if "partial" in path.name] == []


def test_a_broker_in_memory_writes_nothing(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "pond", arguments=["--memory"]) as process:
        assert not process.data.exists()
        assert json.loads((tmp_path / "pond" / "ready.json").read_text())["data"] is None


def test_the_logs_of_a_broker_whose_output_is_no_terminal_are_json(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "pond", arguments=["--memory"]) as process:
        lines = eventually(lambda: [json.loads(line) for line in process.log.splitlines()], "the broker logs")
        ready = next(line for line in lines if line["event"] == "ready")
        assert ready["listeners"] == process.listeners


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_broker_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with BrokerProcess(tmp_path / "pond", arguments=["--memory", "--welcome"]) as process:
        assert process.end(number) == 0
        assert "channel.basic_publish" in process.log
