"""The dht process's end of the control socket: read questions, answer each in its own task. asyncio, no hivemind."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from node.dht.messages import (
    LENGTH,
    Answer,
    Failed,
    Question,
    body_length_untrusted,
    pack_answer,
    question_untrusted,
)

log = logging.getLogger(__name__)

Answerer: TypeAlias = Callable[[Question], Awaitable[Answer]]


async def serve(control: socket.socket, answer: Answerer) -> None:
    """Answer the daemon's questions until it hangs up, which is how it says that it is gone or done with us."""
    reader, writer = await asyncio.open_unix_connection(sock=control)
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                length = body_length_untrusted(await reader.readexactly(LENGTH.size))
                number, question = question_untrusted(await reader.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            tasks.create_task(_answer(number, question, answer, writer))
        writer.close()


async def _answer(
    number: int, question: Question, answer: Answerer, writer: asyncio.StreamWriter
) -> None:
    """Answer one question. A failure is said to the daemon, which decides what to do about it."""
    reply: Answer | Failed
    try:
        reply = await answer(question)
    except Exception as error:
        log.warning("question failed: ask=%s", type(question).__name__, exc_info=True)
        reply = Failed(f"{type(error).__name__}: {error}")
    if not writer.is_closing():
        writer.write(pack_answer(number, reply))
        await writer.drain()
