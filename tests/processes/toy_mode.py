"""The smallest whole mode: a counter that peers agree to raise. docs/modes.md walks through it.

In each round the peer with the smallest PeerID asks all others, and raises it by one when each of them has done so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import trio

from protocols.errors import RemoteProtocolError
from protocols.frames import Limits
from protocols.ids import PeerID
from protocols.schema import Range, SchemaError, decode, encode
from swarm.calls import Answer, CallError, CallTimeoutError, Incoming, PeerUnreachableError
from swarm.endpoints import Endpoint
from swarm.mode import ExportRefusedError, Progress, RunContext
from swarm.mode_info import ModeInfo
from swarm.presence import Presence
from swarm.resources import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySpec:
    """`[toy]` of the run file."""

    peers: Annotated[int, Range(1, 64)] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Raise:
    to: Annotated[int, Range(1, 1 << 32)]  # asks a peer to raise its counter to this


class ToyMode:
    name, batch_max, limits = "toy", 1, Limits(header_bytes_max=4096, body_bytes_max=0)

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._counter = 0
        self._others: tuple[PeerID, ...] = ()
        self._presence = Presence(
            context.host, context.directory, context.run.run_id, self.name,
            records=lambda records: setattr(self, "_others", tuple(r.peer for r in records)),
        )  # fmt: skip

    def wire(self) -> Mapping[str, Endpoint]:
        return {"toy": Endpoint(self._answer)}

    async def _answer(self, incoming: Incoming) -> Answer:
        try:
            self._counter = max(self._counter, decode(Raise, incoming.message).to)
        except SchemaError as error:
            raise RemoteProtocolError(f"not a Raise: {error}") from error
        return Answer({})

    async def run(self, resources: Resources, *, task_status: Any) -> None:
        self._presence.announce(b"\x80")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._presence.run)
            self._context.life.has_state(self.name, "counting")
            task_status.started()
            while self._counter < self._context.run.training.steps:
                await trio.sleep(0.05)
                enough = len(self._others) + 1 >= self._context.run.settings(ToySpec).peers
                if enough and self._context.me < min(self._others):
                    await self._raise(resources)
            await trio.sleep_forever()

    async def _raise(self, resources: Resources) -> None:
        wanted = Raise(to=self._counter + 1)
        try:
            for peer in self._others:
                await resources.caller.call(peer, "toy", encode(wanted), deadline_s=5.0)
        except (CallError, CallTimeoutError, PeerUnreachableError):
            return  # asked again: raising to the same number twice raises it once
        self._counter = wanted.to

    async def drain(self, deadline_s: float) -> None:
        await self._presence.withdraw()

    def progress(self) -> Progress:
        return Progress(in_run=True, role="counts", step=self._counter)

    def detail(self) -> dict[str, Any]:
        return {"counter": self._counter}

    def parts(self) -> Sequence[Any]:
        return ()

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        raise ExportRefusedError("a counter is no model")


INFO = ModeInfo(name="toy", summary="a counter", build="tests.processes.toy_mode:ToyMode")
