"""Guessing passwords over the wire: each protocol keeps who fails too often waiting, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scramp import ScramClient

from millpond.base.limits import LOGIN_DELAY_MS, LOGIN_DELAY_MS_MAX, LOGIN_FAILURES_FREE_PER_USER
from millpond.protocols.amqp import methods
from tests.protocols.amqp import harness as amqp
from tests.protocols.kafka import harness as kafka
from tests.security.world import ANN, HOME, PASSWORD, ROOT, SASL_AUTHENTICATE, SASL_HANDSHAKE, World, world_of

REFUSED = 58


@pytest.fixture
def world() -> Iterator[World]:
    with world_of() as made:
        made.access.set_permission(ANN, HOME, ".*", ".*", ".*")
        made.access.set_tags(ANN, ("management",))
        yield made


class Attempt:
    """A login that is under way: whether it is refused, or let in, by now."""

    def is_refused(self) -> bool:
        raise NotImplementedError

    def is_in(self) -> bool:
        raise NotImplementedError


class AmqpAttempt(Attempt):
    def __init__(self, world: World, user: str, password: str) -> None:
        self._client = amqp.Client(world.amqp_waters)
        self._client.start(response=f"\0{user}\0{password}".encode())
        self._seen: list[amqp.Frame] = []
        world.pond.rest()

    def _has(self, method: type[methods.Method]) -> bool:
        self._seen += self._client.frames()
        return any(isinstance(frame.method, method) for frame in self._seen)

    def is_refused(self) -> bool:
        return self._has(methods.ConnectionClose)

    def is_in(self) -> bool:
        return self._has(methods.ConnectionTune)


class KafkaAttempt(Attempt):
    def __init__(self, world: World, user: str, password: str, mechanism: str = "PLAIN") -> None:
        self._client = world.pond.client()
        self._client.call(SASL_HANDSHAKE, 1, mechanism=mechanism)
        token = f"\0{user}\0{password}".encode()
        if mechanism != "PLAIN":
            scram = ScramClient([mechanism], user, password)
            first = self._client.call(SASL_AUTHENTICATE, 2, auth_bytes=scram.get_client_first().encode())
            scram.set_server_first(first.auth_bytes.decode())
            token = scram.get_client_final().encode()
        self._client.send(SASL_AUTHENTICATE, 2, auth_bytes=token)
        self._codes: list[int] = []
        world.pond.rest()

    def _seen(self) -> list[int]:
        self._codes += [int(answer.error_code.value) for answer in self._client.take_all()]
        return self._codes

    def is_refused(self) -> bool:
        return self._seen() == [REFUSED]

    def is_in(self) -> bool:
        return self._seen() == [0]


def scram_attempt(world: World, user: str, password: str) -> Attempt:
    return KafkaAttempt(world, user, password, "SCRAM-SHA-256")


Begin = Callable[[World, str, str], Attempt]
WAYS: dict[str, Begin] = {"amqp": AmqpAttempt, "kafka": KafkaAttempt, "scram": scram_attempt}


def use_up(world: World, begin: Begin, user: str = ANN) -> None:
    """Fail as often as costs nothing yet."""
    for _ in range(LOGIN_FAILURES_FREE_PER_USER):
        attempt = begin(world, user, "wrong")
        world.pond.advance(LOGIN_DELAY_MS)
        assert attempt.is_refused()


@pytest.mark.parametrize("begin", WAYS.values(), ids=WAYS)
def test_each_further_failure_is_refused_later(world: World, begin: Begin) -> None:
    use_up(world, begin)
    delay_ms = LOGIN_DELAY_MS
    for _ in range(8):
        attempt = begin(world, ANN, "wrong")
        world.pond.advance(delay_ms - 1)
        assert not attempt.is_refused()
        world.pond.advance(1)
        assert attempt.is_refused()
        delay_ms = min(2 * delay_ms, LOGIN_DELAY_MS_MAX)


@pytest.mark.parametrize("begin", [AmqpAttempt, KafkaAttempt])
def test_of_many_connections_at_once_few_are_looked_at(
    world: World, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_up(world, begin)
    verified: list[bytes] = []
    verify = world.access.verify_password

    def counting(name: str, password: bytes) -> bool:
        verified.append(password)
        return verify(name, password)

    monkeypatch.setattr(world.access, "verify_password", counting)
    attempts = [begin(world, ANN, "wrong") for _ in range(100)]
    for _ in range(3 * LOGIN_DELAY_MS_MAX // LOGIN_DELAY_MS):
        world.pond.advance(LOGIN_DELAY_MS)
    assert all(attempt.is_refused() for attempt in attempts)
    # The first is looked at on the spot, and those that have lined up before it has failed.
    assert 1 <= len(verified) <= 1 + LOGIN_DELAY_MS_MAX // LOGIN_DELAY_MS


@pytest.mark.parametrize("begin", WAYS.values(), ids=WAYS)
def test_others_log_in_at_once_meanwhile(world: World, begin: Begin) -> None:
    scram = world.ask("PUT", f"/api/users/{ROOT}", {"password": PASSWORD, "tags": "administrator"}, user=ROOT)
    assert scram.status == 204
    use_up(world, begin)
    attempts = [begin(world, ANN, "wrong") for _ in range(50)]
    assert begin(world, ROOT, PASSWORD).is_in()
    assert not all(attempt.is_refused() for attempt in attempts)


@pytest.mark.parametrize("begin", [AmqpAttempt, KafkaAttempt])
def test_who_has_logged_in_before_does_so_at_once_whoever_else_fails(world: World, begin: Begin) -> None:
    assert begin(world, ANN, PASSWORD).is_in()
    use_up(world, begin)
    for _ in range(50):
        begin(world, ANN, "wrong")
    assert begin(world, ANN, PASSWORD).is_in()


@pytest.mark.parametrize("begin", [AmqpAttempt, KafkaAttempt])
def test_the_right_password_waits_for_its_turn_and_no_longer(world: World, begin: Begin) -> None:
    use_up(world, begin)
    begin(world, ANN, "wrong")
    attempt = begin(world, ANN, PASSWORD)
    assert not attempt.is_in()
    world.pond.advance(LOGIN_DELAY_MS)
    assert attempt.is_in()


def test_failures_of_one_protocol_count_in_the_others(world: World) -> None:
    use_up(world, AmqpAttempt)
    attempt = KafkaAttempt(world, ANN, "wrong")
    world.pond.advance(LOGIN_DELAY_MS)
    assert attempt.is_refused()
    late = AmqpAttempt(world, ANN, "wrong")
    world.pond.advance(LOGIN_DELAY_MS)
    assert not late.is_refused()


def test_who_hangs_up_while_waiting_leaves_nothing_behind(world: World) -> None:
    use_up(world, AmqpAttempt)
    before = set(world.broker.connections)
    clients = []
    for _ in range(5):
        client = amqp.Client(world.amqp_waters)
        client.start(response=f"\0{ANN}\0wrong".encode())
        clients.append(client)
    other = kafka.Client(world.pond)
    other.call(SASL_HANDSHAKE, 1, mechanism="PLAIN")
    other.send(SASL_AUTHENTICATE, 2, auth_bytes=f"\0{ANN}\0wrong".encode())
    for gone in (*clients, other):
        gone.drop()
    world.pond.advance(3 * LOGIN_DELAY_MS_MAX)
    assert set(world.broker.connections) == before


def test_the_management_api_withholds_its_refusals_too(world: World) -> None:
    for _ in range(LOGIN_FAILURES_FREE_PER_USER):
        assert world.ask("GET", "/api/whoami", password="wrong").status == 401
    assert world.ask("GET", "/api/whoami", user=ROOT).status == 200
    before_ms = world.broker.clock.monotonic_ms()
    world.clock_runs = True
    assert world.ask("GET", "/api/whoami", password="wrong").status == 401
    assert world.broker.clock.monotonic_ms() - before_ms >= LOGIN_DELAY_MS
    # Of others nobody waits: the clock stands still.
    world.clock_runs = False
    assert world.ask("GET", "/api/whoami", user=ROOT).status == 200
