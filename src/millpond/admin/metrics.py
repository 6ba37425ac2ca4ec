"""Metrics for Prometheus, under the names of RabbitMQ's own exporter, so that its dashboards work.

The collector reads the core's plain counters when it is scraped; nothing is counted twice on the hot path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from millpond.admin import views
from millpond.broker.commits import ALARM_DISK, ALARM_MEMORY, ALARM_STORAGE
from millpond.broker.groups.lag import lag_by_topic
from millpond.broker.groups.modern import ASSIGNING, RECONCILING
from millpond.broker.groups.records import STATES
from millpond.broker.queues.message_queue import MessageQueue

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from millpond.broker.broker import Broker
    from millpond.broker.shares.share_partition import SharePartition
    from millpond.broker.streams.partition import Partition
    from millpond.broker.streams.record_router import RecordRouter
    from millpond.broker.streams.stream_store import StreamStore
    from millpond.broker.streams.topic import Topic

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

LAG_LABELS: Final = ["vhost", "group", "topic"]

Family = type[GaugeMetricFamily] | type[CounterMetricFamily]

QUEUE_METRICS: Final[list[tuple[Family, str, str, Callable[[MessageQueue], int]]]] = [
    (
        GaugeMetricFamily,
        "rabbitmq_queue_messages",
        "Ready, not settled, and held for a later retry",
        lambda queue: int(queue.ready) + int(queue.unsettled) + int(queue.delayed),
    ),
    (GaugeMetricFamily, "rabbitmq_queue_messages_ready", "Messages ready", lambda queue: int(queue.ready)),
    (
        GaugeMetricFamily,
        "rabbitmq_queue_messages_unacked",
        "Not settled yet",
        lambda queue: int(queue.unsettled),
    ),
    (GaugeMetricFamily, "millpond_queue_messages_delayed", "Held for a later retry", lambda queue: int(queue.delayed)),
    (GaugeMetricFamily, "rabbitmq_queue_messages_ready_bytes", "Bytes ready", lambda queue: int(queue.ready_bytes)),
    (GaugeMetricFamily, "rabbitmq_queue_messages_ram_bytes", "In memory", lambda queue: int(queue.resident_bytes)),
    (CounterMetricFamily, "rabbitmq_queue_messages_published", "Routed here", lambda queue: int(queue.published_total)),
    (CounterMetricFamily, "millpond_queue_messages_delivered", "Deliveries", lambda queue: int(queue.delivered_total)),
    (CounterMetricFamily, "millpond_queue_messages_settled", "Done with", lambda queue: int(queue.settled_total)),
]


TOPIC_METRICS: Final[list[tuple[Family, str, str, Callable[[StreamStore, Partition], int]]]] = [
    (GaugeMetricFamily, "millpond_topic_partitions", "Partitions", lambda _, partition: 1),
    (
        GaugeMetricFamily,
        "millpond_topic_messages",
        "Offsets between the start and the end, those that compaction has emptied among them",
        lambda _, partition: int(partition.durable_end - partition.start_offset),
    ),
    (
        GaugeMetricFamily,
        "millpond_topic_log_bytes",
        "In the logs that are open, and on the way there",
        lambda streams, partition: streams.known_bytes(partition),
    ),
    (
        GaugeMetricFamily,
        "millpond_topic_ram_bytes",
        "In memory",
        lambda _, partition: int(partition.hot_bytes),
    ),
    (
        CounterMetricFamily,
        "millpond_topic_messages_appended",
        "Appended since the topic was made: what is durable of it",
        lambda _, partition: int(partition.durable_end),
    ),
    (
        CounterMetricFamily,
        "millpond_topic_appended_bytes",
        "Appended since the node was started",
        lambda _, partition: int(partition.appended_bytes),
    ),
    (
        CounterMetricFamily,
        "millpond_topic_read_bytes",
        "Sent to readers since the node was started",
        lambda _, partition: int(partition.read_bytes),
    ),
]


def _share_counter(name: str) -> Callable[[SharePartition], int]:
    return lambda place: 0 if place.state is None else int(getattr(place.state, name))


SHARE_METRICS: Final[list[tuple[Family, str, str, Callable[[SharePartition], int]]]] = [
    (GaugeMetricFamily, "millpond_share_ready", "Records that wait for a share group", lambda place: place.ready),
    (GaugeMetricFamily, "millpond_share_acquired", "Records in the hands of a share group", lambda place: place.held),
    (GaugeMetricFamily, "millpond_share_lag", "Records that are not settled", lambda place: max(0, place.lag)),
    (CounterMetricFamily, "millpond_share_delivered", "Deliveries", _share_counter("delivered_total")),
    (CounterMetricFamily, "millpond_share_accepted", "Records done with", _share_counter("accepted_total")),
    (CounterMetricFamily, "millpond_share_released", "Records given back", _share_counter("released_total")),
    (CounterMetricFamily, "millpond_share_rejected", "Records refused for good", _share_counter("rejected_total")),
    (CounterMetricFamily, "millpond_share_exhausted", "Delivered too often", _share_counter("exhausted_total")),
    (CounterMetricFamily, "millpond_share_timed_out", "Held for too long", _share_counter("timed_out_total")),
]


ROUTING_METRICS: Final[list[tuple[Family, str, str, Callable[[RecordRouter], int]]]] = [
    (
        GaugeMetricFamily,
        "millpond_topic_routing_lag",
        "Records that are still to be routed to what is bound to their topic",
        lambda router: int(router.lag),
    ),
    (
        CounterMetricFamily,
        "millpond_topic_records_routed",
        "Records that went to at least one queue",
        lambda router: int(router.routed_total),
    ),
    (
        CounterMetricFamily,
        "millpond_topic_records_unroutable",
        "Records that no binding led anywhere",
        lambda router: int(router.unroutable_total),
    ),
    (
        CounterMetricFamily,
        "millpond_topic_records_missed",
        "Records that were deleted before they were routed",
        lambda router: int(router.missed_total),
    ),
]


class BrokerCollector(Collector):
    """The core's state. With `per_queue`, what queues and topics have is told for each, labelled; otherwise summed."""

    def __init__(self, broker: Broker, per_queue: bool) -> None:
        self._broker = broker
        self._per_queue = per_queue

    def describe(self) -> Iterable[Metric]:
        # Nothing is known in advance: without this the registry would collect once to find out.
        return []

    def collect(self) -> Iterator[Metric]:
        broker = self._broker
        queues = [(vhost.name, queue) for vhost in broker.vhosts.values() for queue in vhost.all_queues()]
        yield GaugeMetricFamily("rabbitmq_connections", "Connections open", len(broker.connections))
        yield GaugeMetricFamily("rabbitmq_channels", "Channels open", views.channels_open(broker))
        yield GaugeMetricFamily("rabbitmq_queues", "Queues", len(queues))
        yield GaugeMetricFamily("rabbitmq_consumers", "Consumers", sum(len(queue.consumers) for _, queue in queues))
        published = sum(int(vhost.published_total) for vhost in broker.vhosts.values())
        unroutable = sum(int(vhost.unroutable_total) for vhost in broker.vhosts.values())
        yield CounterMetricFamily("rabbitmq_global_messages_received", "Messages published", published)
        yield CounterMetricFamily("rabbitmq_global_messages_unroutable_dropped", "Messages without a queue", unroutable)
        yield from self._queue_metrics(queues)
        topics = [(vhost.name, topic) for vhost in broker.vhosts.values() for topic in vhost.topics.by_name.values()]
        yield GaugeMetricFamily("millpond_topics", "Topics", len(topics))
        yield from self._topic_metrics(topics)
        yield from self._routing_metrics()
        yield from self._request_metrics()
        holders = [holder for vhost in broker.vhosts.values() for holder in vhost.delay_queues.values()]
        delayed = sum(int(holder.delayed) for holder in holders)
        yield GaugeMetricFamily("millpond_exchange_messages_delayed", "Held by delayed exchanges", delayed)
        yield GaugeMetricFamily("millpond_memory_messages_bytes", "Memory that messages take", int(broker.memory.used))
        yield GaugeMetricFamily("millpond_memory_budget_bytes", "Memory that they may", int(broker.memory.budget_bytes))
        store, alarmed = broker.store, broker.alarms.raised_total
        yield CounterMetricFamily("millpond_pages_written", "Pages moved to disk", store.pages_written_total)
        yield CounterMetricFamily("millpond_pages_read", "Pages brought back from disk", store.pages_read_total)
        yield from self._group_metrics()
        yield from self._transaction_metrics()
        yield from self._share_metrics()
        streams = broker.streams
        yield CounterMetricFamily("millpond_stream_reads", "Reads of streams from disk", streams.reads_total)
        yield CounterMetricFamily("millpond_stream_writes", "Writes of streams to their logs", streams.writes_total)
        yield CounterMetricFamily("millpond_alarms_raised", "Times that an alarm blocked publishers", alarmed)
        alarms = GaugeMetricFamily("millpond_alarm", "Whether publishers are blocked, by reason", labels=["reason"])
        for reason in (ALARM_MEMORY, ALARM_DISK, ALARM_STORAGE):
            alarms.add_metric([reason], int(reason in broker.alarms.reasons))
        yield alarms
        # By the names that alerts for RabbitMQ have.
        for name, text, reason in (
            ("rabbitmq_alarms_memory_used_watermark", "Whether the memory alarm is on", ALARM_MEMORY),
            ("rabbitmq_alarms_free_disk_space_watermark", "Whether the disk alarm is on", ALARM_DISK),
        ):
            yield GaugeMetricFamily(name, text, int(reason in broker.alarms.reasons))

    def _queue_metrics(self, queues: list[tuple[str, MessageQueue]]) -> Iterator[Metric]:
        for family, name, text, value_of in QUEUE_METRICS:
            if self._per_queue:
                metric = family(name, text, labels=["vhost", "queue"])
                for vhost, queue in queues:
                    metric.add_metric([_label(vhost), _label(queue.name)], value_of(queue))
                yield metric
            else:
                yield family(name, text, sum(value_of(queue) for _, queue in queues))

    def _group_metrics(self) -> Iterator[Metric]:
        broker = self._broker
        groups = [(vhost, group) for vhost in broker.vhosts.values() for group in vhost.groups.groups()]
        states = GaugeMetricFamily("millpond_groups", "Consumer groups, by state", labels=["state"])
        for state in (*STATES, ASSIGNING, RECONCILING):
            states.add_metric([state], sum(group.state == state for _, group in groups))
        yield states
        offsets = broker.groups.totals.offsets
        yield GaugeMetricFamily("millpond_groups_offsets", "Offsets that consumer groups have committed", offsets)
        members = ("millpond_group_members", "Members of consumer groups")
        if not self._per_queue:
            yield GaugeMetricFamily(*members, sum(group.member_count for _, group in groups))
            return
        by_group = GaugeMetricFamily(*members, labels=["vhost", "group"])
        lags = GaugeMetricFamily("millpond_group_lag", "Records that a group has yet to come to", labels=LAG_LABELS)
        for vhost, group in groups:
            names = [_label(vhost.name), _label(group.id)]
            by_group.add_metric(names, group.member_count)
            for topic, lag in lag_by_topic(vhost, group).items():
                lags.add_metric([*names, _label(topic)], lag)
        yield by_group
        yield lags

    def _transaction_metrics(self) -> Iterator[Metric]:
        totals = self._broker.transactions.totals
        yield GaugeMetricFamily("millpond_transactional_ids", "Transactional ids", totals.transactional_ids)
        yield GaugeMetricFamily("millpond_transactions_ongoing", "Transactions that are open", totals.ongoing)
        ended = CounterMetricFamily("millpond_transactions", "Transactions that have ended, by how", labels=["result"])
        ended.add_metric(["committed"], totals.committed_total)
        ended.add_metric(["aborted"], totals.aborted_total)
        yield ended
        late = totals.timed_out_total
        yield CounterMetricFamily("millpond_transactions_timed_out", "Those aborted for their timeout", late)

    def _share_metrics(self) -> Iterator[Metric]:
        """What share groups have yet to do and what they have done: of each, labelled, or of all together."""
        vhosts = self._broker.vhosts.values()
        sessions = sum(len(vhost.shares.sessions) for vhost in vhosts)
        yield GaugeMetricFamily("millpond_share_sessions", "Sessions of share consumers", sessions)
        places = [
            (_label(vhost.name), place)
            for vhost in vhosts
            for group in vhost.shares.groups.values()
            for place in group.partitions.values()
        ]
        for family, name, text, value_of in SHARE_METRICS:
            if not self._per_queue:
                yield family(name, text, sum(value_of(place) for _, place in places))
                continue
            values: dict[tuple[str, str, str], int] = {}
            for vhost, place in places:
                key = (vhost, _label(place.group.id), _label(place.topic.name))
                values[key] = values.get(key, 0) + value_of(place)
            metric = family(name, text, labels=LAG_LABELS)
            for key, value in values.items():
                metric.add_metric(list(key), value)
            yield metric

    def _topic_metrics(self, topics: list[tuple[str, Topic]]) -> Iterator[Metric]:
        streams = self._broker.streams
        for family, name, text, value_of in TOPIC_METRICS:
            if self._per_queue:
                metric = family(name, text, labels=["vhost", "topic"])
                for vhost, topic in topics:
                    value = sum(value_of(streams, partition) for partition in topic.partitions)
                    metric.add_metric([_label(vhost), _label(topic.name)], value)
                yield metric
            else:
                partitions = [partition for _, topic in topics for partition in topic.partitions]
                yield family(name, text, sum(value_of(streams, partition) for partition in partitions))

    def _routing_metrics(self) -> Iterator[Metric]:
        """What becomes of the records of topics that queues are bound to."""
        broker = self._broker
        read = [(vhost, topic, list(vhost.sources.routers_of(topic)))
                for vhost in broker.vhosts.values() for topic in vhost.topics.by_name.values()]  # fmt: skip
        read = [one for one in read if one[2]]
        for family, name, text, value_of in ROUTING_METRICS:
            if self._per_queue:
                metric = family(name, text, labels=["vhost", "topic"])
                for vhost, topic, routers in read:
                    value = sum(value_of(router) for router in routers)
                    metric.add_metric([_label(vhost.name), _label(topic.name)], value)
                yield metric
            else:
                yield family(name, text, sum(value_of(router) for _, _, routers in read for router in routers))

    def _request_metrics(self) -> Iterator[Metric]:
        """By the names and codes of the protocol, which are few, whatever clients send."""
        throttled = CounterMetricFamily("millpond_throttled", "Answers that told to wait", labels=["quota"])
        throttled_s = CounterMetricFamily("millpond_throttled_seconds", "How long they told to wait", labels=["quota"])
        for name, count in self._broker.quotas.throttled.items():
            throttled.add_metric([name], count)
            throttled_s.add_metric([name], self._broker.quotas.throttled_ms[name] / 1000)
        yield throttled
        yield throttled_s
        requests = CounterMetricFamily("millpond_requests", "Requests", labels=["protocol", "api"])
        for (protocol, api), count in self._broker.requests.items():
            requests.add_metric([protocol, api], count)
        yield requests
        errors = CounterMetricFamily(
            "millpond_request_errors", "Errors in answers, by their codes", labels=["protocol", "api", "code"]
        )
        for (protocol, api, code), count in self._broker.request_errors.items():
            errors.add_metric([protocol, api, str(code)], count)
        yield errors


def _label(name: str) -> str:
    # A name that is not Unicode cannot be a label as it is.
    return name.encode(errors="surrogateescape").decode(errors="replace")


class Metrics:
    """Renders what Prometheus asks for."""

    def __init__(self, broker: Broker) -> None:
        self._summed: Final = CollectorRegistry()
        self._per_queue: Final = CollectorRegistry()
        for registry, per_queue in ((self._summed, False), (self._per_queue, True)):
            registry.register(BrokerCollector(broker, per_queue))
        ProcessCollector(registry=self._summed)
        PlatformCollector(registry=self._summed)
        GCCollector(registry=self._summed)

    def summed(self) -> bytes:
        return generate_latest(self._summed)

    def per_queue(self) -> bytes:
        return generate_latest(self._per_queue)
