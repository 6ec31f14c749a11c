"""A dead peer's work is redone: once faults end, the run reaches its next steps within a bounded time."""

from __future__ import annotations

from tests.sim.pipeline.checkers.checker import Checker


class WorkIsRedone(Checker):
    """Liveness. A run that has lost a stage's last copy, or its majority, may wait; the world decides that by itself."""

    promise = "work is redone"

    def ended(self) -> None:
        world = self.world
        if world.step < world.goal and world.lost() is None:
            raise self.broken(
                f"stuck at step {world.step} {world.healed_for_s:.0f} s after healing"
            )
