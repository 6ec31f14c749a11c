"""Whether another node runs with our identity, as far as the directory shows."""

from __future__ import annotations

import trio

SEEN_S = 300.0
"""As long as a record lives: the other one may be there for so long after it was seen last."""


class TwinWatch:
    """When the other one was seen last; and whether to look now rather than at the next turn."""

    def __init__(self) -> None:
        self._seen_s: float | None = None
        self.look_now = trio.Event()

    def seen(self) -> None:
        self._seen_s = trio.current_time()

    def look(self) -> None:
        """Something is wrong that another node with our identity would explain."""
        self.look_now.set()

    @property
    def problem(self) -> str | None:
        """Why a person should look at this node, or None."""
        if self._seen_s is None or trio.current_time() - self._seen_s > SEEN_S:
            return None
        return (
            "another node runs with this node's identity, started after it; stop it and remove identity.key from its"
            " state folder"
        )
