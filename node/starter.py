"""Bring in training once the run is known: import torch in a thread, build the services, hand them to the supervisor."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from node.node import Node
from node.services import Service

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

BuildServices: TypeAlias = Callable[[Node], Iterable[Service]]

TRAINING_MODULE: Final = "node.training"
"""Has `build_services(node)`. Imported by name, so that nothing pulls torch before READY."""


class TrainingStarter:
    """A service that is over once training has begun. When it fails, say on a broken torch, status tells why."""

    name = "starter"

    def __init__(self, node: Node, nursery: trio.Nursery, build: BuildServices | None) -> None:
        """
        Args:
          nursery: where the services live.
          build: None takes `build_services` of `node.training`.
        """
        self._node = node
        self._nursery = nursery
        self._build = build

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        node = self._node
        await node.run_known.wait()
        build = self._build or await _load_builder()
        services = list(build(node))
        for service in services:
            self._nursery.start_soon(node.services.keep_running, service)
        if not services:
            node.life.has_state(self.name, "nothing to host")

    async def drain(self, deadline_s: float) -> None:
        """Nothing is held here."""

    def status(self) -> dict[str, Any]:
        return {}


async def _load_builder() -> BuildServices:
    """Import in a thread. A node asked to leave meanwhile does not wait for it."""
    # trio-typing, which comes with libp2p, still knows the old name of this argument.
    builder: BuildServices = await trio.to_thread.run_sync(
        _import_builder,
        abandon_on_cancel=True,  # type: ignore[call-arg]
    )
    return builder


def _import_builder() -> BuildServices:
    if importlib.util.find_spec(TRAINING_MODULE) is None:
        log.warning("this build has no training: the node is only a peer others can join through")
        return _nothing
    builder: BuildServices = importlib.import_module(TRAINING_MODULE).build_services
    return builder


def _nothing(node: Node) -> Iterable[Service]:
    return ()
