"""The links between nodes, in our hands: slow, cut and restored, pair by pair.

Every node announces an address of ours instead of its own, so whoever dials it comes by here; who that is, is looked up
in /proc by the port it comes from. One thread relays them all.

    links.cut("a", "b")         nothing arrives any more, and nobody is told: as when a cable is pulled
    links.restore("a", "b")     what was on its way arrives
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.limits import family
from tests.node.processes import Daemon

_CHUNK: Final = 64 * 1024
_CHUNKS_UNDER_WAY: Final = 64
"""What a link holds in one direction; then it takes no more, and the sender notices."""
_LOOK_S: Final = 0.01
_KNOWN_S: Final = 5.0
_LISTENS, _ESTABLISHED = "0A", "01"


@dataclass(slots=True)
class Link:
    """Between two nodes, both directions alike. Set from the test's thread, read from the relay's."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    """0 is as fast as it goes."""
    is_cut: bool = False
    bytes_relayed: int = 0


@dataclass(slots=True)
class _Node:
    port: int
    daemon: Daemon | None = None


@dataclass(slots=True)
class Links:
    """All links of some nodes. Made by `open_links`."""

    _start: Callable[[str, socket.socket], None]
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _links: dict[frozenset[str], Link] = field(default_factory=dict)

    def flags_for(self, name: str) -> tuple[str, ...]:
        """Return the flags with which a node announces our address for it."""
        if name not in self._nodes:
            listening = socket.create_server(("127.0.0.1", 0), backlog=128)
            self._nodes[name] = _Node(listening.getsockname()[1])
            self._start(name, listening)
        return "--announce", f"/ip4/127.0.0.1/tcp/{self._nodes[name].port}"

    def attach(self, name: str, daemon: Daemon) -> None:
        """Say which process a name is now."""
        self._nodes[name].daemon = daemon

    def between(self, a: str, b: str) -> Link:
        return self._links.setdefault(frozenset((a, b)), Link())

    def of(self, name: str) -> list[Link]:
        """Return all links of one node."""
        return [self.between(name, other) for other in self._nodes if other != name]

    def cut(self, name: str) -> None:
        """Cut all links of one node."""
        for link in self.of(name):
            link.is_cut = True

    def restore(self, name: str) -> None:
        for link in self.of(name):
            link.is_cut = False

    def ways_around(self) -> set[tuple[str, str]]:
        """Return pairs of nodes that are connected without us; none, if the tests test something."""
        ends = {
            (near, far): name
            for name in self._nodes
            for near, far in _ports(self._pids(name), _ESTABLISHED)
        }
        return {
            (name, ends[far, near]) for (near, far), name in ends.items() if (far, near) in ends
        }

    # --- in the relay's thread ---

    def _pids(self, name: str) -> list[int]:
        daemon = self._nodes[name].daemon
        return list(family(daemon.process.pid)) if daemon is not None else []

    async def _dialler(self, port: int, ours: int) -> str | None:
        """Return who dials us from a port; a node may do so before the test has said who it is."""
        deadline_s = trio.current_time() + _KNOWN_S
        while trio.current_time() < deadline_s:
            for name in list(self._nodes):
                if (port, ours) in _ports(self._pids(name), _ESTABLISHED):
                    return name
            await trio.sleep(_LOOK_S)
        return None  # it has ended

    async def relay(self, name: str, near: trio.SocketStream) -> None:
        """Relay one connection to a node, until one of the two ends it."""
        async with near:
            try:
                port = near.socket.getpeername()[1]
            except OSError:
                return  # it has hung up already
            dialler = await self._dialler(port, self._nodes[name].port)
            if dialler is None:
                return
            link = self.between(dialler, name)
            await _while_cut(link)
            ports = [port for port, _ in _ports(self._pids(name), _LISTENS)]
            if not ports:
                return
            try:
                far = await trio.open_tcp_stream("127.0.0.1", ports[0])
            except OSError:
                return
            async with far, trio.open_nursery() as nursery:
                for source, target in ((near, far), (far, near)):
                    nursery.start_soon(_carry, link, source, target, nursery.cancel_scope)


async def _carry(
    link: Link, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
) -> None:
    """Carry one direction, then end both."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](_CHUNKS_UNDER_WAY)

    async def take() -> None:
        async with send:
            try:
                async for chunk in source:
                    await send.send((trio.current_time() + link.delay_s, bytes(chunk)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async for due_s, chunk in receive:
            await trio.sleep_until(due_s)
            if link.bytes_per_s:
                await trio.sleep(len(chunk) / link.bytes_per_s)
            await _while_cut(link)
            try:
                await target.send_all(chunk)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                break
            link.bytes_relayed += len(chunk)
        await _while_cut(link)  # that the other side has gone is news as well
        scope.cancel()


async def _while_cut(link: Link) -> None:
    while link.is_cut:  # noqa: ASYNC110 - it is set from another thread
        await trio.sleep(_LOOK_S)


@contextmanager
def open_links() -> Iterator[Links]:
    """Relay until the block ends."""
    ready = threading.Event()
    token: list[trio.lowlevel.TrioToken] = []
    nurseries: list[trio.Nursery] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nurseries.append(nursery)
            token.append(trio.lowlevel.current_trio_token())
            ready.set()
            await trio.sleep_forever()

    def start(name: str, listening: socket.socket) -> None:
        async def serve() -> None:
            async def handle(stream: trio.SocketStream) -> None:
                await links.relay(name, stream)

            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            await trio.serve_listeners(handle, [listener])

        trio.from_thread.run_sync(nurseries[0].start_soon, serve, trio_token=token[0])

    links = Links(start)
    thread = threading.Thread(target=trio.run, args=(main,), name="links")
    thread.start()
    ready.wait()
    try:
        yield links
    finally:
        trio.from_thread.run_sync(nurseries[0].cancel_scope.cancel, trio_token=token[0])
        thread.join()


def _ports(pids: Collection[int], state: str) -> set[tuple[int, int]]:
    """Return (local, remote) port of the IPv4 TCP sockets that these processes have in a state."""
    inodes = set(itertools.chain.from_iterable(map(_socket_inodes, pids)))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, now, *_rest = fields = line.split()
        if now == state and fields[9] in inodes:
            found.add((int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)))
    return found


def _socket_inodes(pid: int) -> list[str]:
    found = []
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(entry.readlink())
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                found.append(target[8:-1])
    except OSError:
        pass  # the process has ended meanwhile
    return found
