"""Once a minute one line that says how the node is; more often the measurements behind `status`."""

from __future__ import annotations

import logging
from typing import Final

import trio

from node.limits import usage
from node.node import Node
from node.status import one_line
from node.systemd import Supervisor

log = logging.getLogger(__name__)

MEASURE_EVERY_S: Final = 10.0
"""Reading /proc for three processes takes about a millisecond; also how late the memory limit may act."""
LINE_EVERY: Final = 6
"""Measurements per log line: one line a minute."""


async def beat(node: Node, supervisor: Supervisor) -> None:
    """Measure, feed the watchdog, and log, until cancelled."""
    count = 0
    while True:
        node.usage = usage()
        node.memory.observe(node.usage.memory_bytes)
        supervisor.alive()
        supervisor.status(one_line(node))
        if count % LINE_EVERY == 0 and count:
            log.info(
                "heartbeat: %s memory_mb=%d loop_lag_p99_ms=%.1f",
                one_line(node),
                node.usage.memory_bytes >> 20,
                node.lag.read().p99_ms,
            )
        count += 1
        await trio.sleep(MEASURE_EVERY_S)
