"""Apache Kafka's own tools, which are programs on its Java clients: what an operator of Kafka types is tried here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from tests.conftest import EXTERNAL_KAFKA_VARIABLE
from tests.support.java import FETCH_DEADLINE_S, fetched, java
from tests.support.kafka_client import CODECS, ConfluentClient, Message, numbered, read_to_the_end
from tests.support.waiting import eventually

HERE = Path(__file__).parent
TOOL_DEADLINE_S = 60
TOOLS = "org.apache.kafka.tools"

pytestmark = pytest.mark.timeout(FETCH_DEADLINE_S + 5 * TOOL_DEADLINE_S)


@pytest.fixture(scope="session")
def class_path(packages: Path) -> str:
    return fetched(HERE / "pom.xml", packages / "kafka_tools")


Run = Callable[..., str]


@pytest.fixture
def run(class_path: str, kafka: str) -> Run:
    """Runs a tool against the broker and returns what it has printed."""

    def run_tool(tool: str, *arguments: str, standard_input: str = "", server: str = "--bootstrap-server") -> str:
        connection = [server, kafka] if server else []
        done = subprocess.run(
            [*java(class_path, tool), *connection, *arguments],
            input=standard_input,
            capture_output=True,
            text=True,
            timeout=TOOL_DEADLINE_S,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    return run_tool


@pytest.fixture
def administer(run: Run, tmp_path: Path) -> Run:
    """As `run`, logged in: nobody grants rights without saying who it is. A broker that is not Millpond has no such
    user, and lets anybody do it."""
    if EXTERNAL_KAFKA_VARIABLE in os.environ:
        return run
    properties = tmp_path / "login.properties"
    properties.write_text(
        "security.protocol=SASL_PLAINTEXT\n"
        "sasl.mechanism=PLAIN\n"
        "sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required"
        ' username="guest" password="guest";\n'
    )

    def run_tool(tool: str, *arguments: str) -> str:
        return run(tool, "--command-config", str(properties), *arguments)

    return run_tool


@pytest.fixture
def topic() -> str:
    return f"tools-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def group() -> str:
    return f"tools-group-{uuid.uuid4().hex[:12]}"


def events_of(output: str) -> list[dict[str, Any]]:
    """What the verifiable clients print: one JSON object a line."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_topics(run: Run, topic: str) -> None:
    command = f"{TOOLS}.TopicCommand"
    run(command, "--create", "--topic", topic, "--partitions", "3", "--config", "retention.ms=1000000")
    assert topic in run(command, "--list").split()
    described = run(command, "--describe", "--topic", topic)
    assert re.search(r"PartitionCount: 3\s+ReplicationFactor: 1\s+Configs: .*retention\.ms=1000000", described)
    assert len(re.findall(r"Partition: \d\s+Leader: \d+\s+Replicas: \d+\s+Isr: \d+", described)) == 3
    run(command, "--alter", "--topic", topic, "--partitions", "5")
    assert "PartitionCount: 5" in run(command, "--describe", "--topic", topic)
    run(command, "--delete", "--topic", topic)
    assert topic not in run(command, "--list").split()


@pytest.mark.parametrize("codec", CODECS)
def test_console_producer_and_consumer(run: Run, topic: str, kafka: str, codec: str) -> None:
    lines = [f"h1:v1,h2:v2|key-{number}|value {number} {'x' * 50}" for number in range(100)]
    run(
        f"{TOOLS}.ConsoleProducer",
        *("--topic", topic, "--compression-codec", codec),
        *("--reader-property", "parse.key=true", "--reader-property", "key.separator=|"),
        *("--reader-property", "parse.headers=true", "--reader-property", "headers.delimiter=|"),
        standard_input="\n".join(lines) + "\n",
    )
    properties = (
        "print.key=true",
        "print.headers=true",
        "print.offset=true",
        "print.partition=true",
        "key.separator=|",
    )
    output = run(
        f"{TOOLS}.consumer.ConsoleConsumer",
        *("--topic", topic, "--from-beginning", "--max-messages", "100"),
        *(argument for each in properties for argument in ("--formatter-property", each)),
    )
    expected = {f"Partition:0|Offset:{number}|{line}" for number, line in enumerate(lines)}
    assert set(output.splitlines()) == expected
    assert len(read_to_the_end(kafka, topic)) == 100


