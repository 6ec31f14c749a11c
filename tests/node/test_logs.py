"""Log lines: one per event, with their facts, never forged, never a flood."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.logs import RepeatFilter, about, set_up, utc_text

log = logging.getLogger("node.test")


@pytest.fixture
def root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


pytestmark = pytest.mark.usefixtures("root_logger_restored")


def test_a_line_carries_the_facts_it_was_logged_inside() -> None:
    stream = io.StringIO()
    set_up(stream=stream, journal=False)
    with about(step=12), about(microbatch=340):
        log.info("microbatch done: peer=%s", "9mWnXhQa")
    log.info("outside")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(
        "INFO    node.test: microbatch done: peer=9mWnXhQa step=12 microbatch=340"
    )
    assert second.endswith("node.test: outside")


def test_json_lines_have_facts_as_keys_and_an_exception_in_one_line() -> None:
    stream = io.StringIO()
    set_up(stream=stream, style="json", journal=False)
    with about(round=3, level="cannot hide the real one"):
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("round failed")
    (line,) = stream.getvalue().splitlines()
    data = json.loads(line)
    assert data["round"] == 3
    assert data["level"] == "error"
    assert data["message"] == "round failed"
    assert "ValueError: broken" in data["exception"]


def test_text_with_control_characters_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    set_up(stream=stream, journal=False)
    log.info("name=%s", "x\n2026-01-01T00:00:00.000Z ERROR node: all is lost\x1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert r"x\n2026" in line
    assert "\x1b" not in line


def test_under_journald_every_line_says_its_priority() -> None:
    stream = io.StringIO()
    set_up(stream=stream, journal=True)
    log.warning("careful")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("<4>")
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines[1:])


def record(message: str, created: float, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("node.test", level, "", 0, message, (), None)
    made.created = created
    return made


def test_a_repeated_phrase_is_written_a_few_times_and_then_counted() -> None:
    repeats = RepeatFilter(repeats_max=3, window_s=60.0)
    written = [repeats.filter(record("peer gone", created)) for created in range(10)]
    assert written == [True] * 3 + [False] * 7
    again = record("peer gone", 61.0)
    assert repeats.filter(again)
    assert again.facts == {"repeats_dropped": 7}  # type: ignore[attr-defined]


def test_errors_and_other_phrases_are_never_dropped() -> None:
    repeats = RepeatFilter(repeats_max=1)
    assert repeats.filter(record("one", 0.0))
    assert repeats.filter(record("two", 0.0))
    assert all(repeats.filter(record("bad", 0.0, logging.ERROR)) for _ in range(5))


def test_times_are_utc_and_sort_as_text() -> None:
    assert utc_text(0.0) == "1970-01-01T00:00:00.000Z"
    assert utc_text(1.5) < utc_text(10.25)


def test_the_keys_of_a_json_line_are_those_that_operators_are_told() -> None:
    stream = io.StringIO()
    set_up(stream=stream, style="json", journal=False, level="debug")
    with about(step=1, microbatch=2, round=3, peer="x"):
        log.info("said")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed")
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    _, _, after = text.partition("A line of JSON has these keys")
    table = after.partition("\n## ")[0]
    told = {
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    found = {key for line in stream.getvalue().splitlines() for key in json.loads(line)}
    assert found == told - {"repeats_dropped"}
