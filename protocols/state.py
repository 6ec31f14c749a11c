"""How a newcomer gets the state of the part that it is to host: fetched, vouched for, brought up to date.

Rules of this file:
  - It is fetched from the donors: replicas that were there when we were admitted, and still are.
  - It is loaded when a record commits to its root. The record of the next step names the root of the state before it.
  - After the last step of a run no record follows that could name a root: what was fetched is loaded without.
  - When no donor is left, nobody can give the state again or vouch for it. What one of them signed for by sending it is
    then loaded without, unless a record names another root: the alternative is that the part is lost, with the run.
  - Steps that are committed meanwhile are kept, all of them or none, and applied after loading.

| state | what ends it |
|---|---|
| fetching | the bytes are here; or no donor gave them, and after a pause they are asked again |
| waiting | a record names the root; or no donor is left |
| loading | the end: the driver loads and applies what is kept |
| given up | the end: whoever admits us does so anew, at the present step |
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar, assert_never

from protocols.core import Tick
from protocols.ids import PeerID

StepT = TypeVar("StepT")

_TRIES: Final = 5
_PAUSE_S: Final = 0.5
_KEPT_STEPS_MAX: Final = 256
_KEPT_BYTES_MAX: Final = 1 << 30
"""Of reduced gradients, while loading. A transfer that takes longer than these steps starts over."""


# --- events ---


@dataclass(frozen=True, slots=True)
class Fetched:
    """The complete state is here, and is what its manifest says."""

    now_s: float
    donor: PeerID
    """Who sent the manifest."""
    root: bytes


@dataclass(frozen=True, slots=True)
class FetchBroken:
    """No donor gave it."""

    now_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class DonorsLeft:
    """Of the donors, these are still there."""

    now_s: float
    donors: Collection[PeerID]


@dataclass(frozen=True, slots=True)
class RootNamed:
    """The step after the state we fetch was committed; `root` is empty when nobody vouched for the state before it."""

    now_s: float
    root: bytes


@dataclass(frozen=True, slots=True)
class StepCommitted(Generic[StepT]):
    """A step has to be applied after loading."""

    now_s: float
    step: StepT
    byte_count: int


Event: TypeAlias = Tick | Fetched | FetchBroken | DonorsLeft | RootNamed | StepCommitted[StepT]


# --- effects ---


@dataclass(frozen=True, slots=True)
class FetchFrom:
    """Fetch from these; answer Fetched or FetchBroken."""

    donors: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class LoadFetched:
    """Load what was fetched, then apply what is `kept`, until nothing is left of it."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This state cannot be had any more: ask to be admitted anew."""

    reason: str


Effect: TypeAlias = FetchFrom | LoadFetched | GiveUp


class _Phase(enum.Enum):
    FETCHING = enum.auto()
    WAITING = enum.auto()
    LOADING = enum.auto()
    GIVEN_UP = enum.auto()


class StateFetch(Generic[StepT]):
    """One admission on its way to a complete state.

    Args:
      donors: replicas of the part when we were admitted.
      last: no step follows the one that we fetch the state of.
      kept_bytes_max: how much of committed steps is kept.
    """

    def __init__(
        self,
        donors: Collection[PeerID],
        *,
        last: bool = False,
        kept_bytes_max: int = _KEPT_BYTES_MAX,
    ) -> None:
        self.kept: deque[StepT] = deque()
        """Committed steps to apply after loading, oldest first; the driver takes them out."""
        self.wake_at_s = math.inf
        self._phase = _Phase.FETCHING
        self._donors = tuple(donors)
        """Those still there."""
        self._last = last
        self._refused: set[PeerID] = set()
        """Donors whose state is not the committed one."""
        self._fetched: Fetched | None = None
        self._root: bytes | None = None
        self._failures = 0
        self._kept_bytes = 0
        self._kept_bytes_max = kept_bytes_max

    @property
    def given_up(self) -> bool:
        """Nothing is kept any more: what would be loaded could never catch up."""
        return self._phase is _Phase.GIVEN_UP

    @property
    def waits_for_root(self) -> bool:
        return self._phase is _Phase.WAITING

    def start(self, now_s: float) -> list[Effect]:
        """Begin to fetch."""
        return self._ask()

    def handle(self, event: Event[StepT]) -> list[Effect]:
        """Take one event; return what to do."""
        if self._phase is _Phase.GIVEN_UP:
            return []
        match event:
            case Tick():
                return self._ask() if event.now_s >= self.wake_at_s else []
            case Fetched():
                return self._take(event)
            case FetchBroken():
                return self._failed(event.now_s, event.reason)
            case DonorsLeft():
                self._donors = tuple(event.donors)
                return self._decide(event.now_s)
            case RootNamed():
                self._root = event.root
                return self._decide(event.now_s)
            case StepCommitted():
                return self._keep(event)
            case _:
                assert_never(event)

    def _ask(self) -> list[Effect]:
        self.wake_at_s = math.inf
        donors = tuple(p for p in self._donors if p not in self._refused)
        if not donors:
            return self._give_up("no peer is left that could give it")
        if self._root == b"":
            return self._give_up("a step went by, and nobody vouched for the state before it")
        return [FetchFrom(donors)]

    def _take(self, fetched: Fetched) -> list[Effect]:
        if self._phase is not _Phase.FETCHING:
            return []
        self._fetched, self._phase = fetched, _Phase.WAITING
        return self._decide(fetched.now_s)

    def _failed(self, now_s: float, reason: str) -> list[Effect]:
        if self._phase is not _Phase.FETCHING:
            return []
        self._failures += 1
        if self._failures >= _TRIES:
            return self._give_up(reason)
        self.wake_at_s = now_s + _PAUSE_S
        return []

    def _decide(self, now_s: float) -> list[Effect]:
        """Compare what was fetched with what the members committed to."""
        if self._phase is not _Phase.WAITING or self._fetched is None:
            return []
        if self._root:
            return self._load() if self._root == self._fetched.root else self._refuse(now_s)
        if self._last or not self._donors:
            return self._load()
        if self._root is None:
            return []
        return self._give_up("a step went by, and nobody vouched for the state before it")

    def _load(self) -> list[Effect]:
        self._phase = _Phase.LOADING
        return [LoadFetched()]

    def _refuse(self, now_s: float) -> list[Effect]:
        """Whose root is wrong cannot be told: the members may have committed to a false one. Another donor may help."""
        assert self._fetched is not None
        self._refused.add(self._fetched.donor)
        self._fetched, self._phase = None, _Phase.FETCHING
        return self._ask()

    def _keep(self, event: StepCommitted[StepT]) -> list[Effect]:
        self._kept_bytes += event.byte_count
        if len(self.kept) >= _KEPT_STEPS_MAX or (
            self.kept and self._kept_bytes > self._kept_bytes_max
        ):
            return self._give_up("it took more steps than are kept meanwhile")
        self.kept.append(event.step)
        return []

    def _give_up(self, reason: str) -> list[Effect]:
        self._phase = _Phase.GIVEN_UP
        self.wake_at_s = math.inf
        self.kept.clear()
        return [GiveUp(reason)]
