"""Consumer groups as operators see them: lists, members, offsets and how far behind they are, and deleting them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from millpond import cli
from millpond.pytest_plugin import BackgroundBroker
from tests.support import management
from tests.support.management import Call
from tests.support.waiting import DEADLINE_S, eventually


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pond")


@pytest.fixture(scope="module")
def pond(data: Path) -> Iterator[BackgroundBroker]:
    """With Kafka's protocol."""
    broker = BackgroundBroker(
        data_dir=data,
        admin="127.0.0.1:0",
        kafka="127.0.0.1:0",
        kafka_partitions=2,
        group_initial_rebalance_delay_ms=0,
    )
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def servers(pond: BackgroundBroker) -> str:
    host, port = pond.address("kafka")
    return f"{host}:{port}"


@pytest.fixture
def call(pond: BackgroundBroker) -> Call:
    return partial(management.request, pond.address("admin"))


@pytest.fixture
def topic(servers: str) -> str:
    """A topic with three records in each of two partitions."""
    name = f"log-{uuid.uuid4().hex[:8]}"
    producer = Producer({"bootstrap.servers": servers})
    for number in range(6):
        producer.produce(name, b"record", partition=number % 2)
    assert producer.flush(DEADLINE_S) == 0
    return name


def consumer_of(servers: str, group: str, **settings: object) -> Consumer:
    return Consumer({"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False, **settings})


@pytest.fixture
def group(servers: str, topic: str) -> str:
    """One without members that has an offset. Its name needs quoting."""
    name = f"crew/{uuid.uuid4().hex[:8]}"
    consumer = consumer_of(servers, name)
    consumer.commit(offsets=[TopicPartition(topic, 0, 1, "half way")], asynchronous=False)
    consumer.close()
    return name


def path_of(group: str) -> str:
    return f"/api/groups/%2F/{quote(group, safe='')}"


def test_groups_are_listed_everywhere_and_in_their_virtual_host(call: Call, group: str) -> None:
    for path in ("/api/groups", "/api/groups/%2F", f"/api/groups?page=1&name={quote(group, safe='')}"):
        found = call("GET", path).json
        (shown,) = [one for one in (found["items"] if "page" in path else found) if one["name"] == group]
        assert shown["vhost"] == "/"
        assert (shown["state"], shown["members"], shown["offsets"]) == ("Empty", 0, 1)
    assert call("GET", "/api/groups/nowhere").status == 404


def test_a_group_is_shown_with_how_far_it_is_behind(call: Call, group: str, topic: str) -> None:
    shown = call("GET", path_of(group)).json
    assert shown["lag"] == 2
    (offset,) = shown["offset_details"]
    assert offset.pop("committed_at") > 0
    # confluent-kafka sends the zero that ends a text in C along with it.
    assert offset.pop("metadata").rstrip("\0") == "half way"
    assert offset == {"topic": topic, "partition": 0, "offset": 1, "end_offset": 3, "lag": 2}


def test_a_group_is_shown_with_its_members_and_their_partitions(call: Call, servers: str, topic: str) -> None:
    name = f"crew-{uuid.uuid4().hex[:8]}"
    consumer = consumer_of(servers, name, **{"client.id": "reader", "group.instance.id": "first"})
    consumer.subscribe([topic])

    def is_stable() -> bool:
        consumer.poll(0.05)
        return len(consumer.assignment()) == 2

    eventually(is_stable, "the member has its partitions")
    shown = call("GET", path_of(name)).json
    assert (shown["state"], shown["protocol_type"], shown["protocol"]) == ("Stable", "consumer", "range")
    (member,) = shown["member_details"]
    assert (member["client_id"], member["instance_id"], member["client_host"]) == ("reader", "first", "/127.0.0.1")
    assert member["assignment"] == {topic: [0, 1]}
    assert shown["leader"] == member["member_id"]
    assert call("DELETE", path_of(name)).status == 400
    consumer.close()


def test_a_group_without_members_is_deleted(call: Call, group: str) -> None:
    assert call("DELETE", path_of(group)).status == 204
    assert call("DELETE", path_of(group)).status == 404
    assert call("GET", path_of(group)).status == 404


def test_only_administrators_delete_groups(call: Call, group: str, user: Callable[..., str]) -> None:
    login = user("watcher", "monitoring", ("", "", ".*"))
    assert call("GET", path_of(group), login=login).status == 200
    assert call("DELETE", path_of(group), login=login).status == 401
    assert call("GET", path_of(group)).status == 200


def test_metrics_count_groups_and_tell_how_far_each_is_behind(call: Call, group: str, topic: str) -> None:
    summed = call("GET", "/metrics").content.decode()
    assert 'millpond_groups{state="Empty"}' in summed
    assert "millpond_groups_offsets" in summed
    assert "millpond_group_lag{" not in summed
    each = call("GET", "/metrics/per-object").content.decode()
    assert f'millpond_group_lag{{group="{group}",topic="{topic}",vhost="/"}} 2.0' in each
    assert f'millpond_group_members{{group="{group}",vhost="/"}} 0.0' in each


def test_a_group_whose_assignment_the_broker_decides_shows_epochs_and_targets(
    servers: str, call: Call, topic: str
) -> None:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "newer", "group.protocol": "consumer"})
    consumer.subscribe([topic])
    try:
        eventually(lambda: consumer.poll(0.1) is None and len(consumer.assignment()) == 2, "two partitions")
        group = call("GET", "/api/groups/%2F/newer").json
        assert (group["type"], group["state"], group["protocol"], group["members"]) == (
            "consumer", "Stable", "uniform", 1,
        )  # fmt: skip
        assert group["group_epoch"] == group["assignment_epoch"] >= 1
        (member,) = group["member_details"]
        assert member["assignment"] == member["target"] == {topic: [0, 1]}
        assert (member["speaks"], member["topics"], member["epoch"]) == ("consumer", [topic], group["group_epoch"])
    finally:
        consumer.close()


def test_groups_are_listed_and_described_on_the_command_line(
    data: Path, servers: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "shown", "group.protocol": "consumer"})
    consumer.subscribe([topic])
    try:
        eventually(lambda: consumer.poll(0.1) is None and len(consumer.assignment()) == 2, "two partitions")
        where = ["--data", str(data)]
        assert cli.run(["group", "list", "--json", *where]) == 0
        (shown,) = [one for one in json.loads(capsys.readouterr().out) if one["name"] == "shown"]
        assert (shown["type"], shown["members"]) == ("consumer", 1)
        assert cli.run(["group", "describe", "shown", "--json", *where]) == 0
        assert json.loads(capsys.readouterr().out)["member_details"][0]["target"] == {topic: [0, 1]}
        assert cli.run(["group", "describe", "shown", *where]) == 0
        assert "/127.0.0.1" in capsys.readouterr().out
    finally:
        consumer.close()
