"""The real Host: libp2p through a p2pd that is kept alive.

    async with P2pdHost.open(options, identity.peer_id) as host: ...

When p2pd dies it is started again with the same identity and port; handlers and subscriptions are registered anew,
peers we were connected to are dialed again, and `on_restart` hooks run. Streams that were open are lost; opening one
waits a bounded time meanwhile. Above, nothing notices more than a pause.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from node.errors import NodeError
from node.p2pd import sockets
from node.p2pd.addresses import split_peer, with_port_of
from node.p2pd.client import ControlClient, P2pdGoneError, P2pdRefusedError
from node.p2pd.inbound import InboundStreams
from node.p2pd.known_peers import KnownPeers
from node.p2pd.process import P2pdOptions, P2pdProcess, P2pdStartError, running_p2pd
from node.p2pd.pubsub import Inbox, listen_to_topic
from node.p2pd.sockets import P2pdStream, UnixStream
from protocols.errors import LocalProtocolError
from protocols.ids import PeerID
from protocols.ports import Notice, PeerUnreachableError, Stream, StreamHandler

if TYPE_CHECKING:
    # trio-typing (it comes with libp2p) hides trio's own annotations from mypy.
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

RESTART_WAIT_S: Final = 15.0
"""How long a request waits for p2pd to come back; a restart takes about 0.3 s."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 30.0
STEADY_S: Final = 60.0
"""After running this long, the next end is treated as the first."""
REFRESH_S: Final = 30.0
"""Between looks at our own addresses and the connected peers; two small requests to p2pd."""
REFRESH_PAUSE_S: Final = 0.2
"""Peers that arrive together are looked at together."""
MISSES_MAX: Final = 3
"""Looks in a row without an answer, 10 s each, until p2pd counts as stuck."""
REDIAL_AT_ONCE: Final = 8
REDIAL_SEEN_S: Final = 0.1
"""Kademlia dials a peer that it was greeting 5 to 10 ms after the connection has ended; a second end holds."""
DISCONNECTS_MAX: Final = 3
"""A peer that dials us is back again, whatever we do: who may not talk to us is refused by those who serve."""


