"""As little HTTP as a test needs: one request on one connection, and what came back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import trio

ANSWER_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def get(port: int, path: str, *, method: str = "GET", **headers: str) -> Answer:
    """Ask on a connection of its own. Header names are written with `_` for `-`."""
    lines = {"Host": f"127.0.0.1:{port}", "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return await send(port, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())


async def send(port: int, raw: bytes) -> Answer:
    """Send these bytes and read until the server closes."""
    with trio.fail_after(ANSWER_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(raw)
            received = b"".join([chunk async for chunk in stream])
    return parse(received)


def parse(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin1").split("\r\n")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Answer(int(first.split()[1]), headers, body)
