"""Where the others are: asked by a newcomer, and by whoever has reason to doubt that it is where they are.

| state | what happens |
|---|---|
| idle | until the next look, after `CHECK_S` |
| alone | a newcomer without contacts waits for the first |
| waiting | until it is time to ask |
| asking | up to `ASKED_MAX` members say where they are |
| fetching | fragment by fragment, the outer state that most of them have; then it asks again, until it is where they are |

What was fetched is adopted between two jobs, when the fragment is in no round.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from protocols.collective.events import (
    AskStanding,
    CollectiveEffect,
    FetchState,
    StateFailed,
    StateFetched,
)
from protocols.collective.messages import FragmentStanding, Standing
from protocols.collective.standings import judge, step_of
from protocols.ids import PeerID

ASKED_MAX: Final = 5
CONTACTS_WAIT_S: Final = 15.0
"""A newcomer that finds nobody for so long begins by itself."""
ANSWERS_WAIT_S: Final = 10.0
DOUBT_S: Final = 1.0
"""Between a missed round and the question where the others are: their round may not be over yet."""
CHECK_S: Final = 60.0
"""Between two questions without any reason: whoever missed the end of everything finds out."""
POLL_S: Final = 1.0
"""Between two questions of who is behind, while the others are in a round."""
AGAIN_S: Final = 0.1
"""Between a state that was adopted and the question whether it is the newest."""
POLLS_MAX: Final = 200
"""Then what there is is fetched: rounds do not last so long."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A state that was fetched."""

    version: int
    lines: tuple[bytes, ...]
    has_ours: bool


