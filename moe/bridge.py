"""From other threads into the event loop: a thread waits there for what only the loop can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from moe.errors import BridgeClosedError

Result = TypeVar("Result")


class Bridge:
    """Runs async functions for other threads until it is closed; what is under way then is cancelled.

    Made in the event loop; `call` is for any other thread.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._scopes: set[trio.CancelScope] = set()
        self._closed = False

    def call(self, fn: Callable[..., Awaitable[Result]], *args: Any) -> Result:
        """Await `fn(*args)` in the event loop and return its result. Raises BridgeClosedError, and what it raises."""
        try:
            result: Result = trio.from_thread.run(self._run, fn, *args, trio_token=self._token)
            return result
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise BridgeClosedError("the event loop has ended") from error

    def close(self) -> None:
        """Let nobody in any more, and send back those who wait. Called in the event loop."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()

    async def _run(self, fn: Callable[..., Awaitable[Result]], *args: Any) -> Result:
        if self._closed:
            raise BridgeClosedError("the node is leaving the run, or starts its part of it again")
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await fn(*args)
            finally:
                self._scopes.discard(scope)
        raise BridgeClosedError("closed while waiting for answers")
