"""The documents: links lead somewhere, what they name exists, and their examples run."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import ByteSize

import millpond.cli
from millpond import config
from millpond.base import limits
from millpond.config import Settings
from millpond.pytest_plugin import BackgroundBroker, millpond_broker  # noqa: F401  (a source tree has no entry points)
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
# Where the examples say that the broker is.
ADDRESS = "127.0.0.1:5672"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^<!-- example: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


@cache
def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


@cache
def prose_of(document: Path) -> str:
    return FENCE.sub("", text_of(document))


def blocks_of(document: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text_of(document)) if language in languages]


def inline_code_of(document: Path) -> list[str]:
    return CODE.findall(prose_of(document))


def examples_of(document: str, name: str) -> list[str]:
    found = [body for example, body in EXAMPLE.findall(text_of(ROOT / document)) if example == name]
    assert found, f"{document} has no example {name}"
    return found


def anchors_of(document: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked_documents(document: Path) -> Iterator[tuple[str, Path, str]]:
    for target in LINK.findall(CODE.sub("", prose_of(document))):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield target, (document.parent / path).resolve() if path else document, anchor


# --- Links ----------------------------------------------------------------------------------------------------------


@every_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target, path, anchor in linked_documents(document):
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document not in reached:
            reached.add(document)
            waiting += [path for _, path, _ in linked_documents(document) if path in DOCUMENTS]
    assert not set(DOCUMENTS) - reached


# --- Names ----------------------------------------------------------------------------------------------------------


def options_by_command() -> dict[tuple[str, ...], set[str]]:
    """The words of each command, and its options."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found[words] = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        found[words] |= {"-h", "--help"}
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))

    walk(typer.main.get_command(millpond.cli._application()), ())
    return found


def commands_of(document: Path) -> Iterator[str]:
    """What the document says after `millpond`, in examples for the shell and in its text."""
    for block in blocks_of(document, "sh"):
        for line in block.splitlines():
            for command in re.findall(r"(?:^|[|&] *)millpond ([^|&#]*)", line):
                yield command.strip()
    for code in inline_code_of(document):
        if code.startswith("millpond "):
            yield code.removeprefix("millpond ")


@every_document
def test_every_command_and_its_options_exist(document: Path) -> None:
    options = options_by_command()
    for command in commands_of(document):
        words = shlex.split(command)
        depth = 0
        while depth < len(words) and tuple(words[: depth + 1]) in options:
            depth += 1
        assert depth > 0 or words[0].startswith("-"), f"millpond {command}"
        given = {word.partition("=")[0] for word in words[depth:] if re.match(r"--?[a-z]", word)}
        assert given <= options[tuple(words[:depth])], f"millpond {command}"


@every_document
def test_every_flag_exists(document: Path) -> None:
    flags = set().union(*options_by_command().values())
    for code in inline_code_of(document):
        if code.startswith("--"):
            assert code.split()[0] in flags, code


@every_document
def test_every_environment_variable_exists(document: Path) -> None:
    known = {config.variable_of(name) for name in Settings.model_fields} | config.NOT_SETTINGS
    known |= set(re.findall(r'"(MILLPOND_TEST_\w+)"', (ROOT / "tests" / "conftest.py").read_text()))
    # An example shows what the broker says to a variable that does not exist.
    text = re.sub(r"unknown setting MILLPOND_\w+", "", text_of(document))
    assert set(re.findall(r"\bMILLPOND_[A-Z_]+\b", text)) <= known


def test_the_table_of_settings_is_complete_and_has_the_defaults() -> None:
    shown: dict[str, str] = {}
    section = prose_of(ROOT / "docs" / "configuration.md").partition("## Settings")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            names, default = [cell.strip() for cell in line.split("|")[1:3]]
            shown |= dict.fromkeys(CODE.findall(names), default.strip("`"))
    assert shown == {name: _default_of(name) for name in Settings.model_fields}