class P2pdHost:
    """Implements protocols.ports.Host. Made by `open`; used from one event loop."""

    def __init__(
        self, options: P2pdOptions, peer_id: PeerID, nursery: trio.Nursery, listener: socket.socket
    ) -> None:
        self._options = options
        self._peer_id = peer_id
        self._nursery = nursery
        self._inbound = InboundStreams(listener, heard_from=self._notice)
        self._client = ControlClient(options.control_path)
        self._process: P2pdProcess | None = None
        self._hold: UnixStream | None = None
        self._up = trio.Event()
        self._addresses: list[str] = []
        self._known = KnownPeers()
        self._look_again = trio.Event()
        self._restart_hooks: list[Callable[[], Awaitable[None]]] = []
        self._outbound_streams: weakref.WeakSet[P2pdStream] = weakref.WeakSet()
        self.restarts = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, options: P2pdOptions, peer_id: PeerID) -> AsyncIterator[P2pdHost]:
        """Start p2pd and keep it running until the block ends.

        There is a nursery inside: an exception of the block comes out of it in an ExceptionGroup.

        Args:
          peer_id: the identity's; a p2pd that says another is a bug.
        Raises:
          NodeError: the port is taken, a path too long, p2pd not installed or unable to start.
        """
        options.check()
        listener = sockets.listen(options.streams_path)
        failure: NodeError | None = None
        try:
            async with trio.open_nursery() as nursery:
                host = cls(options, peer_id, nursery, listener)
                nursery.start_soon(host._inbound.accept, nursery)
                try:
                    await nursery.start(host._keep_running)
                except NodeError as error:
                    failure = error  # raised below: a nursery would wrap it in a group
                else:
                    try:
                        yield host
                    finally:
                        for stream in host._outbound_streams:
                            stream.close()
                nursery.cancel_scope.cancel()
        finally:
            listener.close()
            options.streams_path.unlink(missing_ok=True)
            options.control_path.unlink(missing_ok=True)
        if failure is not None:
            raise failure

    @property
    def peer_id(self) -> PeerID:
        return self._peer_id

    @property
    def control_path(self) -> Path:
        """p2pd's control socket, for the dht process. The path stays the same; what answers changes at a restart."""
        return self._options.control_path

    @property
    def p2pd_pid(self) -> int | None:
        """For the accounts of `status`; None while it restarts."""
        return self._process.pid if self._process is not None else None

    @property
    def streams_refused(self) -> int:
        """Streams of peers that were closed at once because too many were open."""
        return self._inbound.refused

    def on_restart(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Run `hook` each time p2pd has come back and handlers are in place. Whoever shares p2pd reconnects then."""
        self._restart_hooks.append(hook)

    def addresses(self) -> Sequence[str]:
        return [f"{address}/p2p/{self._peer_id}" for address in self._addresses]

    def remember(self, peer: PeerID, addresses: Sequence[str]) -> None:
        """Note where a peer can be reached, without its /p2p/ part, for when p2pd does not know."""
        self._known.remember(peer, addresses)

    async def connect(self, address: str) -> PeerID:
        """Dial one multiaddr. Raises PeerUnreachableError, and ValueError for what is no multiaddr of a peer."""
        peer, where = split_peer(address)
        await self._wait_up(peer)
        await self._dial(peer, [where])
        self._known.remember(peer, [where])
        self._notice(peer)
        return peer

    async def disconnect(self, peer: PeerID) -> None:
        """End all connections to a peer. Takes a moment: libp2p's Kademlia, while it greets a peer, dials it once more."""
        await self._wait_up(peer)
        try:
            for _ in range(DISCONNECTS_MAX):
                await self._client.disconnect(peer)
                await trio.sleep(REDIAL_SEEN_S)
                if peer not in await self._client.list_peers():
                    return
        except (P2pdGoneError, P2pdRefusedError) as error:
            raise PeerUnreachableError(peer, str(error)) from error

    async def peers(self) -> Sequence[PeerID]:
        """Return the connected peers; none while p2pd restarts."""
        try:
            connected = await self._client.list_peers()
        except (P2pdGoneError, P2pdRefusedError):
            return []
        return [peer for peer in connected if peer != self._peer_id]

    async def open_stream(self, peer: PeerID, protocol: str) -> Stream:
        """Open a stream. What is still open when the Host closes is closed with it."""
        await self._wait_up(peer)
        try:
            stream = await self._client.open_stream(peer, protocol)
        except (P2pdGoneError, P2pdRefusedError) as error:
            if not self._known.addresses(peer):
                raise PeerUnreachableError(peer, str(error)) from error
            stream = await self._dial_and_open(peer, protocol)
        self._outbound_streams.add(stream)
        return stream

    async def _dial_and_open(self, peer: PeerID, protocol: str) -> P2pdStream:
        """Try again with the addresses we know: p2pd forgets them when it restarts, and after a while."""
        await self._wait_up(peer)
        await self._dial(peer, self._known.addresses(peer))
        try:
            return await self._client.open_stream(peer, protocol)
        except (P2pdGoneError, P2pdRefusedError) as error:
            raise PeerUnreachableError(peer, str(error)) from error

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol. Returns at once while p2pd restarts: the handler is registered when it is back."""
        self._inbound.handlers[protocol] = handler
        if self._up.is_set():
            # When p2pd dies just now, coming back registers it.
            with suppress(P2pdGoneError):
                await self._client.register_handler(protocol, self._options.streams_path)

    async def publish(self, topic: str, data: bytes) -> None:
        """Publish on a topic. Like every notice it may be lost: also when p2pd stays away."""
        with trio.move_on_after(RESTART_WAIT_S):
            await self._up.wait()
        try:
            await self._client.publish(topic, data)
        except (P2pdGoneError, P2pdRefusedError) as error:
            log.warning(
                "notice not published: topic=%s bytes=%d reason=%s", topic, len(data), error
            )

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[AsyncIterator[Notice]]:
        inbox = Inbox()
        scope = trio.CancelScope()
        listen = partial(
            listen_to_topic, self._client, lambda: self._up, self._peer_id, topic, inbox, scope
        )
        self._nursery.start_soon(listen)
        with trio.move_on_after(RESTART_WAIT_S):
            await inbox.subscribed.wait()
        notices = inbox.read()
        try:
            yield notices
        finally:
            scope.cancel()
            await notices.aclose()

    async def _wait_up(self, peer: PeerID) -> None:
        with trio.move_on_after(RESTART_WAIT_S) as scope:
            await self._up.wait()
        if scope.cancelled_caught:
            raise PeerUnreachableError(peer, "this node's transport (p2pd) is restarting")

    async def _dial(self, peer: PeerID, addresses: Sequence[str]) -> None:
        try:
            await self._client.connect(peer, addresses)
        except (P2pdGoneError, P2pdRefusedError) as error:
            raise PeerUnreachableError(peer, str(error)) from error

    # Keeping p2pd alive.

    async def _keep_running(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run p2pd for ever. A first start that fails is raised; later ones are tried again, with pauses."""
        started, pause_s = False, BACKOFF_FIRST_S
        while True:
            began_s = trio.current_time()
            try:
                async with running_p2pd(self._options, self._nursery) as process:
                    await self._come_up(process)
                    if not started:
                        task_status.started()
                    started = True
                    code = await self._watch(process)
                    reason = f"code {code}: {process.last_lines()}"
            except NodeError as error:
                if not started:
                    raise
                reason = error.reason
            finally:
                self._go_down()
            if trio.current_time() - began_s > STEADY_S:
                pause_s = BACKOFF_FIRST_S
            log.warning("p2pd ended, starting it again: pause_s=%.1f reason=%s", pause_s, reason)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)
            self.restarts += 1

    async def _come_up(self, process: P2pdProcess) -> None:
        peer_id = await process.wait_ready(self._client, self._options.start_s_max)
        if peer_id != self._peer_id:
            raise LocalProtocolError(f"p2pd is {peer_id}, but this node is {self._peer_id}")
        try:
            self._hold = await self._client.hold()
            await self._refresh_addresses()
            await self._register_handlers()
        except (P2pdGoneError, P2pdRefusedError) as error:
            raise P2pdStartError(str(error)) from error
        # The ports it has chosen are ours from now on, over restarts too: peers know them.
        listen = [with_port_of(address, self._addresses) for address in self._options.listen]
        self._options = dataclasses.replace(self._options, listen=listen)
        self._process = process
        self._up.set()

    async def _register_handlers(self) -> None:
        registered: set[str] = set()
        while missing := self._inbound.handlers.keys() - registered:  # one may be added meanwhile
            for protocol in sorted(missing):
                await self._client.register_handler(protocol, self._options.streams_path)
            registered |= missing

    def _go_down(self) -> None:
        if self._hold is not None:
            self._hold.close()
        self._hold = self._process = None
        self._addresses = []
        if self._up.is_set():
            self._up = trio.Event()

    async def _watch(self, process: P2pdProcess) -> int:
        """Look after a p2pd that is up, until it ends; return its exit code."""
        async with trio.open_nursery() as nursery:
            if self.restarts:
                nursery.start_soon(self._restore)
            nursery.start_soon(self._refresh_regularly, process)
            code = await process.exited()
            nursery.cancel_scope.cancel()
        return code

    async def _restore(self) -> None:
        """After a restart: dial the peers we had, then tell those who share p2pd."""
        for hook in self._restart_hooks:
            await hook()
        limiter = trio.CapacityLimiter(REDIAL_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for peer in sorted(self._known.connected):
                nursery.start_soon(self._redial, peer, limiter)

    async def _redial(self, peer: PeerID, limiter: trio.CapacityLimiter) -> None:
        addresses = self._known.addresses(peer)
        if not addresses:
            return
        async with limiter:
            with suppress(PeerUnreachableError):
                await self._dial(peer, addresses)
                log.debug("peer dialed again: peer=%s", peer)

    async def _refresh_regularly(self, process: P2pdProcess) -> None:
        """Keep our addresses and the list of connected peers fresh: soon after a new peer, and now and then.

        A p2pd that does not answer any more is killed, so that it is started again.
        """
        misses = 0
        while misses < MISSES_MAX:
            with trio.move_on_after(REFRESH_S):
                await self._look_again.wait()
                await trio.sleep(REFRESH_PAUSE_S)
            self._look_again = trio.Event()
            try:
                await self._refresh_addresses()
                self._known.saw_connected(await self._client.list_peers())
            except P2pdGoneError:
                misses += 1
                self._look_again.set()
            except P2pdRefusedError as error:
                log.warning("p2pd does not say who is connected: %s", error)
            else:
                misses = 0
        log.warning("p2pd does not answer, ending it: pid=%d", process.pid)
        process.kill()

    def _notice(self, peer: PeerID) -> None:
        """Learn soon how a new peer is connected.

        After a restart we have to dial our peers, not they us: their p2pd, having failed once, would not try again for
        5 seconds or more (the dial backoff of go-libp2p).
        """
        if peer not in self._known.connected:
            self._look_again.set()

    async def _refresh_addresses(self) -> None:
        _, self._addresses = await self._client.identify()
