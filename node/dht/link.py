"""One life of the dht process: start it, ask it things, see it end. trio."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from node.dht.messages import (
    LENGTH,
    Answer,
    Failed,
    Question,
    answer_untrusted,
    body_length_untrusted,
    pack_question,
)
from node.errors import NodeError
from protocols.errors import RemoteProtocolError
from protocols.schema import SchemaError, decode

log = logging.getLogger(__name__)

SEND_S: Final = 5.0
"""The process reads all the time; one that has not taken a question for so long hangs."""
LOG_LINE_BYTES_MAX: Final = 500

AnswerT = TypeVar("AnswerT", bound=Answer)


class DhtProcessError(NodeError):
    """The dht process is gone, or did not do what it was asked. It is started again by the directory."""

    retryable = True


class DhtLink:
    """Questions to one dht process, any number at a time."""

    def __init__(self, stream: trio.SocketStream, pid: int) -> None:
        self._stream = stream
        self.pid = pid
        self.closed = trio.Event()
        """Set when the process is gone or is to be given up."""
        self._numbers = itertools.count()
        self._sending = trio.Lock()
        self._waiting: dict[int, trio.MemorySendChannel[Any]] = {}

    async def ask(self, question: Question, shape: type[AnswerT], deadline_s: float) -> AnswerT:
        """Return the answer, decoded as `shape`. Raises DhtProcessError, also when it takes too long."""
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[Any](1)
        self._waiting[number] = send
        try:
            with trio.fail_after(deadline_s):
                await self._send(pack_question(number, question))
                answer = await receive.receive()
        except trio.TooSlowError as error:
            reason = f"the dht process did not answer {type(question).__name__} in {deadline_s:g} s"
            raise DhtProcessError(reason) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel) as error:
            raise DhtProcessError("the dht process is gone") from error
        finally:
            del self._waiting[number]
        return _checked(answer, shape)

    async def read_answers(self) -> None:
        """Hand answers to whoever waits for them until the process hangs up; then nobody waits any longer."""
        try:
            while True:
                length = body_length_untrusted(await self._receive_exactly(LENGTH.size))
                number, answer = answer_untrusted(await self._receive_exactly(length))
                if number in self._waiting:  # otherwise whoever asked has given up
                    self._waiting[number].send_nowait(answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except RemoteProtocolError as error:
            log.warning("dht process does not keep to its protocol: %s", error)
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Let the supervisor end this process and start another."""
        self.closed.set()
        for waiting in self._waiting.values():
            waiting.close()

    async def _send(self, data: bytes) -> None:
        """Send whole or give up: a question cut off by a cancellation would garble all that follow."""
        async with self._sending:
            if self.closed.is_set():
                raise trio.ClosedResourceError
            with trio.move_on_after(SEND_S) as scope:
                scope.shield = True
                await self._stream.send_all(data)
            if scope.cancelled_caught:
                self.give_up()
                raise trio.BrokenResourceError

    async def _receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = await self._stream.receive_some(count - len(data))
            if not part:
                raise trio.BrokenResourceError
            data += part
        return bytes(data)


@asynccontextmanager
async def dht_process(p2pd_socket: Path, runtime_dir: Path) -> AsyncIterator[DhtLink]:
    """Run a dht process for as long as the context lasts. It holds nothing worth saving, so it ends by SIGKILL."""
    ours, theirs = trio.socket.socketpair()
    with ours:
        with theirs:
            process = _spawn(theirs.fileno(), p2pd_socket, runtime_dir)
        try:
            link = DhtLink(trio.SocketStream(ours), process.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.read_answers)
                nursery.start_soon(_relay_log, process)
                try:
                    yield link
                finally:
                    link.give_up()
                    nursery.cancel_scope.cancel()
        finally:
            process.kill()
            process.wait()


def _spawn(control_fd: int, p2pd_socket: Path, runtime_dir: Path) -> subprocess.Popen[bytes]:
    """Start the interpreter from this thread.

    Not `trio.lowlevel.open_process`: that forks in a worker thread, and the kernel's "die with your parent" means
    the thread, so the process would be killed when trio lets an idle worker go. `-P` keeps the current folder out
    of the import path.
    """
    arguments = ["--control-fd", str(control_fd), "--p2pd", str(p2pd_socket)]
    arguments += ["--runtime-dir", str(runtime_dir)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "node.dht.process", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(control_fd,),
        # Ctrl-C, or `timeout`, signals the whole group: the daemon withdraws its records while it drains.
        process_group=0,
    )


async def _relay_log(process: subprocess.Popen[bytes]) -> None:
    """Write what the process says on stderr into our log: bounded, escaped, one line at a time."""
    assert process.stderr is not None
    with process.stderr as pipe:
        async with trio.lowlevel.FdStream(os.dup(pipe.fileno())) as stream:
            pending = b""
            async for chunk in stream:
                *lines, pending = (pending + chunk).split(b"\n")
                pending = pending[-LOG_LINE_BYTES_MAX:]
                for line in lines:
                    text = line[:LOG_LINE_BYTES_MAX].decode(errors="replace")
                    log.info("dht process says: pid=%d %r", process.pid, text)


def _checked(answer: Any, shape: type[AnswerT]) -> AnswerT:
    if isinstance(answer, Failed):
        raise DhtProcessError(f"the dht process failed: {answer.reason}")
    try:
        return decode(shape, answer)
    except SchemaError as error:
        raise DhtProcessError(f"the dht process answered something else: {error}") from error
