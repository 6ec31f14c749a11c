"""Bring in training once the run is known: import torch in a thread, build the services, hand them to the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from node.node import Node
from node.services import Service

if TYPE_CHECKING:
    from trio_typing import TaskStatus

BuildServices: TypeAlias = Callable[[Node], Iterable[Service]]


class TrainingStarter:
    """A service that is over once training has begun. When it fails, say on a broken torch, status tells why."""

    name = "starter"

    def __init__(self, node: Node, nursery: trio.Nursery, build: BuildServices) -> None:
        """
        Args:
          nursery: where the services live.
          build: may take seconds; called in a thread.
        """
        self._node = node
        self._nursery = nursery
        self._build = build

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        node = self._node
        await node.run_known.wait()
        await node.pausing.may_train.wait()
        node.pausing.training_begun = True
        node.life.needs_state(node.run.mode, "loading torch")
        # In a thread: importing torch takes seconds. A node asked to leave meanwhile does not wait for it.
        # trio-typing, which comes with libp2p, still knows the old name of the argument.
        services = await trio.to_thread.run_sync(
            lambda: list(self._build(node)),
            abandon_on_cancel=True,  # type: ignore[call-arg]
        )
        for service in services:
            self._nursery.start_soon(node.services.keep_running, service)
        if not services:
            node.life.has_state(node.run.mode, "nothing to host")

    async def drain(self, deadline_s: float) -> None:
        """Nothing is held here."""

    def status(self) -> dict[str, Any]:
        return {}
