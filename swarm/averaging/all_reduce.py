"""Group averaging over the network: `Averager` finds others that want the same round, and averages a vector with them.

The decisions are those of `protocols.averaging`; this shell holds the vectors. The event loop never waits for torch: numbers are
encoded, summed and hashed on the codec thread.

    members' messages --> Averaging --effects--> an exchange, or fetching a mean (swarm.averaging.exchange)
                          Averaging --effects--> casts, and the answer to whoever waits for the average
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, assert_never

import torch
import trio
from torch import Tensor

from protocols.averaging.averaging import Averaging
from protocols.averaging.calls import ChunkCall, MeanCall, decode_call_untrusted, is_call
from protocols.averaging.events import (
    AveragingEffect,
    AveragingEvent,
    ExchangeFailed,
    FetchMean,
    ForgetRound,
    LookForContacts,
    MeanReady,
    Phases,
    RoundAborted,
    RoundCancelled,
    RoundFinished,
    RoundWanted,
    StartExchange,
)
from protocols.averaging.messages import decode_message_untrusted, encode_message
from protocols.averaging.settings import AveragingSpec
from protocols.core import Blame, ContactsFound, PeerDown, Received, Send, Tick
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.frames import Limits
from protocols.ids import PeerID
from swarm.averaging.codecs import CODECS, is_finite
from swarm.averaging.exchange import (
    AVERAGING_SERVICE,
    Bytes,
    Exchange,
    ExchangeFailedError,
    Mean,
    Tools,
    fetch_mean,
    layout_of,
)
from swarm.calls import Answer, Caller, Incoming, Refusal
from swarm.driver import Driver
from swarm.endpoints import Endpoint
from swarm.hosting.compute import ComputeThread

if TYPE_CHECKING:
    # trio-typing comes with libp2p and hides trio's own annotations, which have no TaskStatus for mypy then.
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

CHUNK_ELEMENTS: Final = 1 << 19
"""Numbers in one call: 2 MB of float32, some milliseconds on a fast line, so that summing overlaps sending."""
_ALL_HOLD_SHARE: Final = 0.1
"""Of a round's time, to wait until the others hold the mean, too: a copy takes about as long."""
_NOT_BEGUN_S: Final = 15.0
"""How long a member's numbers are held for an exchange that has not begun here."""


class RoundAbortedError(Exception):
    """Nothing was averaged, and nothing has changed.

    Attributes:
      newest: the version at which most others are, as far as is known.
      begun: our vector may count for others all the same; this version cannot be wanted again.
    """

    def __init__(self, reason: str, *, newest: int, begun: bool) -> None:
        super().__init__(f"the round was given up: {reason}")
        self.reason = reason
        self.newest = newest
        self.begun = begun


