"""The control socket: who may speak, what is answered, and what a bad client cannot do."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio

from node.control import server
from node.control.client import ControlClient
from node.control.messages import LENGTH, REQUEST_BYTES_MAX, Request, pack_request
from node.control.server import ControlServer, Params, listen
from node.errors import BusyError, ControlError, NodeError, NotRunningError

pytestmark = pytest.mark.trio


async def echo(params: Params) -> dict[str, Any]:
    return dict(params)


async def fail(params: Params) -> Any:
    raise ValueError("a bug")


async def refuse(params: Params) -> Any:
    raise ControlError("not-now", "the model is not here yet", "wait a minute")


async def hang(params: Params) -> Any:
    await trio.sleep_forever()


HANDLERS = {"echo": echo, "fail": fail, "refuse": refuse, "hang": hang}


def serve_while(path: Path, ask: Callable[[], Any]) -> Any:
    """Run the server, and a blocking client in another thread, as in life."""

    async def main() -> outcome.Outcome[Any]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlServer(HANDLERS).serve, listen(path))
            result = await trio.to_thread.run_sync(outcome.capture, ask)
            nursery.cancel_scope.cancel()
        return result

    return trio.run(main).unwrap()


def call(path: Path, method: str, **params: Any) -> Any:
    with ControlClient(path) as client:
        return client.call(method, **params)


def test_a_command_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    assert serve_while(path, partial(call, path, "echo", a=1, b="x")) == {"a": 1, "b": "x"}


def test_one_connection_carries_many_commands(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def ask() -> list[Any]:
        with ControlClient(path) as client:
            return [client.call("echo", n=n) for n in range(5)]

    assert serve_while(path, ask) == [{"n": n} for n in range(5)]


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    mode = serve_while(path, lambda: stat.S_IMODE(path.stat().st_mode))
    assert mode == 0o600


def test_another_user_is_not_answered_even_when_the_socket_was_opened_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.sock"
    monkeypatch.setattr(server, "peer_uid", lambda sock: os.geteuid() + 1)
    with pytest.raises(NotRunningError, match="went away"):
        serve_while(path, partial(call, path, "echo"))


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        with ours, theirs:
            assert server.peer_uid(ours) == os.geteuid()

    trio.run(main)


@pytest.mark.parametrize(
    ("method", "code", "says"),
    [
        ("nonsense", "unknown-method", "no such command"),
        ("refuse", "not-now", "not here yet"),
        ("fail", "failed", "a bug in the daemon"),
    ],
)
def test_what_is_not_done_is_explained(tmp_path: Path, method: str, code: str, says: str) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(ControlError, match=says) as caught:
        serve_while(path, partial(call, path, method))
    assert caught.value.code == code


def test_a_command_that_takes_too_long_ends_at_the_clients_deadline(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def ask() -> None:
        with ControlClient(path) as client:
            client.call("hang", timeout_s=0.05)

    with pytest.raises(NodeError, match="did not answer within"):
        serve_while(path, ask)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 8,
        LENGTH.pack(REQUEST_BYTES_MAX + 1),
        LENGTH.pack(3) + b"\xc1\xc1\xc1",
        LENGTH.pack(5) + b"12",
        b"\x01",
        b"",
    ],
)
def test_nonsense_ends_the_connection_and_nothing_else(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "control.sock"

    def ask() -> Any:
        with socket.socket(socket.AF_UNIX) as rude:
            rude.settimeout(10)
            rude.connect(str(path))
            rude.sendall(raw)
            rude.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while rude.recv(4096):
                    pass
        return call(path, "echo", still="here")

    assert serve_while(path, ask) == {"still": "here"}


def test_a_crowd_of_idle_connections_does_not_lock_the_owner_out_for_good(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def ask() -> Any:
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(server.CONNECTIONS_MAX)]
        for one in crowd:
            one.connect(str(path))
        with pytest.raises(NotRunningError):
            # All are accepted in order, so the crowd has its places before this one is looked at.
            call(path, "echo")
        for one in crowd:
            one.close()
        while True:  # until the server has seen them go
            try:
                return call(path, "echo", again=True)
            except NotRunningError:
                continue

    assert serve_while(path, ask) == {"again": True}


def test_a_socket_left_by_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert serve_while(path, partial(call, path, "echo")) == {}


def test_a_socket_that_answers_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        with pytest.raises(BusyError, match="another murmura daemon answers"):
            listen(path)

    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        trio.run(main)


def test_without_a_daemon_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="murmura run"):
        ControlClient(tmp_path / "control.sock")


def test_something_else_on_the_socket_is_not_taken_for_a_daemon(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(len(pack_request(Request(method="echo"))))
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NodeError, match="is no murmura daemon"):
            call(path, "echo")
        thread.join()
