"""What real clients say to the broker, written down by a proxy between them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

# A client that does not come to its end by then is cut off: what it has said so far is worth having too.
SESSION_SECONDS_MAX: Final = 20.0
_CHUNK_BYTES: Final = 1 << 16
_TOPIC: Final = "captured"


class Recorder:
    """A proxy, and what the clients of each connection have said. It listens at once; `upstream` may come later."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: Final[int] = self._listener.getsockname()[1]
        self.upstream = 0
        self._said: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def conversations(self) -> list[bytes]:
        """What was said so far, by connection."""
        return [bytes(said) for said in self._said if said]

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                return
            said = bytearray()
            self._said.append(said)
            self._sockets += (client, broker)
            threading.Thread(target=_pass_on, args=(client, broker, said), daemon=True).start()
            threading.Thread(target=_pass_on, args=(broker, client, None), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, said: bytearray | None) -> None:
    try:
        while data := source.recv(_CHUNK_BYTES):
            if said is not None:
                said += data
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # The other side has gone first.
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


# --- AMQP -------------------------------------------------------------------------------------------------------------


def _pika_session(port: int) -> None:
    import pika

    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
    channel = connection.channel()
    channel.exchange_declare("captured.exchange", "topic", durable=True)
    channel.queue_declare("captured", durable=True, arguments={"x-max-length": 100, "x-dead-letter-exchange": ""})
    channel.queue_bind("captured", "captured.exchange", "a.#")
    channel.confirm_delivery()
    properties = pika.BasicProperties(
        content_type="text/plain", headers={"n": 1, "t": {"a": ["b"]}}, delivery_mode=2, priority=3, correlation_id="c",
        expiration="60000", message_id="m", timestamp=1_700_000_000, app_id="captures",
    )  # fmt: skip
    for number in range(4):
        channel.basic_publish("captured.exchange", "a.b", b"message %d" % number, properties, mandatory=True)
    channel.basic_qos(prefetch_count=2)
    for count, (method, _, _) in enumerate(channel.consume("captured", inactivity_timeout=1.0)):
        if method is None or count == 2:
            break
        if count == 0:
            channel.basic_ack(method.delivery_tag)
        else:
            channel.basic_nack(method.delivery_tag, requeue=False)
    channel.cancel()
    channel.basic_get("captured", auto_ack=True)
    channel.queue_purge("captured")
    channel.queue_delete("captured")
    connection.close()


def _transactional_session(port: int) -> None:
    import pika

    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
    channel = connection.channel()
    channel.queue_declare("captured.tx", durable=True, arguments={"x-queue-type": "quorum"})
    channel.tx_select()
    channel.basic_publish("", "captured.tx", b"x" * 3000)
    channel.tx_commit()
    channel.basic_publish("", "captured.tx", b"never")
    channel.tx_rollback()
    stream = connection.channel()
    stream.queue_declare("captured.stream", durable=True, arguments={"x-queue-type": "stream"})
    stream.basic_publish("", "captured.stream", b"streamed")
    stream.basic_qos(prefetch_count=10)
    consuming = stream.consume("captured.stream", arguments={"x-stream-offset": "first"}, inactivity_timeout=1.0)
    method, _, _ = next(consuming)
    if method is not None:
        stream.basic_ack(method.delivery_tag)
    stream.cancel()
    stream.queue_delete("captured.stream")
    channel.queue_delete("captured.tx")
    connection.close()


# --- Kafka ------------------------------------------------------------------------------------------------------------


def _confluent_session(port: int) -> None:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    # It logs without end when it cannot connect.
    common: dict[str, Any] = {"bootstrap.servers": f"127.0.0.1:{port}", "logger": None, "log_level": 0}
    common.pop("logger")
    administrator = AdminClient(common)
    for future in administrator.create_topics([NewTopic(_TOPIC, 2)]).values():
        with contextlib.suppress(Exception):
            future.result(10)
    producer = Producer({**common, "transactional.id": "captured", "compression.type": "lz4"})
    producer.init_transactions(10)
    producer.begin_transaction()
    for number in range(5):
        producer.produce(_TOPIC, key=b"%d" % number, value=b"value %d" % number, headers=[("h", b"v")])
    producer.commit_transaction(10)
    producer.begin_transaction()
    producer.produce(_TOPIC, value=b"never")
    producer.abort_transaction(10)
    consumer = Consumer({**common, "group.id": "captured", "auto.offset.reset": "earliest"})
    consumer.subscribe([_TOPIC])
    give_up_at = time.monotonic() + 8
    count = 0
    while count < 5 and time.monotonic() < give_up_at:
        message = consumer.poll(0.2)
        count += message is not None and message.error() is None
    consumer.commit(asynchronous=False)
    consumer.close()


def _aiokafka_session(port: int) -> None:
    asyncio.run(asyncio.wait_for(_converse_by_aiokafka(port), SESSION_SECONDS_MAX))


async def _converse_by_aiokafka(port: int) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    address = f"127.0.0.1:{port}"
    async with AIOKafkaProducer(
        bootstrap_servers=address, enable_idempotence=True, compression_type="gzip"
    ) as producer:
        for number in range(5):
            await producer.send_and_wait(_TOPIC, b"value %d" % number, key=b"k")
    async with AIOKafkaConsumer(
        _TOPIC, bootstrap_servers=address, group_id="captured.aio", auto_offset_reset="earliest"
    ) as consumer:
        await consumer.getmany(timeout_ms=3000)
        await consumer.commit()


# --- The management API -----------------------------------------------------------------------------------------------


def _management_session(port: int) -> None:
    headers = {
        "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
        "Content-Type": "application/json",
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SESSION_SECONDS_MAX)
    asked: list[tuple[str, str, object]] = [
        ("GET", "/api/overview", None),
        ("PUT", "/api/queues/%2F/captured.admin", {"durable": True, "arguments": {"x-max-length": 5}}),
        ("POST", "/api/exchanges/%2F/amq.default/publish",
         {"routing_key": "captured.admin", "payload": "hello", "payload_encoding": "string", "properties": {}}),
        ("GET", "/api/queues?page=1&page_size=10&name=capt&sort=name&columns=name,messages", None),
        ("POST", "/api/queues/%2F/captured.admin/get", {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}),
        ("PUT", "/api/policies/%2F/captured", {"pattern": "^captured", "definition": {"max-length": 9}, "priority": 1}),
        ("POST", "/api/definitions", {"queues": [{"name": "captured.d", "vhost": "/", "durable": True}]}),
        ("DELETE", "/api/policies/%2F/captured", None),
        ("DELETE", "/api/queues/%2F/captured.admin", None),
        ("GET", "/metrics", None),
    ]  # fmt: skip
    for verb, path, body in asked:
        connection.request(verb, path, json.dumps(body) if body is not None else None, headers)
        connection.getresponse().read()
    connection.close()


# By the listener that they speak to.
SESSIONS: Final[dict[str, tuple[Callable[[int], None], ...]]] = {
    "amqp": (_pika_session, _transactional_session),
    "kafka": (_confluent_session, _aiokafka_session),
    "http": (_management_session,),
}


def capture(recorder: Recorder, protocol: str) -> list[bytes]:
    """What the clients of a protocol say, by connection. Raises what they raise."""
    for session in SESSIONS[protocol]:
        session(recorder.port)
    return recorder.conversations()