def test_verifiable_producer_and_consumer(run: Run, topic: str, group: str) -> None:
    produced = events_of(run(f"{TOOLS}.VerifiableProducer", "--topic", topic, "--max-messages", "2000", "--acks", "-1"))
    acknowledged = [event for event in produced if event["name"] == "producer_send_success"]
    assert sorted(int(event["value"]) for event in acknowledged) == list(range(2000))
    assert sorted(event["offset"] for event in acknowledged) == list(range(2000))
    assert not [event for event in produced if event["name"] == "producer_send_error"]
    arguments = [
        "--topic",
        topic,
        "--group-id",
        group,
        "--max-messages",
        "2000",
        "--verbose",
        "--reset-policy",
        "earliest",
    ]
    consumed = events_of(run(f"{TOOLS}.VerifiableConsumer", *arguments))
    data = [event for event in consumed if event["name"] == "record_data"]
    assert [int(event["value"]) for event in data] == list(range(2000))
    committed = [event for event in consumed if event["name"] == "offsets_committed"]
    assert all(event["success"] for event in committed)
    assert committed[-1]["offsets"][0]["offset"] == 2000


def test_a_group_is_described_reset_and_deleted(run: Run, topic: str, group: str, kafka: str) -> None:
    command = f"{TOOLS}.consumer.group.ConsumerGroupCommand"
    ConfluentClient(kafka).produce(topic, numbered(50))
    consume = ["--topic", topic, "--group", group, "--from-beginning", "--max-messages", "50"]
    run(f"{TOOLS}.consumer.ConsoleConsumer", *consume)
    assert group in run(command, "--list").split()

    def offsets() -> list[str]:
        """Current offset, end of the log and lag, as they are shown."""
        described = run(command, "--describe", "--group", group)
        [line] = [line for line in described.splitlines() if topic in line]
        return line.split()[line.split().index(topic) + 2 :][:3]

    assert offsets() == ["50", "50", "0"]
    assert "Empty" in run(command, "--describe", "--group", group, "--state")
    reset = ["--reset-offsets", "--group", group, "--topic", topic, "--execute"]
    run(command, *reset, "--to-offset", "20")
    assert offsets() == ["20", "50", "30"]
    run(command, *reset, "--to-earliest")
    assert offsets() == ["0", "50", "50"]
    run(command, *reset, "--to-latest")
    run(command, *reset, "--shift-by", "-5")
    assert offsets() == ["45", "50", "5"]
    run(command, "--delete-offsets", "--group", group, "--topic", topic)
    run(command, "--delete", "--group", group)
    assert group not in run(command, "--list").split()


def test_a_group_with_members_is_described(run: Run, topic: str, group: str, kafka: str) -> None:
    from tests.support.kafka_member import ConfluentMember

    ConfluentClient(kafka).produce(topic, numbered(10))
    command = f"{TOOLS}.consumer.group.ConsumerGroupCommand"
    with ConfluentMember(kafka, group, topic, client_id="the-member", session_timeout_ms=10_000) as member:
        member.wait_for(1)
        described = run(command, "--describe", "--group", group, "--members", "--verbose")
        assert "the-member" in described
        assert f"{topic}(0)" in described or f"{topic}:0" in described
        assert "Stable" in run(command, "--describe", "--group", group, "--state")


def test_configurations(run: Run, topic: str) -> None:
    run(f"{TOOLS}.TopicCommand", "--create", "--topic", topic)
    entity = ("--entity-type", "topics", "--entity-name", topic)
    command = "kafka.admin.ConfigCommand"
    run(command, *entity, "--alter", "--add-config", "retention.ms=5000000,cleanup.policy=[compact,delete]")
    described = run(command, *entity, "--describe")
    assert "retention.ms=5000000" in described
    assert "cleanup.policy=compact,delete" in described
    run(command, *entity, "--alter", "--delete-config", "retention.ms")
    assert "retention.ms=5000000" not in run(command, *entity, "--describe")
    assert "max.message.bytes=1048588" in run(command, *entity, "--describe", "--all")


def test_offsets_are_looked_up(run: Run, topic: str, kafka: str) -> None:
    then_ms = int(time.time() * 1000) - 3_600_000
    ConfluentClient(kafka).produce(topic, [Message(b"m", timestamp_ms=then_ms + number) for number in range(10)])
    command = f"{TOOLS}.GetOffsetShell"
    for asked, offset in (("latest", 10), ("earliest", 0), ("max-timestamp", 9), (str(then_ms + 4), 4)):
        assert run(command, "--topic", topic, "--time", asked).strip() == f"{topic}:0:{offset}"


def test_log_dirs_are_described(run: Run, topic: str, kafka: str) -> None:
    ConfluentClient(kafka).produce(topic, [Message(b"x" * 10_000)])
    output = run(f"{TOOLS}.LogDirsCommand", "--describe", "--topic-list", topic)
    [described] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    [partition] = [part for broker in described["brokers"] for each in broker["logDirs"] for part in each["partitions"]]
    assert partition["partition"] == f"{topic}-0"
    assert partition["size"] > 10_000


