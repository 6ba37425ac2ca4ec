"""Which policy applies to what, what acts then, and what a policy may be: RabbitMQ's rules."""

from __future__ import annotations

from typing import Any

import pytest

from millpond.base import limits
from millpond.base.errors import LimitExceeded, NotFound, PreconditionFailed
from millpond.broker import arguments
from millpond.broker.arguments import POLICY_KEYS
from millpond.broker.policies import OPERATOR_POLICY, POLICY, Policies, checked_policy, effective_arguments
from millpond.catalog.rows import PolicyRow


def policy(name: str, pattern: str, priority: int = 0, apply_to: str = "all", **definition: Any) -> PolicyRow:
    settings = {key.replace("_", "-"): value for key, value in definition.items()} or {"max-length": 1}
    return checked_policy("/", name, POLICY, pattern, settings, priority, apply_to)


def operator_policy(name: str, pattern: str, priority: int = 0, apply_to: str = "all", **definition: Any) -> PolicyRow:
    settings = {key.replace("_", "-"): value for key, value in definition.items()} or {"max-length": 1}
    return checked_policy("/", name, OPERATOR_POLICY, pattern, settings, priority, apply_to)


def policies_of(*rows: PolicyRow) -> Policies:
    policies = Policies()
    for row in rows:
        policies.put(row)
    return policies


def effective(
    own: dict[str, object], *rows: PolicyRow, queue_type: str = "classic", name: str = "queue"
) -> dict[str, object]:
    """The arguments that act on a queue."""
    return effective_arguments(own, policies_of(*rows).of_queue(name, queue_type), queue_type)


def applied_name(policies: Policies, name: str, queue_type: str = "classic") -> str | None:
    applied = policies.of_queue(name, queue_type)
    return applied.policy.name if applied is not None and applied.policy is not None else None


class TestMatching:
    def test_a_pattern_is_searched_in_the_name(self) -> None:
        policies = policies_of(policy("p", "middle"))
        assert applied_name(policies, "in-the-middle-of") == "p"
        assert applied_name(policies, "elsewhere") is None

    def test_the_empty_pattern_matches_every_name(self) -> None:
        assert applied_name(policies_of(policy("p", "")), "any") == "p"

    def test_the_highest_priority_applies_alone(self) -> None:
        policies = policies_of(
            policy("low", ".*", -1, message_ttl=1), policy("high", "^a", 10), policy("middle", ".*", 5)
        )
        assert applied_name(policies, "abc") == "high"
        assert applied_name(policies, "xyz") == "middle"
        applied = policies.of_queue("abc", "classic")
        assert applied is not None
        assert applied.definition == {"max-length": 1}

    def test_the_name_decides_between_equal_priorities(self) -> None:
        assert applied_name(policies_of(policy("b", ""), policy("a", "")), "q") == "a"

    @pytest.mark.parametrize(
        ("apply_to", "classic", "quorum", "stream", "exchange"),
        [
            ("all", True, True, True, True),
            ("queues", True, True, True, False),
            ("classic_queues", True, False, False, False),
            ("quorum_queues", False, True, False, False),
            ("streams", False, False, True, False),
            ("exchanges", False, False, False, True),
        ],
    )
    def test_apply_to_says_what_it_is_for(
        self, apply_to: str, classic: bool, quorum: bool, stream: bool, exchange: bool
    ) -> None:
        policies = policies_of(policy("p", "", apply_to=apply_to, max_length_bytes=1))
        found = [policies.of_queue("q", kind) is not None for kind in ("classic", "quorum", "stream")]
        assert [*found, policies.of_exchange("x") is not None] == [classic, quorum, stream, exchange]

    def test_a_policy_with_a_key_that_a_type_cannot_have_gives_way_to_the_next(self) -> None:
        policies = policies_of(policy("quorum", "", 9, delivery_limit=3, max_length=5), policy("any", "", 1))
        assert applied_name(policies, "q", "quorum") == "quorum"
        assert applied_name(policies, "q", "classic") == "any"

    def test_a_policy_that_is_replaced_or_removed_applies_no_more(self) -> None:
        policies = policies_of(policy("p", "^a"), policy("p", "^b"))
        assert applied_name(policies, "a") is None
        assert applied_name(policies, "b") == "p"
        policies.remove("p", POLICY)
        assert applied_name(policies, "b") is None
        with pytest.raises(NotFound, match="no policy 'p'"):
            policies.remove("p", POLICY)

    def test_the_two_kinds_have_names_of_their_own(self) -> None:
        policies = policies_of(policy("p", "", max_length=5), operator_policy("p", "", max_length=3))
        policies.remove("p", POLICY)
        assert [row.definition for row in policies.rows(OPERATOR_POLICY)] == [{"max-length": 3}]

    def test_a_pattern_that_no_longer_compiles_matches_nothing(self) -> None:
        policies = policies_of(PolicyRow("/", "p", POLICY, "(", "all", {"max-length": 1}))
        assert applied_name(policies, "(") is None

    def test_there_is_a_limit_to_their_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "POLICIES_PER_VHOST_MAX", 1)
        policies = policies_of(policy("a", ""))
        policies.put(policy("a", "b"))
        with pytest.raises(LimitExceeded):
            policies.put(policy("b", ""))


