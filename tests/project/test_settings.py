"""Settings: where they come from, which of them wins, and how what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.errors import ConfigurationError
from millpond.base.limits import GIB, MIB
from millpond.config import ListenAddress, Settings, load


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "millpond.toml"


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml.write_text("heartbeat_s = 1\nframe_max = 5000\nchannel_max = 10\n")
    monkeypatch.setenv("MILLPOND_HEARTBEAT_S", "2")
    monkeypatch.setenv("MILLPOND_FRAME_MAX", "6000")
    settings = load({"heartbeat_s": "3"}, toml)
    assert (settings.heartbeat_s, settings.frame_max, settings.channel_max) == (3, 6000, 10)
    assert settings.amqp == ListenAddress("127.0.0.1", 5672)


def test_the_environment_may_name_the_file(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text('admin = "off"\n')
    monkeypatch.setenv("MILLPOND_CONFIG", str(toml))
    assert load({}).admin is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().frame_max = 1


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 * MIB), ("2GiB", 2 * GIB), ("2000000", 2_000_000), ("64 MB", 64_000_000)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert load({"memory_budget": text}).memory_budget == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:5672", ListenAddress("0.0.0.0", 5672)),
        ("localhost:0", ListenAddress("localhost", 0)),
        ("[::1]:5672", ListenAddress("::1", 5672)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_a_listener_is_an_address_or_off(text: str, address: ListenAddress | None) -> None:
    assert load({"amqp": text}).amqp == address
    assert address is None or str(address) == text


@pytest.mark.parametrize(
    "text", ["", "5672", "host", "host:", ":5672", "host:http", "host:65536", "host:-1", "::1:5672"]
)
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--amqp: .* is not an address"):
        load({"amqp": text})


def test_a_wrong_value_in_the_file_is_named_with_its_line(toml: Path) -> None:
    toml.write_text('# heartbeat_s is below\namqp = "off"\n\nheartbeat_s = "often"\n')
    with pytest.raises(ConfigurationError) as caught:
        load({}, toml)
    assert str(caught.value).startswith(f"{toml}:4: heartbeat_s: 'often': ")


@pytest.mark.parametrize("line", ["ampq = 1", "[ampq]", "[[ampq]]", "'ampq'=1", "ampq.host = 1"])
def test_an_unknown_setting_in_the_file_is_named_with_its_line_and_what_it_resembles(toml: Path, line: str) -> None:
    toml.write_text(f"memory = true\n{line}\n")
    with pytest.raises(ConfigurationError) as caught:
        load({}, toml)
    assert str(caught.value) == f"{toml}:2: unknown setting ampq, did you mean amqp?"


def test_a_file_that_is_no_toml_is_named_with_its_line(toml: Path) -> None:
    toml.write_text("memory = true\namqp 5672\n")
    with pytest.raises(ConfigurationError, match=rf"^{toml}:2: expected '='"):
        load({}, toml)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^nowhere\.toml: no such file or directory$"):
        load({}, Path("nowhere.toml"))


def test_a_wrong_value_in_the_environment_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_MEMORY_BUDGET", "lots")
    with pytest.raises(ConfigurationError, match=r"^MILLPOND_MEMORY_BUDGET: 'lots': "):
        load({})


def test_an_unknown_variable_is_named_with_what_it_resembles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_HEARTBEAT", "1")
    with pytest.raises(ConfigurationError, match=r"^unknown setting MILLPOND_HEARTBEAT, did you mean .*HEARTBEAT_S\?$"):
        load({})


def test_the_variables_that_kubernetes_sets_beside_a_service_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("MILLPOND_SERVICE_PORT_AMQP", "5672")
    monkeypatch.setenv("MILLPOND_PORT", "tcp://10.0.0.1:5672")
    monkeypatch.setenv("MILLPOND_PORT_5672_TCP_ADDR", "10.0.0.1")
    assert load({}) == Settings()


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"heartbeat_s": "-1", "channel_max": "0"})
    assert "--heartbeat-s: '-1'" in str(caught.value)
    assert "--channel-max: '0'" in str(caught.value)


def test_tls_needs_a_certificate_and_client_certificates_an_authority() -> None:
    with pytest.raises(ConfigurationError, match=r"^--amqps: needs tls_certificate and tls_key$"):
        load({"amqps": "127.0.0.1:5671"})
    with pytest.raises(ConfigurationError, match=r"^--tls-verify-client: needs tls_ca$"):
        load({"tls_verify_client": True})


@pytest.mark.parametrize("address", ["0.0.0.0:9092", "[::]:9092", "pond.example:0"])
def test_clients_of_kafka_are_told_no_address_that_cannot_be_connected_to(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--kafka-advertised: .* is not an address that a client can"):
        load({"kafka_advertised": address})


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch, toml: Path) -> None:
    monkeypatch.setenv("MILLPOND_DEFAULT_PASSWORD", "hunter2")
    settings = load({})
    assert settings.default_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
    monkeypatch.delenv("MILLPOND_DEFAULT_PASSWORD")
    toml.write_text("default_password = [2718281828]\n")
    with pytest.raises(ConfigurationError) as caught:
        load({}, toml)
    assert "2718281828" not in str(caught.value)


def test_settings_of_a_program_do_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_HEARTBEAT_S", "7")
    monkeypatch.setenv("MILLPOND_NONSENSE", "7")
    assert Settings.of(amqp="[::1]:0", memory=True).heartbeat_s == 60
    with pytest.raises(ConfigurationError, match=r"^unknown setting ampq, did you mean amqp\?$"):
        Settings.of(ampq="off")