def test_records_are_deleted(run: Run, topic: str, kafka: str, tmp_path: Path) -> None:
    client = ConfluentClient(kafka)
    client.produce(topic, numbered(10))
    wanted = tmp_path / "offsets.json"
    wanted.write_text(json.dumps({"partitions": [{"topic": topic, "partition": 0, "offset": 4}], "version": 1}))
    run(f"{TOOLS}.DeleteRecordsCommand", "--offset-json-file", str(wanted))
    assert client.bounds(topic) == (4, 10)


def test_the_apis_are_listed(run: Run, kafka: str) -> None:
    output = run(f"{TOOLS}.BrokerApiVersionsCommand")
    assert kafka in output
    for api in ("Produce(0)", "Fetch(1)", "JoinGroup(11)", "DescribeTopicPartitions(75)"):
        assert re.search(re.escape(api) + r": \d+", output), f"{api} in {output}"


@pytest.mark.parametrize("acks", ["1", "all"])
def test_producer_and_consumer_performance(run: Run, topic: str, kafka: str, acks: str) -> None:
    run(f"{TOOLS}.TopicCommand", "--create", "--topic", topic, "--partitions", "3")
    output = run(
        f"{TOOLS}.ProducerPerformance",
        *("--topic", topic, "--num-records", "50000", "--record-size", "100", "--throughput", "-1"),
        *("--command-property", f"acks={acks}"),
    )
    assert "50000 records sent" in output
    assert len(read_to_the_end(kafka, topic, partitions=range(3))) == 50_000
    output = run(f"{TOOLS}.ConsumerPerformance", "--topic", topic, "--num-records", "50000", "--timeout", "20000")
    assert int(float(output.splitlines()[1].split(",")[4])) == 50_000


# --- What newer brokers have ------------------------------------------------------------------------------------------


def test_a_share_group_is_read_described_reset_and_deleted(run: Run, topic: str, group: str, kafka: str) -> None:
    """kafka-console-share-consumer, kafka-share-groups and kafka-configs for groups."""
    configure = ("kafka.admin.ConfigCommand", "--entity-type", "groups", "--entity-name", group)
    run(*configure, "--alter", "--add-config", "share.auto.offset.reset=earliest")
    assert "share.auto.offset.reset=earliest" in run(*configure, "--describe")
    ConfluentClient(kafka).produce(topic, numbered(5))
    consume = (f"{TOOLS}.consumer.ConsoleShareConsumer", "--topic", topic, "--group", group)
    output = run(*consume, "--max-messages", "5", "--formatter-property", "print.delivery=true")
    assert [line.split("\t")[0] for line in output.splitlines() if line.startswith("Delivery")] == ["Delivery:1"] * 5
    command = f"{TOOLS}.consumer.group.ShareGroupCommand"
    assert group in run(command, "--list").split()
    assert "Empty" in run(command, "--describe", "--group", group, "--state")
    described = run(command, "--describe", "--group", group)
    [line] = [line.split() for line in described.splitlines() if topic in line]
    assert line[:3] == [group, topic, "0"]
    assert line[4] == "0", "no lag"
    run(command, "--reset-offsets", "--group", group, "--topic", topic, "--to-earliest", "--execute")
    [line] = [line.split() for line in run(command, "--describe", "--group", group).splitlines() if topic in line]
    assert line[3:5] == ["0", "5"]
    assert len(run(*consume, "--max-messages", "5").splitlines()) == 5
    run(command, "--delete-offsets", "--group", group, "--topic", topic)
    run(command, "--delete", "--group", group)
    assert group not in run(command, "--list").split()


def test_a_group_of_the_consumer_protocol_is_described(run: Run, topic: str, group: str, kafka: str) -> None:
    """kafka-consumer-groups and kafka-groups, while a member of KIP-848 is there."""
    ConfluentClient(kafka).produce(topic, numbered(10))
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": group,
            "group.protocol": "consumer",
            "client.id": "the-member",
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    consumer.subscribe([topic])
    eventually(lambda: consumer.consume(10, timeout=0.1), "records")
    command = f"{TOOLS}.consumer.group.ConsumerGroupCommand"
    try:
        described = run(command, "--describe", "--group", group, "--members", "--verbose")
        assert "the-member" in described
        assert f"{topic}(0)" in described or f"{topic}:0" in described
        state = run(command, "--describe", "--group", group, "--state", "--verbose")
        assert "Stable" in state
        assert "uniform" in state
        listed = run(f"{TOOLS}.GroupsCommand", "--list", "--group-type", "consumer")
        assert re.search(rf"{re.escape(group)}\s+Consumer\s+consumer", listed), listed
    finally:
        consumer.close()


