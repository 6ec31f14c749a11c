"""One p2pd process from start to end. Starting it again after it died is node.p2pd.host's work."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.errors import ConfigError, NodeError
from node.p2pd.addresses import check_can_listen
from node.p2pd.client import ControlClient, P2pdGoneError
from node.paths import SOCKET_PATH_BYTES_MAX, make_private_dir
from protocols.ids import PeerID

log = logging.getLogger(__name__)

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_STOP_S_MAX: Final = 2.0
"""p2pd ends in milliseconds when asked; then it is killed."""
_POLL_S: Final = 0.02
_LINES_KEPT: Final = 30
_LINE_BYTES_MAX: Final = 8192
_LINES_PER_MINUTE_MAX: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class P2pdOptions:
    """How this node is present in the network."""

    identity_path: Path
    """See node.identity; p2pd reads the file itself."""
    runtime_dir: Path
    """Holds the two sockets. Made 0700; its path must be short: a unix socket's is at most 107 bytes."""
    listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",)
    announce: Sequence[str] = ()
    """What others are told instead of the addresses p2pd sees itself; for port forwarding."""
    metrics_listen: str = ""
    """`host:port` where p2pd serves its metrics, and its profiler; empty: nowhere."""
    relay: bool = True
    """Reach others, and be reached, through relays."""
    relay_service: bool = False
    """Relay for others."""
    trusted_relays: Sequence[str] = ()
    """Relays to be reachable through when this node is behind a NAT."""
    autonat: bool = True
    """Ask peers to dial back, to learn whether we are reachable."""
    nat_port_map: bool = False
    """Ask the router for a port (UPnP, NAT-PMP)."""
    connections_low: int = 256
    connections_high: int = 512
    """Above high, p2pd closes the least useful connections down to low."""
    start_s_max: float = 60.0
    """A loaded machine may take long to start a process; it is observed, not waited for."""

    @property
    def control_path(self) -> Path:
        return self.runtime_dir / "p2pd.sock"

    @property
    def streams_path(self) -> Path:
        return self.runtime_dir / "streams.sock"

    def check(self) -> None:
        """Check folder and paths, before anything is started. Raises NodeError with what to do."""
        make_private_dir(self.runtime_dir, "--runtime-dir")
        longest = os.fsencode(self.streams_path.absolute())
        if len(longest) > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"the socket path {self.streams_path} has {len(longest)} bytes,"
                f" more than {SOCKET_PATH_BYTES_MAX}",
                hint="choose a shorter folder with --runtime-dir",
            )


class P2pdStartError(NodeError):
    """p2pd did not come up; the message has its last lines."""

    retryable = True


def find_p2pd() -> Path:
    """Find the binary inside the hivemind wheel, without importing hivemind (3.5 s). Raises ConfigError."""
    spec = importlib.util.find_spec("hivemind")  # a top-level package is located, not run
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "hivemind_cli" / "p2pd"
        if os.access(path, os.X_OK):
            return path
    raise ConfigError(
        "the transport (p2pd) is not installed: hivemind's wheels hold it for Linux on x86-64 and aarch64 only",
        hint="install murmura there; elsewhere `murmura status --peer` works without it",
    )