def _default_of(name: str) -> str:
    field = Settings.model_fields[name]
    value = field.default
    if name in config.SECRETS:
        return str(value.get_secret_value())
    if value is False or (
        value is None and field.metadata and name in {"amqp", "amqps", "kafka", "kafka_tls", "admin"}
    ):
        return "off"
    if value is True:
        return "on"
    if isinstance(value, ByteSize):
        return f"{value // limits.MIB}MiB"
    return "" if value is None else str(value)


def test_the_table_of_exit_codes_is_that_of_the_command_line() -> None:
    commands = prose_of(ROOT / "docs" / "configuration.md").partition("## Commands")[2]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", commands, re.MULTILINE)}
    assert documented == {int(code) for code in re.findall(r"\b(\d{1,3}) +[a-z]", str(millpond.cli.__doc__))}


def test_the_table_of_limits_has_their_values() -> None:
    rows = re.findall(
        r"^\| .+? \| (.+?) \| `(\w+)` \| ?(.*?) ?\|$", prose_of(ROOT / "docs" / "limits.md"), re.MULTILINE
    )
    assert len(rows) > 20
    for shown, constant, setting in rows:
        number, _, unit = shown.partition(" ")
        value = int(number.replace(",", "")) * {"": 1, "KiB": limits.KIB, "MiB": limits.MIB}[unit]
        assert value == getattr(limits, constant), constant
        if setting:
            assert Settings.model_fields[setting.strip("`")].default == value, setting


@every_document
def test_every_target_of_make_exists(document: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make (\w+)", "\n".join(blocks_of(document, "sh") + inline_code_of(document)), re.MULTILINE)
    assert set(named) <= targets


@every_document
def test_every_source_file_exists(document: Path) -> None:
    files = [
        str(path.relative_to(ROOT))
        for folder in ("src", "tests", "bench", "tools")
        for path in (ROOT / folder).rglob("*.*")
    ]
    code = inline_code_of(document) + re.findall(r"\b[\w/]+\.py\b", "\n".join(blocks_of(document, "")))
    for name in code:
        # `revision_NNNN.py` stands for many; `tasks.py` is the reader's own.
        if re.fullmatch(r"[\w/]+\.(py|c)", name) and "NNNN" not in name and name != "tasks.py":
            assert any(path == name or path.endswith(f"/{name}") for path in files), name


@every_document
def test_every_metric_exists(document: Path) -> None:
    source = (ROOT / "src" / "millpond" / "admin" / "metrics.py").read_text()
    for code in inline_code_of(document):
        name = code.partition("{")[0].removesuffix("_total")
        if re.fullmatch(r"rabbitmq_\w+|millpond_(queue|memory|alarm|topic|request)\w*", name):
            assert f'"{name}"' in source, code


@pytest.mark.parametrize("name", ["kafka-apis", "topic-configs"])
def test_tables_that_are_made_by_a_tool_are_what_it_makes_now(name: str) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "kafka_tables.py"))
    document, rows = tool["TABLES"][name]
    text = text_of(ROOT / document)
    assert tool["with_table"](text, name, rows()) == text, "run PYTHONPATH=src python tools/kafka_tables.py"


# --- Examples -------------------------------------------------------------------------------------------------------


@every_document
def test_python_examples_compile(document: Path) -> None:
    for block in blocks_of(document, "python"):
        ast.parse(block)


@pytest.fixture
def millpond_settings() -> Mapping[str, Any]:
    return {}


def run_session(broker: BackgroundBroker, examples: list[str], **names: object) -> dict[str, Any]:
    """Run examples one after the other in one name space, as a reader does who types them in."""
    host, port = broker.address()
    session: dict[str, Any] = dict(names)
    for example in examples:
        exec(compile(example.replace(ADDRESS, f"{host}:{port}"), "example", "exec"), session)
    return session


