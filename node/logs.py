"""Logs on stderr: one line per event, as text or JSON, with the step, microbatch or round they are about.

    with about(step=12, microbatch=340):
        log.info("microbatch done: peer=%s", peer.short)

    2026-08-23T10:15:02.113Z INFO  node.training: microbatch done: peer=9mWnXhQa step=12 microbatch=340

Rules: text from peers is never passed to a logger (say who and what rule they broke); control characters are escaped
here all the same, so that no line can be forged. The same phrase is written once a minute, and counted in between. As JSON:
docs/operations.md says what each key means.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Any, Final, Literal, TypeAlias

from node.systemd import stderr_is_journal
from protocols.shown import shown

Fact: TypeAlias = str | int | float

REPEATS_MAX: Final = 1
"""Lines with one phrase that are written within a window; more of them say little that is new."""
REPEAT_WINDOW_S: Final = 60.0
PHRASES_MAX: Final = 1024
"""Phrases remembered for counting; phrases are ours (templates, not text), so this is never reached in practice."""

_about: ContextVar[Mapping[str, Fact] | None] = ContextVar("murmura_log_about", default=None)
_PRIORITY: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


@contextmanager
def about(**facts: Fact) -> Iterator[None]:
    """Add facts (step, microbatch, round, peer) to every line logged inside, in this task and those it starts."""
    token = _about.set({**(_about.get() or {}), **facts})
    try:
        yield
    finally:
        _about.reset(token)


def set_up(
    *,
    level: str = "info",
    style: Literal["text", "json"] = "text",
    stream: IO[str] | None = None,
    journal: bool | None = None,
) -> None:
    """Send all logs of this process to stderr. Called once, by the entry points; tests may call it again."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_remember_facts)
    handler.addFilter(RepeatFilter())
    inner = JsonFormatter() if style == "json" else TextFormatter()
    to_journal = stderr_is_journal() if journal is None else journal
    handler.setFormatter(JournalFormatter(inner) if to_journal else inner)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("multiaddr").setLevel(logging.INFO)  # at debug it tells of every byte


def _remember_facts(record: logging.LogRecord) -> bool:
    record.facts = _about.get() or {}
    return True


class RepeatFilter(logging.Filter):
    """Drops a phrase that has been logged `repeats_max` times in a window, and says how many were dropped after it.

    A phrase is logger, level and template. Errors are never dropped: a person must act on each. Nor is what is below
    info: who asks for it wants all of it.
    """

    def __init__(
        self,
        repeats_max: int = REPEATS_MAX,
        window_s: float = REPEAT_WINDOW_S,
        clock_s: Callable[[logging.LogRecord], float] = lambda record: record.created,
    ) -> None:
        """
        Args:
          clock_s: tells when a record was made; tests live in virtual time.
        """
        super().__init__()
        self._clock_s = clock_s
        self._repeats_max = repeats_max
        self._window_s = window_s
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR or record.levelno < logging.INFO:
            return True
        phrase = (record.name, record.levelno, str(record.msg))
        now_s = self._clock_s(record)
        opened_s, count = self._seen.get(phrase, (now_s, 0))
        dropped = 0
        if now_s - opened_s >= self._window_s:
            dropped = max(0, count - self._repeats_max)
            opened_s, count = now_s, 0
        self._seen.pop(phrase, None)
        self._seen[phrase] = (opened_s, count + 1)
        if len(self._seen) > PHRASES_MAX:
            del self._seen[next(iter(self._seen))]
        if dropped:
            record.facts = {**getattr(record, "facts", {}), "repeats_dropped": dropped}
        return count < self._repeats_max


class TextFormatter(logging.Formatter):
    """`time level logger: message facts`, then the traceback when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={shown(str(fact))}" for name, fact in _facts(record).items())
        head = f"{utc_text(record.created)} {record.levelname:<7} {record.name}:"
        line = f"{head} {shown(record.getMessage())}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line; facts are keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            "time": utc_text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        data |= {name: fact for name, fact in _facts(record).items() if name not in data}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=True, default=str)


class JournalFormatter(logging.Formatter):
    """Prefixes every line with `<priority>` for journald, tracebacks included, and leaves the rest to `inner`."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in self._inner.format(record).split("\n"))


def utc_text(unix_s: float) -> str:
    """`2026-08-23T10:15:02.113Z`: sorts as text and names its zone."""
    return (
        datetime.fromtimestamp(unix_s, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _facts(record: logging.LogRecord) -> Mapping[str, Fact]:
    facts: Mapping[str, Fact] = getattr(record, "facts", {})
    return facts
