"""Logs: JSON for machines, lines for people, secrets for nobody."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from millpond import logs
from millpond.base.limits import LOG_INTERVAL_S, LOG_LINES_OF_A_KIND_MAX


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_stream_that_is_no_terminal_gets_one_json_object_a_line(output: io.StringIO) -> None:
    logs.configure("auto", "info", output)
    logger = logging.getLogger("millpond.test")
    logger.debug("unheard")
    logger.info("queue deleted", extra={"queue": "work", "messages": 3})
    try:
        raise ValueError("on purpose")
    except ValueError:
        logger.exception("it failed\nbadly")
    first, second = map(json.loads, output.getvalue().splitlines())
    assert (first["event"], first["queue"], first["messages"], first["level"]) == ("queue deleted", "work", 3, "info")
    assert first["time"].endswith("Z")
    assert "ValueError: on purpose" in second["exception"]


def test_people_get_a_line_with_the_facts(output: io.StringIO) -> None:
    logs.configure("human", "info", output)
    logging.getLogger("millpond.test").warning("disk is low", extra={"free": "12 MiB"})
    [line] = output.getvalue().splitlines()
    assert "disk is low" in line
    assert "12 MiB" in line


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_secret_is_never_written(output: io.StringIO, log_format: str) -> None:
    logs.configure("human" if log_format == "human" else "json", "info", output)
    facts = {"password": "hunter2", "user_password_hash": "hunter2", "Authorization": "hunter2", "user": "ann"}
    logging.getLogger("elsewhere").info("login", extra=facts)
    assert "hunter2" not in output.getvalue()
    assert "ann" in output.getvalue()


def test_what_is_said_too_often_is_counted_instead(output: io.StringIO) -> None:
    logs.configure("json", "info", output)
    logger = logging.getLogger("millpond.test")
    for number in range(LOG_LINES_OF_A_KIND_MAX + 50):
        logger.info("peer %d refused", number)
    logger.info("something else")
    lines = output.getvalue().splitlines()
    assert len(lines) == LOG_LINES_OF_A_KIND_MAX + 1
    assert "more like this are left out" in lines[-2]
    assert "something else" in lines[-1]


def test_after_a_flood_it_is_told_how_much_was_left_out() -> None:
    flood = logs.FloodFilter()

    def line(at_s: float) -> logging.LogRecord:
        record = logging.LogRecord("millpond.test", logging.WARNING, "", 0, "peer %d refused", (7,), None)
        record.created = at_s
        return record

    assert sum(flood.filter(line(1000.0)) for _ in range(LOG_LINES_OF_A_KIND_MAX + 50)) == LOG_LINES_OF_A_KIND_MAX
    later = line(1000.0 + LOG_INTERVAL_S)
    assert flood.filter(later)
    assert later.getMessage() == "peer 7 refused (50 more like this were left out before)"
