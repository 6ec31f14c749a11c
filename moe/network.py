"""What a layer calls: finds experts, and asks their hosts in parallel, from any thread but the event loop's.

Everything that goes wrong with one expert is an absent answer, never an error: late, gone, busy, draining, wrong. The host is
left alone for a while (`protocols.experts.dispatch`), and the layer goes on with those that answered.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import trio
from torch import Tensor

from moe.bridge import Bridge
from moe.search import ExpertSearch
from moe.server import ExpertServer, answer_rows_untrusted
from protocols.errors import RemoteProtocolError
from protocols.experts.dispatch import ELSEWHERE, Absent, Dispatch, kind_of
from protocols.experts.messages import (
    EXPERT_SERVICE,
    Backward,
    Forward,
    Message,
    Output,
    Stepped,
    decode_message_untrusted,
    encode_message,
)
from protocols.experts.uid import ExpertUID, Grid
from protocols.experts.view import Claim
from protocols.ids import PeerID
from swarm.calls import (
    Caller,
    CallError,
    CallTimeoutError,
    PeerUnreachableError,
    Refusal,
    StreamClosedError,
)
from swarm.tensors.wire import to_wire

log = logging.getLogger(__name__)

FORWARD: Final = "forward"
BACKWARD: Final = "backward"
_GONE: Final = (CallTimeoutError, PeerUnreachableError, StreamClosedError)


@dataclass(frozen=True, slots=True)
class Answered:
    """One expert's output, and what its backward needs."""

    uid: ExpertUID
    peer: PeerID
    y: Tensor
    """(R, *out_row)"""
    output: Output


class ExpertNetwork(Protocol):
    """What `moe.layer` needs. All methods wait, and are for any thread but the event loop's."""

    def find(
        self, grid: Grid, scores: Sequence[Sequence[float]], *, beam: int
    ) -> Sequence[ExpertUID]:
        """Return experts alive and not left alone just now, the best first."""
        ...

    def forward(
        self, requests: Sequence[tuple[ExpertUID, Tensor]], *, out_row: tuple[int, ...]
    ) -> Sequence[Answered | None]:
        """Ask all of them at once; one answer, or None, for each."""
        ...

    def backward(
        self, requests: Sequence[tuple[Answered, Tensor, Tensor]]
    ) -> Sequence[Tensor | None]:
        """Send (answered, x, grad_y) back; the gradient for x, or None, of each."""
        ...

    def wrong(self, answered: Answered, reason: str) -> None:
        """What it answered cannot be used."""
        ...


