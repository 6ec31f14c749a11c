"""Those who look at a node: a scrape a second and two open pages, over plain HTTP, as page.js and Prometheus do it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

SCRAPE_EVERY_S: Final = 1.0
PAGES: Final = 2
STATUS_EVERY_S: Final = 2.0
CURVES_EVERY: Final = 5
"""Statuses to one look at the curves."""
ANSWER_S: Final = 10.0


class Onlookers:
    """Look from when the block begins until it ends. Raises what went wrong at its end."""

    def __init__(self, port: int) -> None:
        self.scrape_ms: list[float] = []
        self._port = port
        self._over = threading.Event()
        self._failed: list[Exception] = []
        self._threads = [threading.Thread(target=self._guarded, args=(self._scrape,))] + [
            threading.Thread(target=self._guarded, args=(self._page,)) for _ in range(PAGES)
        ]

    def __enter__(self) -> Onlookers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(ANSWER_S + 5)
        if self._failed and error is None:
            raise self._failed[0]

    def _guarded(self, look: Callable[[http.client.HTTPConnection], None]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            look(connection)
        except (OSError, http.client.HTTPException) as error:
            self._failed.append(error)
        finally:
            connection.close()

    def _scrape(self, connection: http.client.HTTPConnection) -> None:
        while True:
            began_s = time.monotonic()
            get(connection, "/metrics")
            self.scrape_ms.append(1000 * (time.monotonic() - began_s))
            if self._over.wait(max(0.0, began_s + SCRAPE_EVERY_S - time.monotonic())):
                return

    def _page(self, connection: http.client.HTTPConnection) -> None:
        count = 0
        while True:
            get(connection, "/api/status")
            if count % CURVES_EVERY == 0:
                get(connection, "/api/history")
            count += 1
            if self._over.wait(STATUS_EVERY_S):
                return


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    """Ask once and return the body. Raises HTTPException when the answer is not 200."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise http.client.HTTPException(f"{path} answers {answer.status}: {body[:200]!r}")
    return body