class P2pdProcess:
    """A running p2pd, ready for requests."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._pidfd = os.pidfd_open(child.pid)
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._logged = _LogBudget()
        self._log_read = trio.Event()

    @property
    def pid(self) -> int:
        return self._child.pid

    async def exited(self) -> int:
        """Wait for its end and return the exit code, negative for a signal."""
        while (code := self._child.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return code

    def last_lines(self) -> str:
        """Return what it said last, escaped."""
        return " | ".join(list(self._lines)[-5:]) or "it said nothing"

    async def wait_ready(self, client: ControlClient, start_s_max: float) -> PeerID:
        """Wait until it answers on its control socket. Raises P2pdStartError when it ends or takes too long."""
        with trio.move_on_after(start_s_max):
            while self._child.poll() is None:
                try:
                    peer, _ = await client.identify()
                    self._lines.clear()  # how it started does not explain how it ends
                    return peer
                except P2pdGoneError:
                    await trio.sleep(_POLL_S)
            await self._log_read.wait()  # its last words may still be in the pipe
            raise P2pdStartError(f"p2pd ended with code {self._child.poll()}: {self.last_lines()}")
        raise P2pdStartError(f"p2pd did not answer within {start_s_max:g} s: {self.last_lines()}")

    async def read_log(self) -> None:
        """Turn what p2pd writes into our log lines, until it ends."""
        assert self._child.stdout is not None
        pipe = trio.lowlevel.FdStream(os.dup(self._child.stdout.fileno()))
        pending = b""
        async with pipe:
            async for chunk in pipe:
                *lines, pending = (pending + chunk).split(b"\n")
                pending = pending[-_LINE_BYTES_MAX:]
                for line in lines:
                    self._log_line(line[:_LINE_BYTES_MAX])
        self._log_read.set()

    def _log_line(self, raw: bytes) -> None:
        level, text = _parse_log_line(raw)
        if not text:
            return
        self._lines.append(text)
        if level > logging.DEBUG and not self._logged.spend():
            level = logging.DEBUG
        log.log(level, "p2pd: %s", text)

    def kill(self) -> None:
        """End it at once; `exited` returns then."""
        self._child.kill()

    async def stop(self) -> None:
        """Ask it to end, then kill it. Not cancellable: nothing may be left behind."""
        with trio.CancelScope(shield=True):
            if self._child.poll() is None:
                self._child.send_signal(signal.SIGTERM)
                with trio.move_on_after(_STOP_S_MAX):
                    await self.exited()
            if self._child.poll() is None:
                self._child.kill()
                await self.exited()
        os.close(self._pidfd)
        if self._child.stdout is not None:
            self._child.stdout.close()


@asynccontextmanager
async def running_p2pd(options: P2pdOptions, nursery: trio.Nursery) -> AsyncIterator[P2pdProcess]:
    """Start p2pd, yield it at once (see `wait_ready`), and end it with the block.

    Args:
      nursery: reads what it writes, until it has ended.
    Raises:
      NodeError: a port is taken, or p2pd is not installed or cannot be started.
    """
    for address in options.listen:
        check_can_listen(address)
    if options.metrics_listen:
        host, _, port = options.metrics_listen.rpartition(":")
        family = "ip6" if host.startswith("[") else "ip4"
        check_can_listen(
            f"/{family}/{host.strip('[]')}/tcp/{port}", setting="--transport-metrics-listen"
        )
    options.control_path.unlink(missing_ok=True)  # p2pd refuses to bind to what a dead one left
    process = P2pdProcess(_spawn(options))
    nursery.start_soon(process.read_log)
    try:
        yield process
    finally:
        await process.stop()


def _spawn(options: P2pdOptions) -> subprocess.Popen[bytes]:
    """Start the process from this thread, whose end would kill it (see launch.py). Takes about 2 ms."""
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
    environment = os.environ | {"GOLOG_LOG_LEVEL": "warn", "GOLOG_LOG_FMT": "json"}
    try:
        return subprocess.Popen(
            [*launcher, str(find_p2pd()), *_arguments(options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C, or `timeout`, signals the whole group: the daemon must still have its transport while it drains.
            process_group=0,
        )
    except OSError as error:
        raise P2pdStartError(f"p2pd could not be started: {error}") from error


def _arguments(options: P2pdOptions) -> list[str]:
    flags = {
        "listen": f"/unix{options.control_path.absolute()}",
        "id": str(options.identity_path),
        "hostAddrs": ",".join(options.listen),
        "announceAddrs": ",".join(options.announce),
        "metricsAddr": options.metrics_listen,
        "trustedRelays": ",".join(options.trusted_relays),
        "relay": options.relay,
        "relayService": options.relay_service,
        "autoRelay": bool(options.trusted_relays),
        "autonat": options.autonat,
        "natPortMap": options.nat_port_map,
        # Peers' addresses: without the Kademlia of libp2p a peer that is known by its PeerID alone cannot be dialled,
        # and every node would know only those it met itself.
        "dhtServer": True,
        "connManager": True,
        "connLo": options.connections_low,
        "connHi": options.connections_high,
        "pubsub": True,
        "pubsubRouter": "gossipsub",
    }
    return [
        f"-{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in flags.items()
        if value != ""
    ]


class _LogBudget:
    """At most so many lines a minute: peers can make p2pd talk."""

    def __init__(self) -> None:
        self._minute = -1
        self._spent = 0

    def spend(self) -> bool:
        minute = int(trio.current_time() // 60)
        if minute != self._minute:
            self._minute, self._spent = minute, 0
        self._spent += 1
        return self._spent <= _LINES_PER_MINUTE_MAX


def _parse_log_line(raw: bytes) -> tuple[int, str]:
    """Return level and text. p2pd writes JSON lines, and plain ones while it starts and when it dies."""
    levels = {
        "debug": logging.DEBUG,
        "info": logging.DEBUG,
        "warn": logging.DEBUG,  # the weather of an open network: failed dials, odd estimates
        "error": logging.WARNING,
    }
    text = raw.decode("utf-8", "replace").strip()
    try:
        record = json.loads(text)
    except ValueError:
        return logging.DEBUG, ascii(text)[1:-1]
    if not isinstance(record, dict):
        return logging.DEBUG, ascii(text)[1:-1]
    said = f"{record.get('logger')}: {record.get('msg')}"
    if record.get("error"):
        said += f": {record['error']}"
    return levels.get(str(record.get("level")), logging.WARNING), ascii(said)[1:-1]