class Whereabouts:
    """Questions, answers, and fetches that follow from them."""

    def __init__(self, own: PeerID, *, rng: random.Random) -> None:
        self._own = own
        self._rng = rng
        self._state: Literal["idle", "alone", "waiting", "asking", "fetching"] = "idle"
        self._counts = True
        """Our own state is one to keep."""
        self._asked: set[PeerID] = set()
        self._answers: dict[PeerID, Standing] = {}
        self._donors: dict[int, list[PeerID]] = {}
        """Of the fragments that we are after, whom to ask next."""
        self._lines: dict[int, tuple[bytes, bytes]] = {}
        """Of the states that we are after, and of ours when that was decided."""
        self._behind: dict[int, bytes] = {}
        """Fragments of which others have another state than we, by what they said last; and from which it came."""
        self.rounds: dict[int, int] = {}
        """The versions of rounds in which others with our state are, by what they said last."""
        self._polls = 0
        self._has_adopted = False
        self._fetching: int | None = None
        self._fetched: dict[int, Taken] = {}
        self.wake_at_s = math.inf
        """When it asks next; while it is idle, now and then."""
        self.step = 0
        """Where the run is, as far as was asked."""
        self.adoptions = 0

    # --- what begins it ---

    def newcomer(self, now_s: float, *, counts: bool) -> None:
        """We have just come in, without a state or with an old one."""
        self._counts = counts
        self._state = "alone"
        self.wake_at_s = now_s + CONTACTS_WAIT_S

    def doubt(self, now_s: float) -> None:
        """Others may have gone on without us."""
        if self._state == "idle":
            self._state = "waiting"
            self.wake_at_s = now_s + DOUBT_S

    # --- what comes back ---

    def answered(self, peer: PeerID, standing: Standing) -> None:
        """A member said where it is."""
        if self._state == "asking" and peer in self._asked:
            self._asked.discard(peer)
            self._answers[peer] = standing

    def failed(self, peer: PeerID) -> None:
        """A member does not answer."""
        self._asked.discard(peer)

    def fetched(self, event: StateFetched | StateFailed) -> None:
        """A state is here, or is not to be had from this donor."""
        if self._fetching != event.fragment:
            return
        self._fetching = None
        # The donor may have gone on meanwhile, from the state that it named.
        if isinstance(event, StateFetched) and self._lines[event.fragment][0] in event.lines:
            self._fetched[event.fragment] = Taken(event.version, event.lines, event.has_ours)
            self._donors.pop(event.fragment, None)

    def to_adopt(self, fragment: int, mine: FragmentStanding) -> Taken | None:
        """Return the fetched state that is to be taken now. It is forgotten when ours has changed since it was decided on."""
        if fragment in self._fetched and self._lines[fragment][1] != mine.lines[0]:
            del self._fetched[fragment]
        return self._fetched.get(fragment)

    def adopted(self, fragment: int, *, finite: bool) -> Taken:
        """The fetched state was taken, or is of no use."""
        self.adoptions += int(finite)
        self._has_adopted = finite
        return self._fetched.pop(fragment)

    # --- what is to be done ---

    @property
    def settled(self) -> bool:
        """Nothing is asked or fetched."""
        return self._state == "idle"

    @property
    def is_behind(self) -> bool:
        """Others have another state of some fragment, by what they said last."""
        return bool(self._behind)

    def is_after(self, fragment: int) -> bool:
        """Tell whether another state of this fragment is on its way to us."""
        return fragment in self._behind

    def is_far_ahead(self, fragment: int, line: bytes) -> bool:
        """Tell whether the others' state is not the next one after `line`: that may be coming by a round that we are in."""
        return self._behind.get(fragment, line) != line

    def go_on(
        self, now_s: float, contacts: Sequence[PeerID], mine: Sequence[FragmentStanding]
    ) -> list[CollectiveEffect]:
        """Take the next steps. `mine` says where we are, fragment by fragment."""
        if self._state == "alone" and (contacts or now_s >= self.wake_at_s):
            return self._question(now_s, contacts)
        if self._state in ("waiting", "idle") and now_s >= self.wake_at_s:
            return self._question(now_s, contacts)
        if self._state == "asking" and (not self._asked or now_s >= self.wake_at_s):
            self._conclude(mine)
        return self._fetch(now_s) if self._state == "fetching" else []

    def _question(self, now_s: float, contacts: Sequence[PeerID]) -> list[CollectiveEffect]:
        if not contacts:
            self._rest(now_s)
            return []
        self._state = "asking"
        self._answers.clear()
        asked = self._rng.sample(list(contacts), min(ASKED_MAX, len(contacts)))
        self._asked = set(asked)
        self.wake_at_s = now_s + ANSWERS_WAIT_S
        return [AskStanding(peer) for peer in asked]

    def _conclude(self, mine: Sequence[FragmentStanding]) -> None:
        """Everybody has answered, or had the time to."""
        said = {peer: found for peer, found in self._answers.items() if found.fragments}
        self.step = max(self.step, step_of(said))
        self._behind.clear()
        self.rounds.clear()
        for index, own in enumerate(mine):
            found = {peer: standing.fragments[index] for peer, standing in said.items()}
            verdict = judge(self._own, own, found, counts=self._counts)
            if verdict is None:
                waiting = [s.round for s in found.values() if s.lines[0] == own.lines[0]]
                if any(waiting):
                    self.rounds[index] = max(waiting)
                continue
            (*_, before) = found[verdict.donors[0]].lines[:2]
            self._behind[index] = before
            in_round = sum(found[peer].round > 0 for peer in verdict.donors)
            if 2 * in_round > len(verdict.donors) and self._polls < POLLS_MAX:
                continue  # what could be fetched now would be old when it is here
            donors = list(verdict.donors)
            self._rng.shuffle(donors)
            self._donors[index] = donors
            self._lines[index] = verdict.line, own.lines[0]
        self._state = "fetching"
        self.wake_at_s = math.inf  # the shell's deadline bounds a fetch

    def _fetch(self, now_s: float) -> list[CollectiveEffect]:
        """Fetch the next fragment, from its next donor. When all are here, or have no donor left, ask again, until nothing is
        left to be fetched."""
        if self._fetching is not None:
            return []
        for index, donors in self._donors.items():
            if donors:
                self._fetching = index
                return [FetchState(donors.pop(), index)]
        self._donors.clear()
        if self._fetched:
            return []  # they are adopted first
        if not self._behind:
            self._rest(now_s)
            return []
        self._polls += 1
        self._state = "waiting"
        self.wake_at_s = now_s + (AGAIN_S if self._has_adopted else POLL_S)
        self._has_adopted = False
        return []

    def _rest(self, now_s: float) -> None:
        self._state = "idle"
        self._counts = True
        self._polls = 0
        self._behind.clear()
        self.wake_at_s = now_s + CHECK_S
