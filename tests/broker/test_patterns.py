"""Patterns of permissions and policies: what they match, and that none of them takes long."""

from __future__ import annotations

import pytest

from millpond.broker.patterns import compile_pattern

LONG_NAME = "a" * 254 + "!"
# What Python's engine tries in more ways than anybody waits for: the tests' own timeout would tell.
ENDLESS = ("(a+)+$", "^(a|a)*$", "(.*a){12}b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a?){30}a{30}b", "a.*a.*a.*a.*b")


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_with_endless_ways_says_soon_that_it_does_not_match(pattern: str) -> None:
    assert compile_pattern(pattern).search(LONG_NAME) is None


@pytest.mark.parametrize("pattern", ["(?!x)(a+)+$", "^(?=.*a)(?=.*b)(?=.*c).*$", r"(a+)+\1$", "(a?){200}a{200}"])
def test_a_pattern_that_could_only_be_matched_slowly_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"too l"):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "name", "is_found"),
    [
        ("a|b", "xbx", True),
        ("", "anything", True),
        (r"^(?!amq\.).*", "amq.direct", False),
        (r"^(?!amq\.).*", "orders", True),
        (r"^orders\.(eu|us)\..*$", "orders.eu.x", True),
        ("[ab]", "b", True),
        ("(ab+)+c", "xxababbc", True),
    ],
)
def test_a_pattern_is_searched_in_the_name(pattern: str, name: str, is_found: bool) -> None:
    assert (compile_pattern(pattern).search(name) is not None) == is_found


def test_a_name_that_is_no_utf_8_is_no_trouble_to_a_pattern_with_many_ways() -> None:
    assert compile_pattern("(a+)+$").search("\udcffaaa") is not None
