"""What `murmura status` shows, as plain data. The keys are an interface: added to, never renamed.

Units are in the names; times are UTC. Everything comes from memory, so the answer takes a millisecond whatever the
node is busy with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import trio

from node.limits import descriptors_open
from node.liveness import alive_problem
from node.logs import utc_text
from node.node import Node
from protocols.life import LifeState
from protocols.replies import SOFTWARE_VERSION
from swarm.mode import Progress

SCHEMA_VERSION: Final = 1
"""Raised when a key changes its meaning or goes away; new keys do not raise it."""
JOINING_IS_FINE_S: Final = 60.0
"""A node that has been looking for peers for longer than this is reported unhealthy."""


def build_status(node: Node, *, now_unix_s: float) -> dict[str, Any]:
    """Return the whole status of a running node."""
    problems = unhealthy_reasons(node)
    return {
        "schema_version": SCHEMA_VERSION,
        "time": utc_text(now_unix_s),
        "healthy": not problems,
        "unhealthy_reasons": problems,
        "node": {
            "peer_id": str(node.peer_id),
            "version": SOFTWARE_VERSION,
            "pid": os.getpid(),
            "started": utc_text(node.started_unix_s),
            "uptime_seconds": round(trio.current_time() - node.started_s, 1),
            "addresses": list(node.host.addresses()),
            "state_dir": str(node.paths.state_dir),
        },
        "life": _life(node, now_unix_s),
        "run": _run(node),
        "network": {
            "peers": node.life.snapshot.peers,
            "transport": node.network.transport_status(),
            "clock_skew_seconds": None
            if node.skew.seconds is None
            else round(node.skew.seconds, 3),
            "streams_served": node.guard.streams_open,
            "streams_refused": node.guard.streams_refused,
            "bytes_held": node.guard.bytes_held,
            "faults": sum(node.guard.faults().values()),
            "http": None if node.http is None else node.http.status(),
        },
        "resources": _resources(node),
        "limits": _limits(node),
        "services": {member.service.name: member.status() for member in node.services.members},
    }


def unhealthy_reasons(node: Node) -> list[str]:
    """Return why a person should look at this node; empty when it does what it should (protocols.health).

    For status, exit codes and logs. The watchdog asks for less: see node.liveness.
    """
    snapshot = node.life.snapshot
    reasons = []
    if snapshot.state is LifeState.ISOLATED:
        reasons.append(f"isolated: {snapshot.reason}; see services.joining.dialled")
    elif snapshot.state is LifeState.JOINING and node.life.since_seconds > JOINING_IS_FINE_S:
        reasons.append(f"joining for {node.life.since_seconds:.0f} s; see services.joining.dialled")
    reasons += [
        reason
        for reason in (
            alive_problem(node),
            node.memory.reason,
            node.skew.problem,
            node.twin.problem,
            node.checkpoints.problem,
        )
        if reason
    ]
    reasons += node.progress().problems
    reasons += filter(None, [node.health.problem(trio.current_time())])
    reasons += [
        f"service {member.service.name} is down: {member.last_error}"
        for member in node.services.members
        if not member.up and member.last_error
    ]
    return reasons


def one_line(node: Node) -> str:
    """Summarize for the heartbeat and for `systemctl status`."""
    snapshot = node.life.snapshot
    problems = unhealthy_reasons(node)
    unhealthy = f"; unhealthy: {'; '.join(problems)}" if problems else ""
    training = "".join(f", {fact}" for fact in _training_facts(node.progress()))
    return f"{snapshot.state} ({snapshot.reason}), {snapshot.peers} peers{training}{unhealthy}"


def _training_facts(progress: Progress) -> Iterator[str]:
    """Yield how training goes in plain words, as far as it is known."""
    if progress.step is not None:
        yield f"step {progress.step}" + (f" of {progress.steps}" if progress.steps else "")
    if progress.loss is not None:
        yield f"loss {progress.loss:.4g}"
    if progress.samples_per_second is not None:
        yield f"{progress.samples_per_second:.4g} samples/s"


def _life(node: Node, now_unix_s: float) -> dict[str, Any]:
    snapshot = node.life.snapshot
    since_seconds = node.life.since_seconds
    return {
        "state": snapshot.state.value,
        "reason": snapshot.reason,
        "since": utc_text(now_unix_s - since_seconds),
        "since_seconds": round(since_seconds, 1),
    }


def _run(node: Node) -> dict[str, Any]:
    membership = node.membership
    return {
        "run_id": str(membership.run_id),
        "name": membership.spec.name if membership.spec else None,
        "mode": membership.spec.mode if membership.spec else None,
        "private": membership.run_key is not None,
    }


def _resources(node: Node) -> dict[str, Any]:
    lag = node.lag.read()
    usage = node.usage
    return {
        "memory_bytes": usage.memory_bytes if usage else None,
        "cpu_seconds": round(usage.cpu_seconds, 2) if usage else None,
        "processes": usage.processes if usage else None,
        "descriptors": descriptors_open(),
        "loop_lag_p50_ms": round(lag.p50_ms, 3),
        "loop_lag_p99_ms": round(lag.p99_ms, 3),
        "loop_lag_max_ms": round(lag.max_ms, 3),
        "loop_lag_samples": lag.samples,
        "task_seconds": round(node.task_seconds, 1),
    }


def _limits(node: Node) -> dict[str, Any]:
    config = node.config
    return {
        "threads": config.compute_threads,
        "nice": config.nice,
        "descriptors_max": node.descriptors_max,
        "memory_max_bytes": None if config.memory_max_mb is None else config.memory_max_mb << 20,
        "upload_mbit_s": config.upload_mbit_s,
        "download_mbit_s": config.download_mbit_s,
    }
