"""Reply codes: every error of the core has one, and the texts are what clients parse."""

from __future__ import annotations

from typing import Any

import pamqp.exceptions
import pytest

from millpond.base.errors import NotFound, PeerError
from millpond.protocols.amqp import replies
from millpond.protocols.amqp.replies import INTERNAL_ERROR, NOT_FOUND, REPLIES, Reply, reply_for

ALL = [value for value in vars(replies).values() if isinstance(value, Reply)]


# Those of consumer groups are none of AMQP's.
ERRORS = [each for each in PeerError.__subclasses__() if each.__module__ == PeerError.__module__]


@pytest.mark.parametrize("error_class", ERRORS, ids=lambda each: each.kind)
def test_every_error_of_the_core_has_a_reply(error_class: type[PeerError]) -> None:
    assert reply_for(error_class("text")) == REPLIES[error_class.kind]
    assert reply_for(error_class("text")) is not INTERNAL_ERROR


def test_an_error_without_a_line_is_an_internal_error() -> None:
    assert reply_for(PeerError("text")) is INTERNAL_ERROR


def test_codes_names_and_severity_are_amqps() -> None:
    mapping: dict[int, Any] = dict(pamqp.exceptions.CLASS_MAPPING)
    theirs = {
        code: (error.name.replace("-", "_"), issubclass(error, pamqp.exceptions.AMQPHardError))
        for code, error in mapping.items()
    }
    ours = {reply.code: (reply.name, reply.hard) for reply in ALL}
    assert ours == theirs


def test_the_text_begins_with_the_name() -> None:
    assert reply_for(NotFound("")).text("no queue 'q' in vhost '/'") == "NOT_FOUND - no queue 'q' in vhost '/'"


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
def test_a_long_text_is_cut_between_characters(character: str) -> None:
    text = NOT_FOUND.text(character * 300)
    assert 252 <= len(text.encode()) <= 255
    assert set(text.removeprefix("NOT_FOUND - ")) == {character}


def test_a_name_that_is_not_utf_8_does_not_break_the_text() -> None:
    assert NOT_FOUND.text("no queue 'a\udcffb'") == "NOT_FOUND - no queue 'ab'"