class TestMerging:
    @pytest.mark.parametrize("key", ["message-ttl", "expires", "max-length", "max-length-bytes", "consumer-timeout"])
    def test_of_numbers_the_smaller_acts(self, key: str) -> None:
        row = checked_policy("/", "p", POLICY, "", {key: 10})
        assert effective({}, row) == {f"x-{key}": 10}
        assert effective({f"x-{key}": 20}, row) == {f"x-{key}": 10}
        assert effective({f"x-{key}": 5}, row) == {f"x-{key}": 5}

    @pytest.mark.parametrize("key", ["dead-letter-exchange", "dead-letter-routing-key"])
    def test_of_names_the_argument_acts(self, key: str) -> None:
        row = checked_policy("/", "p", POLICY, "", {key: "policy"})
        assert effective({}, row) == {f"x-{key}": "policy"}
        assert effective({f"x-{key}": "argument"}, row) == {f"x-{key}": "argument"}

    def test_the_policys_overflow_acts_on_a_quorum_queue_only(self) -> None:
        own: dict[str, object] = {"x-overflow": "drop-head"}
        row = policy("p", "", overflow="reject-publish")
        assert effective(own, row)["x-overflow"] == "drop-head"
        assert effective(own, row, queue_type="quorum")["x-overflow"] == "reject-publish"

    @pytest.mark.parametrize(
        ("argument", "set_by_policy", "acting"), [(5, 3, 3), (3, 5, 3), (-1, 5, 5), (5, -1, 5), (-1, -1, -1)]
    )
    def test_a_negative_delivery_limit_is_none_and_any_other_is_stricter(
        self, argument: int, set_by_policy: int, acting: int
    ) -> None:
        row = policy("p", "", delivery_limit=set_by_policy)
        assert effective({"x-delivery-limit": argument}, row, queue_type="quorum") == {"x-delivery-limit": acting}

    def test_an_operator_policy_limits_what_a_policy_asks_for(self) -> None:
        rows = policy("p", "", max_length=100, message_ttl=5), operator_policy("o", "", max_length=10, message_ttl=50)
        applied = policies_of(*rows).of_queue("q", "classic")
        assert applied is not None
        assert applied.definition == {"max-length": 10, "message-ttl": 5}

    def test_an_operator_policy_limits_what_arguments_ask_for(self) -> None:
        assert effective({"x-max-length": 100}, operator_policy("o", "", max_length=10)) == {"x-max-length": 10}

    def test_the_operators_overflow_wins_over_the_policys(self) -> None:
        rows = policy("p", "", overflow="drop-head"), operator_policy("o", "", overflow="reject-publish")
        assert effective({}, *rows) == {"x-overflow": "reject-publish"}

    def test_what_both_say_is_merged_key_by_key(self) -> None:
        rows = policy("p", "", dead_letter_exchange="dlx"), operator_policy("o", "", expires=10)
        assert effective({"x-max-length": 1, "other": "kept"}, *rows) == {
            "x-max-length": 1,
            "other": "kept",
            "x-dead-letter-exchange": "dlx",
            "x-expires": 10,
        }

    def test_without_a_policy_the_arguments_act_as_they_are(self) -> None:
        assert effective({"x-max-length": 1}) == {"x-max-length": 1}