def test_the_tour_with_pika_runs(
    millpond_broker: BackgroundBroker,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = run_session(millpond_broker, examples_of("README.md", "session"))
    printed = capsys.readouterr().out
    failed = session["channel"].basic_get("failed", auto_ack=True)
    assert (failed[1].headers["x-first-death-queue"], failed[2]) == ("orders", b"poison")
    session["connection"].close()
    assert "b'Hello, pond'\n" in printed
    assert sorted(re.findall(r"(?:ann|bob) does (job \d)", printed)) == [f"job {number}" for number in range(6)]
    assert set(re.findall(r"(ann|bob) does", printed)) == {"ann", "bob"}
    assert f"{[b'The pond is open'] * 3}\n" in printed
    assert printed.endswith("orders delivery_limit 1\n0 event 0\n1 event 1\n2 event 2\n")


def test_the_tour_with_aio_pika_runs(
    millpond_broker: BackgroundBroker,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_session(millpond_broker, examples_of("README.md", "asyncio"))
    assert capsys.readouterr().out == "b'Hello, pond'\n"


def test_the_tours_with_kafkas_clients_run(capsys: pytest.CaptureFixture[str]) -> None:
    broker = BackgroundBroker(kafka="127.0.0.1:0", group_initial_rebalance_delay_ms=0)
    broker.start()
    [example] = examples_of("README.md", "kafka")
    [connecting] = blocks_of(ROOT / "docs" / "kafka.md", "python")
    for block in (example, connecting):
        exec(compile(block.replace("127.0.0.1:9092", broker.kafka_address), "example", "exec"), {})
    broker.stop()
    assert capsys.readouterr().out == "0 pond level 0\n1 pond level 1\n2 pond level 2\nb'customer 7' b'one pond'\n"


@pytest.fixture
def crossing_broker(tmp_path: Path) -> Iterator[BackgroundBroker]:
    """A broker for both protocols, whose data directory the command line finds."""
    broker = BackgroundBroker(
        data_dir=tmp_path, kafka="127.0.0.1:0", group_initial_rebalance_delay_ms=0, admin="127.0.0.1:0"
    )
    broker.start()
    yield broker
    broker.stop()


def test_the_tour_of_the_crossing_runs(
    crossing_broker: BackgroundBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [
        block.replace("127.0.0.1:9092", crossing_broker.kafka_address)
        for name in ("crossing", "history")
        for block in examples_of("README.md", name)
    ]
    session = run_session(crossing_broker, examples)
    assert capsys.readouterr().out == "Welcome, ann\nWelcome, bob\n['ann', 'bob', 'poison']\n"
    channel = session["channel"]
    assert channel.basic_get("set-aside", auto_ack=True)[2] == b"poison"
    assert millpond.cli.run(["rewind", "invoices", "--by", "1h", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "3 to be done again, from offset 0\n"
    again = [channel.basic_get("invoices", auto_ack=True)[2] for _ in range(3)]
    assert again == [b"invoice 0", b"invoice 1", b"invoice 2"]
    session["connection"].close()
    # Kafka's producer would look for its broker after the test.
    session.clear()


def test_the_example_of_a_test_passes(millpond_broker: BackgroundBroker) -> None:  # noqa: F811
    session = run_session(millpond_broker, examples_of("README.md", "test"))
    session["test_an_order_is_published"](millpond_broker)


def test_the_celery_application_of_the_tour_runs(
    millpond_broker: BackgroundBroker,  # noqa: F811
    tmp_path: Path,
) -> None:
    host, port = millpond_broker.address()
    [source] = examples_of("README.md", "tasks.py")
    (tmp_path / "tasks.py").write_text(source.replace(ADDRESS, f"{host}:{port}"))
    log_path = tmp_path / "worker.log"
    with log_path.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "solo", "--loglevel", "INFO"],
            cwd=tmp_path,
            env=os.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: " ready." in log_path.read_text(), "the worker is ready", deadline_s=60)
        asked = subprocess.run(
            [sys.executable, "-c", "from tasks import add; print(add.delay(2, 3).get(timeout=10))"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert asked.stdout == "5\n", asked.stderr + log_path.read_text()
    finally:
        worker.terminate()
        worker.wait(20)


def test_the_examples_of_dead_letters_retry_set_aside_and_redrive(
    millpond_broker: BackgroundBroker,  # noqa: F811
) -> None:
    first_block = examples_of("README.md", "session")[0]
    attempts: list[bytes] = []

    def handle(body: bytes) -> None:
        attempts.append(body)
        raise ValueError("poison")

    # A shorter wait between the attempts; everything else is as it is read.
    retry = [
        block.replace('"x-message-ttl": 5000', '"x-message-ttl": 5')
        for block in examples_of("docs/dead-letters.md", "retry")
    ]
    session = run_session(millpond_broker, [first_block, *retry], handle=handle)
    channel, connection = session["channel"], session["connection"]
    channel.basic_publish("", "orders", b"poison", session["persistent"])
    tag = channel.basic_consume("orders", session["work"])

    def is_set_aside() -> bool:
        connection.process_data_events(time_limit=0.05)
        return bool(channel.queue_declare("failed", passive=True).method.message_count == 1)

    eventually(is_set_aside, "the message is set aside")
    assert attempts == [b"poison"] * 5
    channel.basic_cancel(tag)
    [redrive] = examples_of("docs/dead-letters.md", "redrive")
    exec(compile(redrive, "redrive", "exec"), session)
    _, properties, body = channel.basic_get("orders", auto_ack=True)
    assert (body, properties.headers) == (b"poison", {})
    connection.close()


def test_the_example_of_a_delivery_limit(millpond_broker: BackgroundBroker) -> None:  # noqa: F811
    attempts: list[bytes] = []

    def handle(body: bytes) -> None:
        attempts.append(body)
        raise ValueError("poison")

    first_block = examples_of("README.md", "session")[0].replace('"orders"', '"other"')
    blocks = [first_block, *examples_of("docs/dead-letters.md", "delivery-limit")]
    session = run_session(millpond_broker, blocks, handle=handle)
    channel, connection = session["channel"], session["connection"]
    channel.basic_publish("", "orders", b"poison")
    channel.basic_consume("orders", session["work"])

    def is_set_aside() -> bool:
        connection.process_data_events(time_limit=0.05)
        return bool(channel.queue_declare("failed", passive=True).method.message_count == 1)

    eventually(is_set_aside, "the message is set aside")
    assert attempts == [b"poison"] * 4
    connection.close()


def test_the_example_of_a_delay_runs(millpond_broker: BackgroundBroker) -> None:  # noqa: F811
    first_block = examples_of("README.md", "session")[0]
    # A shorter wait; everything else is as it is read.
    blocks = [block.replace("3_600_000", "20") for block in examples_of("docs/routing.md", "delay")]
    session = run_session(millpond_broker, [first_block, *blocks])
    channel = session["channel"]
    eventually(lambda: channel.queue_declare("reminders", passive=True).method.message_count == 1, "the reminder")
    assert channel.basic_get("reminders", auto_ack=True)[2] == b"The meeting begins"
    session["connection"].close()


def test_a_message_that_is_retried_later_ends_where_the_example_says(
    millpond_broker: BackgroundBroker,  # noqa: F811
) -> None:
    first_block = examples_of("README.md", "session")[0].replace('"orders"', '"other"')
    # Shorter waits, 510 ms together; everything else is as it is read.
    blocks = [block.replace("1000,", "2,") for block in examples_of("docs/dead-letters.md", "retry-later")]
    session = run_session(millpond_broker, [first_block, *blocks])
    channel, connection = session["channel"], session["connection"]
    channel.queue_declare("failed", durable=True)
    channel.basic_publish("", "orders", b"poison")
    counts: list[int] = []

    def fail(_: Any, method: Any, properties: Any, __: bytes) -> None:
        counts.append((properties.headers or {}).get("x-delivery-count", 0))
        channel.basic_nack(method.delivery_tag, requeue=True)

    channel.basic_consume("orders", fail)

    def is_dead() -> bool:
        connection.process_data_events(time_limit=0.05)
        return bool(channel.queue_declare("failed", passive=True).method.message_count == 1)

    eventually(is_dead, "the message is dead")
    assert counts == list(range(9))
    connection.close()
