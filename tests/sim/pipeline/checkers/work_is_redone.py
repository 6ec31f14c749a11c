"""A dead peer's work is redone: once faults end, the run reaches its next steps within a bounded time."""

from __future__ import annotations

from tests.sim.engine.checker import Progress


class WorkIsRedone(Progress):
    """Liveness. A run that has lost a stage's last copy, or its majority, may wait; the world decides that by itself."""

    promise = "work is redone"
