"""What a node is made of: services, each supervised, each able to let go of its work.

A service that fails is started again with growing pauses, and says so in `status`; the others go on. Its own state
must survive that: a service object lives as long as the node, `run` is called again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import trio

from protocols.errors import ProtocolError
from swarm.mode import Progress

if TYPE_CHECKING:
    # trio-typing (it comes with libp2p) hides trio's own annotations from mypy; see swarm.calls.caller.
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
"""A service that keeps failing costs one attempt per half minute: visible, and no load."""
STEADY_S: Final = 60.0
"""After this long without a failure the next one is treated as the first."""


class Service(Protocol):
    """One part of a node's work."""

    @property
    def name(self) -> str:
        """One word, unique in the node; the key of its part of `status`."""
        ...

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled. Called again after it raised. Must call `task_status.started` when it is up."""
        ...

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new, finish or hand over what is held, withdraw announcements. Still running meanwhile."""
        ...

    def status(self) -> dict[str, Any]:
        """Plain data for `murmura status --json`, from memory: never waits."""
        ...


@runtime_checkable
class Trains(Protocol):
    """A service that trains says how it goes, whatever the mode, and can write the model."""

    def progress(self) -> Progress:
        """O(1): strangers may ask."""
        ...

    @property
    def task_seconds(self) -> float:
        """How long its threads have been at one task, 0 when at none: one that hangs is not to be fed by a watchdog."""
        ...

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write one safetensors file and return facts about it (step, parameters, bytes). Raises NodeError."""
        ...


@dataclass(slots=True)
class Supervised:
    """A service and how it has been doing."""

    service: Service
    up: bool = False
    restarts: int = 0
    last_error: str = ""

    def status(self) -> dict[str, Any]:
        """The service's own status with what the supervisor knows."""
        return {
            **self.service.status(),
            "up": self.up,
            "restarts": self.restarts,
            "last_error": self.last_error or None,
        }


class ServiceGroup:
    """All services of a node. Backoff is jittered by `rng`, so that six nodes do not retry in step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._members: list[Supervised] = []

    @property
    def members(self) -> Sequence[Supervised]:
        return tuple(self._members)

    async def keep_running(self, service: Service) -> None:
        """Run `service` until cancelled or until it returns, starting it again whenever it fails."""
        member = Supervised(service)
        self._members.append(member)
        failures = 0
        while True:
            began_s = trio.current_time()
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(service.run)
                    member.up = True
            except* (
                ProtocolError
            ) as group:  # our own bug, or a peer's fault nobody dropped: both need a look
                log.exception("service failed by a bug: service=%s", service.name)
                member.last_error = _describe(group)
            except* Exception as group:
                log.warning("service failed: service=%s reason=%s", service.name, _describe(group))
                log.debug("service failed, with details: service=%s", service.name, exc_info=True)
                member.last_error = _describe(group)
            else:
                self._members.remove(member)
                return
            member.up = False
            member.restarts += 1
            failures = 1 if trio.current_time() - began_s > STEADY_S else failures + 1
            await trio.sleep(backoff_s(failures, self._rng))

    async def drain(self, deadline_s: float) -> None:
        """Drain all of them at once; one that fails or is late does not hold up the others."""
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                for member in self._members:
                    nursery.start_soon(_drain, member.service, deadline_s)


def backoff_s(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, with up to half taken off at random."""
    full_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))
    return full_s * rng.uniform(0.5, 1.0)


async def _drain(service: Service, deadline_s: float) -> None:
    try:
        await service.drain(deadline_s)
    except Exception:
        log.exception("service did not drain: service=%s", service.name)


def _describe(group: BaseExceptionGroup[BaseException]) -> str:
    """Name the innermost errors, for one line."""
    leaves: list[str] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(f"{type(error).__name__}: {error}")
    return "; ".join(leaves)[:500]