def test_transactions_are_listed_described_and_aborted(run: Run, topic: str, kafka: str) -> None:
    """kafka-transactions, as an operator uses it who looks for what holds up readers."""
    transaction = f"tools-transaction-{uuid.uuid4().hex[:12]}"
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": kafka, "transactional.id": transaction, "log_level": 0, "transaction.timeout.ms": 60_000}
    )
    producer.init_transactions(TOOL_DEADLINE_S)
    producer.begin_transaction()
    producer.produce(topic, b"hanging", partition=0)
    assert producer.flush(TOOL_DEADLINE_S) == 0
    command = f"{TOOLS}.TransactionsCommand"
    [listed] = [line.split() for line in run(command, "list").splitlines() if transaction in line]
    assert listed[0] == transaction
    assert listed[-1] == "Ongoing"
    described = run(command, "describe", "--transactional-id", transaction)
    assert f"{topic}-0" in described
    assert "Ongoing" in described

    def start_of_transaction() -> str:
        """What the table shows of the only producer of the partition."""
        output = run(command, "describe-producers", "--topic", topic, "--partition", "0")
        names, values = (line.split("\t") for line in output.splitlines()[:2])
        shown = {name.strip(): value.strip() for name, value in zip(names, values, strict=True)}
        return shown["CurrentTransactionStartOffset"]

    assert start_of_transaction() == "0"
    run(command, "abort", "--topic", topic, "--partition", "0", "--start-offset", "0")
    assert start_of_transaction() == "None"


def test_acls(administer: Run, topic: str) -> None:
    """kafka-acls: what producers and consumers need is given and taken by one command each."""
    command = f"{TOOLS}.AclCommand"
    administer(command, "--add", "--allow-principal", "User:bob", "--producer", "--topic", topic)
    administer(
        command,
        *("--add", "--allow-principal", "User:bob", "--consumer", "--group", "tools", "--topic", topic),
        *("--resource-pattern-type", "prefixed"),
    )
    listed = administer(command, "--list", "--principal", "User:bob", "--topic", topic)
    assert "patternType=LITERAL" in listed
    for operation in ("WRITE", "DESCRIBE", "CREATE"):
        assert f"(principal=User:bob, host=*, operation={operation}, permissionType=ALLOW)" in listed
    assert "patternType=PREFIXED" in administer(command, "--list", "--topic", topic, "--resource-pattern-type", "match")
    for pattern in ("literal", "prefixed"):
        administer(command, "--remove", "--force", "--topic", topic, "--resource-pattern-type", pattern)
    administer(command, "--remove", "--force", "--group", "tools", "--resource-pattern-type", "prefixed")
    assert "User:bob" not in administer(command, "--list", "--topic", topic, "--resource-pattern-type", "match")


def test_credentials_and_quotas_of_users_and_clients(administer: Run) -> None:
    """kafka-configs for users and clients."""
    user = f"tools-{uuid.uuid4().hex[:12]}"
    entity = ("kafka.admin.ConfigCommand", "--entity-type", "users", "--entity-name", user)
    administer(*entity, "--alter", "--add-config", "SCRAM-SHA-512=[iterations=8192,password=secret]")
    administer(*entity, "--alter", "--add-config", "producer_byte_rate=1000,consumer_byte_rate=2000")
    described = administer(*entity, "--describe")
    assert "SCRAM-SHA-512=iterations=8192" in described
    assert "producer_byte_rate=1000.0" in described
    client = ("kafka.admin.ConfigCommand", "--entity-type", "clients", "--entity-name", user)
    administer(*client, "--alter", "--add-config", "producer_byte_rate=500")
    assert "producer_byte_rate=500.0" in administer(*client, "--describe")
    administer(*client, "--alter", "--delete-config", "producer_byte_rate")
    administer(*entity, "--alter", "--delete-config", "SCRAM-SHA-512")
    administer(*entity, "--alter", "--delete-config", "producer_byte_rate,consumer_byte_rate")
    described = administer(*entity, "--describe")
    assert "SCRAM" not in described
    assert "byte_rate" not in described


def test_features_are_described(run: Run) -> None:
    output = run(f"{TOOLS}.FeatureCommand", "describe")
    for feature in ("group.version", "share.version", "transaction.version"):
        [line] = [line.split() for line in output.splitlines() if feature in line]
        assert int(line[line.index("FinalizedVersionLevel:") + 1]) >= 1