class TestWhatAPolicyMayBe:
    @pytest.mark.parametrize(
        ("definition", "problem"),
        [
            ({"message-ttl": -1}, "-1 is not a valid message TTL"),
            ({"expires": 0}, "0 is not a valid queue expiry"),
            ({"max-length": "5"}, '<<"5">> is not a valid maximum length'),
            ({"max-length-bytes": True}, "true is not a valid maximum length in bytes"),
            ({"max-length": 1 << 63}, f"{1 << 63} is not a valid maximum length"),
            ({"overflow": "burst"}, '<<"burst">> is not a valid overflow value'),
            ({"dead-letter-exchange": 1}, "1 is not a valid dead letter exchange name"),
            ({"dead-letter-routing-key": None}, "null is not a valid dead letter routing key"),
            ({"alternate-exchange": ["x"]}, '[<<"x">>] is not a valid alternate exchange name'),
            ({"max-age": "soon"}, '<<"soon">> is not a valid max age'),
            ({"queue-version": True}, "true is not a valid queue-version value"),
            ({"stream-filter-size-bytes": 15}, "15 is not a valid filter size. Valid range is 16-255"),
            ({"delayed-retry-type": "all"}, "delayed-retry-min is required when delayed-retry-type is all"),
            (
                {"delayed-retry-type": "all", "delayed-retry-min": 5, "delayed-retry-max": 4},
                "delayed-retry-max (4) must not be smaller than delayed-retry-min (5)",
            ),
            ({"ha-mode": "all"}, '[{<<"ha-mode">>,<<"all">>}] are not recognised policy settings'),
            ({}, "no policy provided"),
            ([1], "definition must be a dictionary: [1]"),
        ],
    )
    def test_a_wrong_definition_is_refused_in_rabbitmqs_words(self, definition: object, problem: str) -> None:
        with pytest.raises(PreconditionFailed) as caught:
            checked_policy("/", "p", POLICY, ".*", definition)
        assert str(caught.value) == f"Validation failed\n\n{problem}\n"

    def test_all_that_is_wrong_is_told_at_once(self) -> None:
        with pytest.raises(PreconditionFailed) as caught:
            checked_policy("/", "p", POLICY, "(", {"max-length": -1}, "high", "cats")
        assert str(caught.value).splitlines() == [
            "Validation failed",
            "",
            "-1 is not a valid maximum length",
            (
                "apply-to 'cats' unrecognised; should be one of: 'queues', 'classic_queues',  'quorum_queues', "
                "'streams', 'exchanges', or 'all'"
            ),
            "pattern should be regular expression but is invalid: missing ), unterminated subpattern at position 0",
            'priority should be a number, actually was <<"high">>',
        ]

    @pytest.mark.parametrize("key", ["dead-letter-exchange", "alternate-exchange", "max-age", "queue-mode"])
    def test_an_operator_policy_has_limits_only(self, key: str) -> None:
        with pytest.raises(PreconditionFailed, match="are not recognised policy settings"):
            checked_policy("/", "o", OPERATOR_POLICY, "", {key: "1D"})

    def test_what_is_left_out_has_rabbitmqs_default(self) -> None:
        row = checked_policy("/", "p", POLICY, "", {"max-length": 1})
        assert (row.priority, row.apply_to) == (0, "all")

    def test_every_key_that_arguments_know_is_checked_alike(self) -> None:
        shared = {key for key in POLICY_KEYS if f"x-{key}" in arguments._CHECKS}
        assert {"message-ttl", "max-length", "delivery-limit", "dead-letter-strategy", "consumer-timeout"} <= shared
        for key in shared:
            wrong: object = object()
            assert POLICY_KEYS[key].check(wrong, {}) is not None, key
            assert arguments._CHECKS[f"x-{key}"](wrong, {}) is not None, key