class NotFiniteError(RoundAbortedError):
    """What should be averaged has values that are infinite or NaN."""

    def __init__(self, version: int) -> None:
        super().__init__("our own numbers are not finite", newest=version, begun=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """What a round came to: the same for all that finish it."""

    mean: Tensor
    """(n,) float32, the caller's own."""
    group: tuple[PeerID, ...]
    """Whose vectors are in it, in PeerID order."""
    weights: tuple[float, ...]
    """Theirs."""
    left_out: tuple[PeerID, ...]
    """Members of the group whose vectors are not."""
    attempts: int
    bytes_sent: int
    bytes_received: int
    """Of the vectors' numbers, by this node, in all attempts."""
    seconds: Phases


@dataclass(slots=True)
class _Wanted:
    """One round that somebody here waits for."""

    vector: Tensor
    version: int
    values: Tensor | None
    """(n,) float32, memory for the mean of the first exchange. A further one has its own: the first may still be needed."""
    done: trio.Event = field(default_factory=trio.Event)
    result: Averaged | RoundAbortedError | None = None
    held: _Held | None = None


@dataclass(slots=True)
class _Held:
    """What is kept of one round, until the core says ForgetRound."""

    key: str
    version: int
    exchange: Exchange | None = None
    mean: Mean | None = None
    scope: trio.CancelScope | None = None
    given_up: bool = False
    forgotten: trio.Event = field(default_factory=trio.Event)
    count: Bytes = field(default_factory=Bytes)


class Averager:
    """Averages vectors with the other peers of a run.

    Args:
      codec: how numbers travel: a name in `swarm.averaging.codecs.CODECS`, the same at all peers.
      bandwidth: bytes per second of our line; members with a slow one reduce smaller parts. 0: not known, then parts are equal.
      look: told that peers are wanted: look in the directory, and give them to `found`.
    """

    def __init__(
        self,
        me: PeerID,
        caller: Caller,
        codec_thread: ComputeThread,
        *,
        spec: AveragingSpec | None = None,
        codec: str = "float32",
        rng: random.Random,
        look: Callable[[], None] = lambda: None,
        bandwidth: float = 0.0,
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> None:
        self.core = Averaging(me, spec or AveragingSpec(), rng=rng)
        self._me = me
        self._caller = caller
        self._look = look
        self._tools = Tools(caller, codec_thread, CODECS[codec], chunk_elements)
        self._wanted: dict[str, _Wanted] = {}
        self._held: dict[bytes, _Held] = {}
        self._last: dict[str, Averaged] = {}
        """What the last round of a key came to, without its mean."""
        self._changed = trio.Event()
        self._bandwidth = bandwidth
        self._nursery: trio.Nursery | None = None
        self._driver: Driver[AveragingEvent] = Driver(
            handle=self._dispatch, wake_at_s=lambda: self.core.wake_at_s, tick=self._tick
        )
        self.limits = Limits(body_bytes_max=5 * chunk_elements, tensors_max=2)
        """Of a message to the service, and of an answer: one chunk."""

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled; also for rounds that others want, as their meeting place."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for effect in self.core.start(trio.current_time()):
                self._perform(effect)
            task_status.started()
            await self._driver.run()

    def wire(self) -> Mapping[str, Endpoint]:
        """Name the service that peers call."""
        return {AVERAGING_SERVICE: Endpoint(self.answer, lambda peer: self.limits)}

    def found(self, peers: Sequence[PeerID]) -> None:
        """Take what the directory says: these may take part."""
        self._driver.feed(ContactsFound(trio.current_time(), tuple(peers)))

    def lost(self, peer: PeerID) -> None:
        """The transport cannot reach a peer any more."""
        self._driver.feed(PeerDown(trio.current_time(), peer))

    def detail(self) -> dict[str, Any]:
        """Return rows of the status, by key."""
        now_s = trio.current_time()
        return {
            key: account.shown(now_s) | {"last": _shown(self._last.get(key))}
            for key, account in self.core.accounts.items()
        }

    async def average(
        self,
        key: str,
        version: int,
        vector: Tensor,
        weight: float = 1.0,
        *,
        common: bytes = b"",
        spare: Tensor | None = None,
    ) -> Averaged:
        """Average a vector with the others that want the same round; one at a time for a key.

        Args:
          key: what is averaged; all peers' vectors of a key have one length.
          version: larger than any that has begun here under this key before.
          vector: (n,) float32. Must not change before this returns or raises.
          weight: more than 0, at most `AveragingSpec.weight_max`.
          common: peers for whom it differs are in no group together.
          spare: (n,) float32 that nobody uses, such as an earlier mean: the new one may be put there, which saves making memory
            for it in each round.
        Raises:
          RoundAbortedError: nothing was averaged, and nothing changed.
          NotFiniteError: the vector has gone non-finite; it was sent to nobody.
        """
        if str(vector.dtype) != "torch.float32" or vector.dim() != 1:
            raise LocalProtocolError("what is averaged is a vector of float32")
        if key in self._wanted:
            raise LocalProtocolError(f"a round of {key} is wanted here already")
        tools = self._tools
        if not await tools.codec_thread.run_own(is_finite, vector.detach()):
            raise NotFiniteError(version)
        layout = layout_of(vector.numel(), tools.codec, tools.chunk_elements, common=common)
        wanted = self._wanted[key] = _Wanted(vector.detach(), version, self._usable(spare, vector))
        try:
            now_s = trio.current_time()
            self._driver.feed(
                RoundWanted(now_s, key, version, layout, float(weight), self._bandwidth)
            )
            await wanted.done.wait()
        finally:
            if not wanted.done.is_set():
                self._driver.feed(RoundCancelled(trio.current_time(), key))
                self._give_up(key, version)
            self._wanted.pop(key, None)
        result = wanted.result
        if isinstance(result, RoundAbortedError):
            raise result
        assert result is not None
        return await self._owned(result, wanted)

    def _usable(self, spare: Tensor | None, vector: Tensor) -> Tensor:
        """Return memory for a mean: the spare one, unless others are still served from it."""
        served = {held.mean.values.data_ptr() for held in self._held.values() if held.mean}
        if spare is None or spare.data_ptr() in served:
            return torch.empty_like(vector)
        if (spare.shape, spare.dtype) != (vector.shape, vector.dtype) or not spare.is_contiguous():
            raise LocalProtocolError("spare memory is a vector like the one that is averaged")
        return spare

    async def _owned(self, result: Averaged, wanted: _Wanted) -> Averaged:
        """Return the average in memory that nobody is served from any more.

        Mostly all members hold it some milliseconds later than we do. Who does not is served from here, and we get a copy.
        """
        held = wanted.held
        assert held is not None
        if not self._tools.codec.direct:
            return result
        with trio.move_on_after(_ALL_HOLD_SHARE * result.seconds.averaging_s):
            await held.forgotten.wait()
        if held.forgotten.is_set():
            return result
        mean = await self._tools.codec_thread.run_own(result.mean.clone)
        return replace(result, mean=mean)

    # --- events and effects ---

    def _tick(self, now_s: float) -> None:
        if now_s >= self.core.wake_at_s:
            self._driver.feed(Tick(now_s))

    def _dispatch(self, event: AveragingEvent) -> None:
        for effect in self.core.handle(event):
            self._perform(effect)

    def _perform(self, effect: AveragingEffect) -> None:
        match effect:
            case Send(peer, message):
                self._send(peer, message)
            case StartExchange():
                self._begin(effect)
            case FetchMean():
                self._start(effect, self._fetch, effect)
            case RoundFinished():
                self._finish(effect)
            case RoundAborted():
                self._abort(effect)
            case ForgetRound(round_id):
                self._forget(round_id)
            case LookForContacts():
                self._look()
            case Blame(peer, reason):
                self._caller.guard.fault(peer, RemoteProtocolError(reason, peer))
            case _:
                assert_never(effect)

    def _send(self, peer: PeerID, message: Any) -> None:
        if peer == self._me:
            self._driver.feed(Received(trio.current_time(), peer, message))
        else:
            self._caller.cast_nowait(peer, AVERAGING_SERVICE, encode_message(message))

    def _start(
        self, effect: StartExchange | FetchMean, job: Callable[..., Awaitable[None]], *args: Any
    ) -> None:
        """Do this for a round, and nothing else from now on."""
        held = self._held.setdefault(effect.round_id, _Held(effect.key, effect.version))
        self._stop(held)
        held.scope = trio.CancelScope()
        assert self._nursery is not None
        self._nursery.start_soon(self._within, held.scope, job, held, *args)

    async def _within(
        self, scope: trio.CancelScope, job: Callable[..., Awaitable[None]], *args: Any
    ) -> None:
        with scope:
            await job(*args)

    def _stop(self, held: _Held) -> None:
        if held.scope is not None:
            held.scope.cancel()
        if held.exchange is not None:
            held.exchange.stop()
            held.exchange = None

    def _begin(self, effect: StartExchange) -> None:
        wanted = self._wanted[effect.key]
        held = self._held.setdefault(effect.round_id, _Held(effect.key, effect.version))
        values, wanted.values = wanted.values, None
        if values is None:
            values = torch.empty_like(wanted.vector)
        exchange = Exchange(
            self._tools, self._me, effect, wanted.vector, values=values, count=held.count
        )
        self._start(effect, self._exchange, exchange)
        held.exchange = exchange
        self._wake()

    async def _exchange(self, held: _Held, exchange: Exchange) -> None:
        effect = exchange.effect
        try:
            mean = await exchange.run()
        except ExchangeFailedError as error:
            log.info("exchange failed: key=%s version=%d %s", effect.key, effect.version, error)
            self._failed(effect, error.peer)
            return
        await self._ready(held, effect.round_id, mean)

    async def _fetch(self, held: _Held, effect: FetchMean) -> None:
        elements = self._wanted[effect.key].vector.numel()
        try:
            mean = await fetch_mean(self._tools, effect, elements, held.count)
        except ExchangeFailedError as error:
            log.info("mean not fetched: key=%s version=%d %s", effect.key, effect.version, error)
            self._failed(effect, error.peer)
            return
        await self._ready(held, effect.round_id, mean)

    def _failed(self, effect: StartExchange | FetchMean, peer: PeerID) -> None:
        now_s = trio.current_time()
        self._driver.feed(ExchangeFailed(now_s, effect.round_id, effect.exchange, peer))

    async def _ready(self, held: _Held, round_id: bytes, mean: Mean) -> None:
        # The codec thread was waited for whatever happened meanwhile: the core may want something else by now.
        await trio.lowlevel.checkpoint_if_cancelled()
        held.mean = mean
        now_s = trio.current_time()
        self._driver.feed(MeanReady(now_s, round_id, mean.exchange, mean.digests))

    def _finish(self, done: RoundFinished) -> None:
        held, wanted = self._held[done.round_id], self._wanted[done.key]
        assert held.mean is not None
        if held.exchange is not None and held.exchange.effect.exchange != held.mean.exchange:
            self._stop(held)
        log.info(
            "averaged: key=%s version=%d members=%d attempts=%d seconds=%.3f",
            done.key, done.version, len(done.members), done.attempts, done.phases.averaging_s,
        )  # fmt: skip
        wanted.result = Averaged(
            mean=held.mean.values,
            group=tuple(member.peer for member in done.members),
            weights=tuple(member.weight for member in done.members),
            left_out=done.left_out,
            attempts=done.attempts,
            bytes_sent=held.count.sent,
            bytes_received=held.count.received,
            seconds=done.phases,
        )
        self._last[done.key] = replace(wanted.result, mean=torch.empty(0))
        wanted.held = held
        wanted.done.set()

    def _abort(self, effect: RoundAborted) -> None:
        log.info(
            "round given up: key=%s version=%d reason=%s", effect.key, effect.version, effect.reason
        )
        self._give_up(effect.key, effect.version)
        wanted = self._wanted[effect.key]
        wanted.result = RoundAbortedError(effect.reason, newest=effect.newest, begun=effect.begun)
        wanted.done.set()

    def _give_up(self, key: str, version: int) -> None:
        """Send nothing any more of a vector that may change now."""
        for held in self._held.values():
            if (held.key, held.version) == (key, version):
                self._stop(held)
                held.given_up = True
        self._wake()

    def _forget(self, round_id: bytes) -> None:
        held = self._held.pop(round_id, None)
        if held is not None:
            self._stop(held)
            held.forgotten.set()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- what others ask ---

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call, or take one cast, of the service `averaging`."""
        if not is_call(incoming.message):
            message = decode_message_untrusted(incoming.message)
            self._driver.feed(Received(trio.current_time(), incoming.peer, message))
            return Answer()
        call = decode_call_untrusted(incoming.message)
        match call:
            case ChunkCall():
                exchange = await self._exchange_of(call)
                chunk = await exchange.answer(incoming.peer, call, incoming.tensors)
            case MeanCall():
                chunk = self._chunk_of_mean(call)
            case _:
                assert_never(call)
        return Answer(None, chunk)

    async def _exchange_of(self, call: ChunkCall) -> Exchange:
        """Return the exchange that is meant; it may begin here a little later than there."""
        with trio.move_on_after(_NOT_BEGUN_S):
            while True:
                held = self._held.get(call.round_id)
                exchange = held.exchange if held is not None else None
                if exchange is not None and exchange.effect.exchange == call.exchange:
                    return exchange
                if exchange is not None and exchange.effect.exchange > call.exchange:
                    raise Refusal("overtaken", "this round goes on with another attempt")
                gone = held.given_up if held is not None else not self.core.knows(call.round_id)
                if gone:
                    raise Refusal("not-here", "this peer is in no such round")
                await self._changed.wait()
        raise Refusal("busy", "this exchange has not begun here")

    def _chunk_of_mean(self, call: MeanCall) -> tuple[Any, ...]:
        held = self._held.get(call.round_id)
        mean = held.mean if held is not None else None
        if mean is None or mean.exchange != call.exchange:
            raise Refusal("not-here", "this peer does not hold that mean")
        if call.part >= len(mean.chunks) or call.chunk >= len(mean.chunks[call.part]):
            raise RemoteProtocolError("there is no such chunk")
        return mean.chunks[call.part][call.chunk]


def _shown(last: Averaged | None) -> dict[str, Any] | None:
    """Return what a status says of a round."""
    if last is None:
        return None
    seconds = last.seconds
    return {
        "members": len(last.group),
        "left_out": len(last.left_out),
        "attempts": last.attempts,
        "bytes_sent": last.bytes_sent,
        "bytes_received": last.bytes_received,
        "gathering_s": round(seconds.gathering_s, 3),
        "agreeing_s": round(seconds.agreeing_s, 3),
        "averaging_s": round(seconds.averaging_s, 3),
    }
