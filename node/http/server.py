"""The HTTP server in the node: hypercorn on our listener, in the daemon's own nursery. Loading this module costs 13 MB.

It must not be able to hurt training: connections and requests are bounded, what a request raises ends that request, and
all answers come from memory.
"""

from __future__ import annotations

import errno
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app

from node.clock import unix_s
from node.errors import BusyError, ConfigError, NodeError, file_error
from node.files import write_atomically
from node.http.access import Access
from node.http.address import HttpAddress, parse_address
from node.http.app import Shown, build_app
from node.http.history import History, Point
from node.http.listener import BoundedListener, DeadlineStream
from node.liveness import alive_problem, ready_problem, started_problem
from node.node import Node
from node.status import build_status

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

POINT_EVERY_S: Final = 2.0
"""Between points of the curves at first; they thin out as the node gets older."""
SHARED_S: Final = 0.5
"""Scrapes and pages that come within it are shown the same status: it is built once."""
_BACKLOG: Final = 128
_HEADER_BYTES_MAX: Final = 8192
_TOKEN_BYTES_MAX: Final = 256
_REQUEST_S: Final = 10
"""To send a request, and between two on one connection."""


class HttpServer:
    """Metrics, health and the page of one node. Made by `open_server`."""

    def __init__(self, node: Node, address: HttpAddress, listener: BoundedListener) -> None:
        self._node = node
        self.address = address
        self._listener = listener
        self._history = History(POINT_EVERY_S)
        self._status: tuple[float, dict[str, Any]] | None = None
        token = "" if address.is_loopback else load_token(node.paths.state_dir / "http-token")
        names = frozenset(name.lower() for name in node.config.http_hosts)
        app = build_app(
            Shown(
                status=self._shared_status,
                history=self._history.columns,
                alive=functools.partial(alive_problem, node),
                ready=functools.partial(ready_problem, node),
                started=functools.partial(started_problem, node),
            ),
            Access(names=names, token=token),
            cookie=f"murmura-token-{address.port}",
        )
        self._serve_connection: Callable[[Any], Awaitable[None]] = functools.partial(
            TCPServer,  # it takes any stream that has a `socket`
            wrap_app(app, 0, "asgi"),
            _limits(),
            WorkerContext(None),
            ConnectionState(LifespanState({})),
        )

    def status(self) -> dict[str, Any]:
        """Return the server's own part of the status."""
        return {
            "address": str(self.address),
            "connections": self._listener.connections,
            "connections_closed_early": self._listener.closed_early,
        }

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._record)
            task_status.started()
            try:
                await trio.serve_listeners(self._serve, [self._listener])
            finally:
                # Its connections go with it, also those that the library shields.
                with trio.CancelScope(shield=True):
                    await self._listener.aclose()

    async def _serve(self, stream: DeadlineStream) -> None:
        try:
            await self._serve_connection(stream)
        except Exception:
            log.exception("a connection failed")
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _record(self) -> None:
        """Keep points for the curves, as long as there is something to draw."""
        while True:
            progress = self._node.progress()
            if progress.in_run:
                self._history.add(
                    Point(
                        at_s=round(trio.current_time() - self._node.started_s, 1),
                        step=progress.step,
                        loss=progress.loss,
                        held_out_loss=progress.held_out_loss,
                        samples_per_second=progress.samples_per_second,
                        peers=progress.peers,
                    )
                )
            await trio.sleep(POINT_EVERY_S)

    def _shared_status(self) -> dict[str, Any]:
        now_s = trio.current_time()
        if self._status is None or now_s - self._status[0] >= SHARED_S:
            self._status = (now_s, build_status(self._node, now_unix_s=unix_s()))
        return self._status[1]


@asynccontextmanager
async def open_server(node: Node) -> AsyncIterator[HttpServer]:
    """Listen where the settings say, and let go of it with the block. Raises NodeError: the port is taken, ..."""
    wanted = parse_address(node.config.http_listen)
    try:
        (inner,) = await trio.open_tcp_listeners(wanted.port, host=wanted.host, backlog=_BACKLOG)
    except OSError as error:
        raise _cannot_listen(wanted, error) from error
    async with BoundedListener(inner) as listener:
        server = HttpServer(node, HttpAddress(wanted.host, inner.socket.getsockname()[1]), listener)
        log.info("http: address=%s", server.address)
        yield server


def load_token(path: Path) -> str:
    """Return the token in the file, made at the first start. An operator may write one of their own. Raises NodeError."""
    try:
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(32).encode() + b"\n")
        text = path.read_text("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise file_error(error, f"cannot read {path}") from error
    if not 16 <= len(text) <= _TOKEN_BYTES_MAX:
        raise ConfigError(
            f"{path} holds no token: 16 to {_TOKEN_BYTES_MAX} characters of ASCII",
            "remove the file, and the node makes a new one",
        )
    return text


def _limits() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = None  # the application logs what a request raises
    config.include_server_header = False
    config.h11_max_incomplete_size = _HEADER_BYTES_MAX
    config.h2_max_concurrent_streams = 8
    config.h2_max_header_list_size = _HEADER_BYTES_MAX
    config.websocket_max_message_size = 1024
    config.keep_alive_timeout = _REQUEST_S
    config.read_timeout = _REQUEST_S
    return config


def _cannot_listen(address: HttpAddress, error: OSError) -> NodeError:
    # trio wraps what the kernel said once more.
    number = error.errno or getattr(error.__cause__, "errno", None)
    reason = f"cannot listen for HTTP on {address}: {error.strerror or error}"
    if number == errno.EADDRINUSE:
        return BusyError(
            reason, "stop the program that has this port, or choose another with --http-listen"
        )
    return ConfigError(reason, "choose an address of this machine with --http-listen, or a port")
