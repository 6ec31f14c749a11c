"""Is this process alive, does it take part, has it started: what a supervisor asks, of systemd or of Kubernetes.

Who asks gets no answer when the event loop stands still. None of the three depends on how the run is: a node that waits
for its majority is alive, and ready, since a restart, or the next node of a rollout held back, would help nobody.
"""

from __future__ import annotations

from typing import Final

from node.node import Node
from protocols.life import LifeState

TASK_S_MAX: Final = 180.0
"""For one task of a thread that computes. Peers wait some seconds for one; a node at nice 19 on a busy machine takes a
minute; a device that hangs never ends."""

WAITS_S: Final = 300.0
"""For the others, with its peers there and its own work done, before a node counts as ready all the same. Sooner, the next
node of a rollout could go while this one has not fetched yet what only the two of them hold."""


def alive_problem(node: Node) -> str:
    """Return why this process should be ended and started again, or nothing."""
    seconds = node.task_seconds
    if seconds > TASK_S_MAX:
        return f"the compute thread has been at one task for {seconds:.0f} s"
    return ""


def started_problem(node: Node) -> str:
    """Return why the node has not started yet, or nothing. Started is what systemd is told as READY."""
    snapshot = node.life.snapshot
    return snapshot.reason if snapshot.state is LifeState.STARTING else ""


def ready_problem(node: Node) -> str:
    """Return why this node does not take part in its run, or nothing.

    One that has its peers and has waited with them for long, say for a majority, has done all that a single node can.
    """
    problem = alive_problem(node)
    snapshot = node.life.snapshot
    if problem or snapshot.state is LifeState.SERVING:
        return problem
    waits = snapshot.state is LifeState.SYNCING and node.progress().waiting_for is not None
    if waits and node.life.since_seconds > WAITS_S:
        return ""
    return f"{snapshot.state}: {snapshot.reason}"
