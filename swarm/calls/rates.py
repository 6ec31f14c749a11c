"""The volunteer's own limits: bytes per second up and down, over all streams of the node together."""

from __future__ import annotations

from typing import Final

import trio

_BURST_S: Final = 0.25
"""How much unused allowance may be kept: short enough that a video call on the same line does not notice."""
PART_BYTES: Final = 64 * 1024
"""Limited traffic moves in pieces of this size, so that a slow limit is smooth."""


class TokenBucket:
    """Lets bytes through at a rate. Who takes more than is there waits until the debt is paid, in order of asking."""

    def __init__(self, bytes_per_s: float) -> None:
        if not bytes_per_s > 0:
            raise ValueError(
                f"a rate limit is a positive number of bytes per second, not {bytes_per_s}"
            )
        self._bytes_per_s = bytes_per_s
        self._level = _BURST_S * bytes_per_s
        self._updated_s: float | None = None

    async def take(self, byte_count: int) -> None:
        """Wait until `byte_count` bytes may pass."""
        now_s = trio.current_time()
        if self._updated_s is not None:
            earned = (now_s - self._updated_s) * self._bytes_per_s
            self._level = min(self._level + earned, _BURST_S * self._bytes_per_s)
        self._updated_s = now_s
        self._level -= byte_count
        if self._level < 0:
            await trio.sleep(-self._level / self._bytes_per_s)


class Rates:
    """Both directions of one node. Give the same object to every Caller and Service."""

    def __init__(
        self, *, upload_bytes_per_s: float | None = None, download_bytes_per_s: float | None = None
    ) -> None:
        """
        Args:
          upload_bytes_per_s: None is unlimited. Below 16 kB/s per busy stream, peers hang up on us (see Pace).
        """
        self._upload = TokenBucket(upload_bytes_per_s) if upload_bytes_per_s is not None else None
        self._download = (
            TokenBucket(download_bytes_per_s) if download_bytes_per_s is not None else None
        )

    async def sending(self, byte_count: int) -> None:
        if self._upload is not None:
            await self._upload.take(byte_count)

    async def receiving(self, byte_count: int) -> None:
        if self._download is not None:
            await self._download.take(byte_count)

    def upload_part(self, byte_count: int) -> int:
        """Return how many of `byte_count` bytes to send at once."""
        return byte_count if self._upload is None else min(byte_count, PART_BYTES)

    def download_part(self, byte_count: int) -> int:
        return byte_count if self._download is None else min(byte_count, PART_BYTES)


UNLIMITED: Final = Rates()
