"""Which chunk to ask of which donor: the plan of one state transfer. Pure: no clock, no IO, no torch.

Rules:
- A donor has at most `per_donor` chunks in flight, a chunk is asked of one donor at a time, lowest chunk first.
- A donor that sends bytes with the wrong hash lied or is broken: it is blamed and never asked again.
- A donor that fails (unreachable, too slow, hung up) loses its chunks to others; after `failures_max` failures in a row
  it is not asked again either. A donor that is busy is asked again when its wait is over, however often.
- Whatever arrived stays: a new donor may be added at any time and the transfer resumes where it was.

| chunk | what happens |
|---|---|
| wanted | `next_requests` may hand it out |
| in flight | one donor owes it; an answer, a failure or the loss of the donor ends that |
| done | its bytes had the committed hash |
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from protocols.errors import LocalProtocolError
from protocols.ids import PeerID
from swarm.state.manifest import Manifest

PER_DONOR: Final = 2
"""One on the way and one waiting, so that the link is never idle."""
FAILURES_MAX: Final = 3


class Arrival(enum.Enum):
    """What became of a chunk's bytes."""

    STORED = "stored"
    LATE = "late"
    """Nobody waits for it any more: another donor was quicker, or this one had been given up."""
    FALSE = "false"
    """The hash is wrong: the donor is to blame."""


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Ask this donor for this chunk."""

    donor: PeerID
    chunk: int


@dataclass(slots=True)
class _Donor:
    chunks: set[int] = field(default_factory=set)
    """In flight."""
    failures: int = 0
    """In a row."""
    blamed: bool = False
    not_before_s: float = 0.0


class FetchPlan:
    """The plan for the chunks of one manifest."""

    def __init__(
        self,
        manifest: Manifest,
        donors: Iterable[PeerID],
        *,
        per_donor: int = PER_DONOR,
        failures_max: int = FAILURES_MAX,
    ) -> None:
        self._manifest = manifest
        self._per_donor = per_donor
        self._failures_max = failures_max
        self._wanted = set(range(len(manifest.chunks)))
        self._done: set[int] = set()
        self._byte_count = manifest.byte_count
        self.bytes_done = 0
        self._donors: dict[PeerID, _Donor] = {}
        for donor in donors:
            self.add_donor(donor)

    @property
    def done(self) -> bool:
        """Every chunk has arrived."""
        return len(self._done) == len(self._manifest.chunks)

    @property
    def stuck(self) -> bool:
        """Chunks are missing and no donor is left to ask: find another one (`add_donor`) or another snapshot."""
        return not self.done and not any(self._is_usable(donor) for donor in self._donors.values())

    @property
    def blamed(self) -> tuple[PeerID, ...]:
        """Donors that sent false bytes, sorted."""
        return tuple(sorted(peer for peer, donor in self._donors.items() if donor.blamed))

    def add_donor(self, peer: PeerID) -> None:
        """Let a peer be asked. One that was blamed or given up stays out."""
        self._donors.setdefault(peer, _Donor())

    def next_requests(self, now_s: float) -> list[ChunkRequest]:
        """Return what to ask now; all of it counts as in flight from here on."""
        requests = []
        for chunk in sorted(self._wanted):
            donor = self._least_loaded(now_s)
            if donor is None:
                break
            self._wanted.remove(chunk)
            self._donors[donor].chunks.add(chunk)
            requests.append(ChunkRequest(donor, chunk))
        return requests

    def wake_at_s(self) -> float | None:
        """Return when `next_requests` may have something to say because a busy donor's wait ends; None if never."""
        waits = [
            donor.not_before_s
            for donor in self._donors.values()
            if self._is_usable(donor) and not donor.chunks
        ]
        return min(waits, default=None) if self._wanted else None

    def on_chunk(self, donor: PeerID, chunk: int, data: bytes | bytearray | memoryview) -> Arrival:
        """Check the bytes a donor sent. Costs one SHA-256 of them, so it may run on the codec thread."""
        matches = hashlib.sha256(data).digest() == self._manifest.chunks[chunk]
        return self.on_checked_chunk(donor, chunk, matches=matches)

    def on_checked_chunk(self, donor: PeerID, chunk: int, *, matches: bool) -> Arrival:
        """Take note of a chunk whose hash was checked elsewhere."""
        state = self._state_of(donor)
        if not matches:
            state.blamed = True
            self._give_back(state)
            return Arrival.FALSE
        state.failures = 0
        state.chunks.discard(chunk)
        if chunk in self._done:
            return Arrival.LATE
        self._wanted.discard(chunk)
        self._done.add(chunk)
        size = self._manifest.chunk_bytes
        self.bytes_done += min(size, self._byte_count - chunk * size)
        return Arrival.STORED

    def on_failure(self, donor: PeerID, chunk: int) -> None:
        """The donor did not answer, or said no."""
        state = self._state_of(donor)
        state.failures += 1
        if self._is_usable(state):
            self._give_back_one(state, chunk)
        else:
            self._give_back(state)

    def on_busy(self, donor: PeerID, chunk: int, *, retry_at_s: float) -> None:
        """The donor asked us to come back later. That is not a failure."""
        state = self._state_of(donor)
        state.not_before_s = max(state.not_before_s, retry_at_s)
        self._give_back_one(state, chunk)

    def _least_loaded(self, now_s: float) -> PeerID | None:
        free = [
            (len(donor.chunks), peer)
            for peer, donor in self._donors.items()
            if self._is_usable(donor)
            and donor.not_before_s <= now_s
            and len(donor.chunks) < self._per_donor
        ]
        return min(free)[1] if free else None

    def _is_usable(self, donor: _Donor) -> bool:
        return not donor.blamed and donor.failures < self._failures_max

    def _state_of(self, donor: PeerID) -> _Donor:
        if donor not in self._donors:
            raise LocalProtocolError("a chunk came from a donor that was never asked")
        return self._donors[donor]

    def _give_back(self, donor: _Donor) -> None:
        for chunk in tuple(donor.chunks):
            self._give_back_one(donor, chunk)

    def _give_back_one(self, donor: _Donor, chunk: int) -> None:
        if chunk in donor.chunks:
            donor.chunks.remove(chunk)
            if chunk not in self._done:
                self._wanted.add(chunk)
