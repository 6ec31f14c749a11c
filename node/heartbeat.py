"""Once a minute one line that says how the node is; more often the measurements behind `status`."""

from __future__ import annotations

import logging
from typing import Final

import trio

from node.limits import usage
from node.liveness import alive_problem
from node.node import Node
from node.status import one_line, unhealthy_reasons
from node.systemd import Supervisor
from protocols.health import Facts

log = logging.getLogger(__name__)

MEASURE_EVERY_S: Final = 10.0
"""Reading /proc for three processes takes about a millisecond; also how late the memory limit may act."""
LINE_EVERY: Final = 6
"""Measurements per log line: one line a minute."""


LOOK_EVERY_S: Final = 1.0
"""At how training goes; it costs a few comparisons."""


async def watch_health(node: Node) -> None:
    """See how training goes, and log when that changes from well to not, or back; until cancelled."""
    unhealthy = False
    while True:
        progress = node.progress()
        if node.trains:
            facts = Facts(
                step=progress.step,
                complete=progress.steps is not None and progress.step == progress.steps,
                leaving=not node.life.takes_work,
                resting=progress.resting,
                waiting_for=progress.waiting_for,
            )
            node.health.observe(trio.current_time(), facts)
        problems = unhealthy_reasons(node)
        if problems and not unhealthy:
            log.warning("unhealthy: %s", "; ".join(problems))
            node.twin.look()
        elif unhealthy and not problems:
            log.info("healthy again")
        unhealthy = bool(problems)
        await trio.sleep(LOOK_EVERY_S)


async def beat(node: Node, supervisor: Supervisor) -> None:
    """Measure, feed the watchdog, and log, until cancelled."""
    count = 0
    while True:
        node.usage = usage()
        node.memory.observe(node.usage.memory_bytes)
        if not alive_problem(node):
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