class RemoteExperts:
    """The network as it is.

    Args:
      caller: whose guard counts what is wrong with answers.
      local: experts on this node, which are asked without the network.
      failed: told of every host whose call came to nothing for a reason of the network's.
    """

    def __init__(
        self,
        caller: Caller,
        search: ExpertSearch,
        dispatch: Dispatch,
        bridge: Bridge,
        *,
        me: PeerID,
        local: ExpertServer | None = None,
        failed: Callable[[PeerID], None] = lambda peer: None,
    ) -> None:
        self._caller = caller
        self._search = search
        self.dispatch = dispatch
        self._bridge = bridge
        self._me = me
        self._local = local
        self._failed = failed
        self._rng = random.Random(bytes(me))
        self.asked = 0
        self.absent = 0
        """Calls of both kinds that came to nothing."""
        self.hedged = 0

    # --- for other threads ---

    def find(
        self, grid: Grid, scores: Sequence[Sequence[float]], *, beam: int
    ) -> Sequence[ExpertUID]:
        return self._bridge.call(self._find, grid, scores, beam)

    def forward(
        self, requests: Sequence[tuple[ExpertUID, Tensor]], *, out_row: tuple[int, ...]
    ) -> Sequence[Answered | None]:
        asks = [functools.partial(self._forward, uid, x, out_row) for uid, x in requests]
        found: Sequence[Answered | None] = self._bridge.call(_all, asks)
        return [
            None if answered is None or not self._finite(answered.y, answered) else answered
            for answered in found
        ]

    def backward(
        self, requests: Sequence[tuple[Answered, Tensor, Tensor]]
    ) -> Sequence[Tensor | None]:
        asks = [functools.partial(self._backward, *request) for request in requests]
        found: Sequence[Tensor | None] = self._bridge.call(_all, asks)
        return [
            None if grad is None or not self._finite(grad, request[0]) else grad
            for grad, request in zip(found, requests, strict=True)
        ]

    def wrong(self, answered: Answered, reason: str) -> None:
        self._bridge.call(self._wrong, answered.peer, reason)

    def _finite(self, tensor: Tensor, answered: Answered) -> bool:
        if bool(torch.isfinite(tensor).all()):
            return True
        self.wrong(answered, "an answer with values that are not finite")
        return False

    # --- in the event loop ---

    async def _find(
        self, grid: Grid, scores: Sequence[Sequence[float]], beam: int
    ) -> Sequence[ExpertUID]:
        found = await self._search.find(grid, scores, beam=beam)
        return [uid for uid in found if self._hosts(uid)]

    def _hosts(self, uid: ExpertUID) -> Sequence[Claim]:
        now_s = trio.current_time()
        return self.dispatch.usable(self._search.view.answering(uid, now_s), now_s)

    async def _forward(
        self, uid: ExpertUID, x: Tensor, out_row: tuple[int, ...]
    ) -> Answered | None:
        kind = kind_of(FORWARD, x.nbytes)
        hosts = self.dispatch.spread(self._hosts(uid), kind, self._rng, me=self._me)
        if not hosts:
            return None
        after_s = self.dispatch.hedge_after_s(hosts, kind)
        if after_s is None:
            return await self._forward_at(hosts[0], uid, x, out_row)
        return await self._hedged(hosts, after_s, uid, x, out_row)

    async def _hedged(
        self,
        hosts: Sequence[Claim],
        after_s: float,
        uid: ExpertUID,
        x: Tensor,
        out_row: tuple[int, ...],
    ) -> Answered | None:
        """Ask the first host, and the second as well when the first is late or fails; the first answer counts."""
        found: list[Answered] = []
        first_over = trio.Event()

        async def ask(host: Claim) -> None:
            answered = await self._forward_at(host, uid, x, out_row)
            if answered is not None:
                found.append(answered)
                nursery.cancel_scope.cancel()
            first_over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, hosts[0])
            with trio.move_on_after(after_s):
                await first_over.wait()
            self.hedged += 1
            nursery.start_soon(ask, hosts[1])
        return found[0] if found else None

    async def _forward_at(
        self, host: Claim, uid: ExpertUID, x: Tensor, out_row: tuple[int, ...]
    ) -> Answered | None:
        if host.peer == self._me and self._local is not None:
            local = self._local

            async def here() -> tuple[Message, Tensor]:
                y, output = await local.forward(local.find(uid, host.epoch), x)
                return output, y

            answer = await self._ask_here(here)
        else:
            answer = await self._ask(
                host.peer, uid, FORWARD, Forward(str(uid), host.epoch), [x], out_row
            )
        if answer is None or not isinstance(answer[0], Output):
            return None
        return Answered(uid, host.peer, answer[1], answer[0])

    async def _backward(self, answered: Answered, x: Tensor, grad_y: Tensor) -> Tensor | None:
        uid, output = answered.uid, answered.output
        if self._search.view.overtaken(uid, output.epoch, trio.current_time()):
            # Its host has been replaced, and would step a copy that nobody asks any more.
            self.absent += 1
            return None
        if answered.peer == self._me and self._local is not None:
            local = self._local

            async def here() -> tuple[Message, Tensor]:
                expert = local.find(uid, output.epoch)
                grad_x, stepped = await local.backward(
                    expert, x, grad_y, epoch=output.epoch, version=output.version
                )
                return stepped, grad_x

            answer = await self._ask_here(here)
        else:
            call = Backward(str(uid), output.epoch, output.version)
            answer = await self._ask(
                answered.peer, uid, BACKWARD, call, [x, grad_y], tuple(x.shape[1:])
            )
        return answer[1] if answer is not None and isinstance(answer[0], Stepped) else None

    async def _ask_here(self, here: Callable[[], Any]) -> tuple[Message, Tensor] | None:
        """Ask this node's own expert."""
        self.asked += 1
        try:
            answer: tuple[Message, Tensor] = await here()
        except (Refusal, RemoteProtocolError):
            self.absent += 1
            return None
        return answer

    async def _ask(
        self,
        peer: PeerID,
        uid: ExpertUID,
        call: str,
        message: Message,
        tensors: Sequence[Tensor],
        row: tuple[int, ...],
    ) -> tuple[Message, Tensor] | None:
        """Call one host. None, with its standing lowered where it is to blame, when it does not answer rightly."""
        kind = kind_of(call, sum(tensor.nbytes for tensor in tensors))
        began_s = trio.current_time()
        self.asked += 1
        try:
            answer = await self._caller.call(
                peer,
                EXPERT_SERVICE,
                encode_message(message),
                [to_wire(tensor) for tensor in tensors],
                deadline_s=self.dispatch.deadline_s(peer, kind),
            )
            with self._caller.guard.blaming(peer):
                said = decode_message_untrusted(answer.message)
                rows = answer_rows_untrusted(answer.tensors, tensors[0], row)
                if not isinstance(said, Output | Stepped):
                    raise RemoteProtocolError("an expert answers with Output or Stepped")
        except CallError as error:
            why: Absent = "elsewhere" if error.code in ELSEWHERE else "busy"
            self._absent(peer, uid, why, error)
            return None
        except _GONE as error:
            self._absent(peer, uid, "gone", error)
            return None
        except RemoteProtocolError as error:
            self._absent(peer, uid, "wrong", error)
            return None
        self.dispatch.answered(peer, kind, trio.current_time() - began_s)
        return said, rows

    def _absent(self, peer: PeerID, uid: ExpertUID, why: Absent, error: Exception) -> None:
        log.debug("no answer: expert=%s peer=%s why=%s reason=%s", uid, peer, why, error)
        self.absent += 1
        then = self.dispatch.absent(peer, why, trio.current_time())
        if then.suspect:
            self._failed(peer)
        if then.refresh:
            self._search.look_again(uid)

    async def _wrong(self, peer: PeerID, reason: str) -> None:
        self.absent += 1
        if peer == self._me:
            return
        self._caller.guard.fault(peer, RemoteProtocolError(reason, peer))
        self.dispatch.failed(peer, trio.current_time(), wrong=True)


async def _all(asks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Await all of them at once, and return their results in order."""
    results: list[Any] = [None] * len(asks)

    async def one(index: int) -> None:
        results[index] = await asks[index]()

    async with trio.open_nursery() as nursery:
        for index in range(len(asks)):
            nursery.start_soon(one, index)
    return results
