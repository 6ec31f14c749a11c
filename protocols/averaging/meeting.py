"""The meeting place of a round: who has come, when that is enough, and the groups that all their members agree to.

| a group | until |
|---|---|
| gathering | everybody is here that the directory names; or nobody came for a while (`AveragingSpec.gather_*`) |
| forming | all members said Agree; who declines, or says nothing, is left out and the others are asked anew |
| begun | forgotten after a while; meanwhile whoever repeats its Agree is told again to begin |

How long nobody may come before the group is formed follows what was seen: twice the time between the first arrival and the
last in earlier rounds, those that came too late included.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from protocols.averaging.contacts import Contacts, draw_groups
from protocols.averaging.messages import (
    Alone,
    Begin,
    Come,
    Form,
    Join,
    Late,
    Member,
    Noted,
    round_id_of,
)
from protocols.averaging.settings import AveragingSpec
from protocols.core import Send
from protocols.ids import PeerID

MEETINGS_MAX: Final = 64
"""At one place at a time. Keys and versions are named by others, so it must be bounded."""
JOINED_MAX: Final = 512
_CLOSED_MAX: Final = 256
_SPREAD_SHARE: Final = 0.3
"""Of the newest round in what is remembered of the spread."""

_What: TypeAlias = tuple[str, int, bytes]


@dataclass(slots=True)
class _Meeting:
    first_s: float
    last_s: float
    joined: dict[PeerID, Join] = field(default_factory=dict)
    passed: set[PeerID] = field(default_factory=set)
    """Who said that it does not come."""
    called: set[PeerID] = field(default_factory=set)
    expected: frozenset[PeerID] = frozenset()
    place: PeerID | None = None
    """Where we would go ourselves."""
    as_of: int = -1
    """The state of the contacts at which these two were looked at: that takes a hash for each peer."""


@dataclass(slots=True)
class _Group:
    """One group on its way to a round."""

    form: Form
    until_s: float
    again_s: float
    agreed: set[PeerID] = field(default_factory=set)
    state: str = "forming"
    """Or begun, or dissolved."""

    @property
    def peers(self) -> list[PeerID]:
        return [member.peer for member in self.form.members]


class Meetings:
    """All rounds for which peers come to us.

    Args:
      passed: our own version under a key, when it is past the given one; else None.
    """

    def __init__(
        self,
        own: PeerID,
        spec: AveragingSpec,
        contacts: Contacts,
        rng: random.Random,
        *,
        passed: Callable[[str, int], int | None],
    ) -> None:
        self._own = own
        self._spec = spec
        self._contacts = contacts
        self._rng = rng
        self._passed = passed
        self._meetings: dict[_What, _Meeting] = {}
        self._groups: dict[bytes, _Group] = {}
        self._closed: dict[_What, float] = {}
        """When the first peer had come to a meeting that is over."""
        self._spread_s: dict[str, float] = {}

    @property
    def wake_at_s(self) -> float:
        """When `tick` has something to do."""
        groups = (
            min(g.until_s, g.again_s) if g.state == "forming" else g.until_s
            for g in self._groups.values()
        )
        meetings = (self._due_s(what, m) for what, m in self._meetings.items())
        return min((*groups, *meetings), default=math.inf)

    @property
    def held(self) -> int:
        """Meetings and groups in memory."""
        return len(self._meetings) + len(self._groups) + len(self._closed)

    def learn_spread(self, key: str, spread_s: float) -> None:
        """Take what a round showed: how long after the first peer the last one came."""
        old_s = self._spread_s.pop(key, spread_s)
        if len(self._spread_s) >= MEETINGS_MAX:
            del self._spread_s[next(iter(self._spread_s))]
        self._spread_s[key] = old_s + _SPREAD_SHARE * (spread_s - old_s)

    # --- gathering ---

    def join(self, now_s: float, peer: PeerID, join: Join) -> list[Send]:
        """A peer has come."""
        what = join.key, join.version, join.layout
        newest = self._passed(join.key, join.version)
        group = self._group_of(peer, join.key, join.version)
        if group is not None:
            return [Send(peer, group.form)]
        if what in self._closed or newest is not None:
            if what in self._closed:
                late_s = now_s - self._closed[what]
                self.learn_spread(join.key, min(late_s, self._spec.gather_ceiling_s))
            return [Send(peer, Late(join.key, join.version, newest or join.version))]
        meeting = self._meetings.get(what)
        if meeting is None:
            if len(self._meetings) >= MEETINGS_MAX and not self._make_room(peer):
                return []
            meeting = self._meetings[what] = _Meeting(now_s, now_s)
        if peer not in meeting.joined:
            if len(meeting.joined) >= JOINED_MAX:
                return []
            meeting.last_s = now_s
        meeting.joined[peer] = join
        meeting.passed.discard(peer)
        called = self._call(now_s, what, meeting)
        noted = Noted(join.key, join.version, meeting.place or self._own)
        return [Send(peer, noted), *called]

    def _make_room(self, peer: PeerID) -> bool:
        """End a meeting of whoever is in most of them, unless this peer would be: nobody alone takes all the room."""
        counts = Counter(known for meeting in self._meetings.values() for known in meeting.joined)
        ((greedy, count),) = counts.most_common(1)
        if counts[peer] + 1 >= count:
            return False
        its = [what for what, meeting in self._meetings.items() if greedy in meeting.joined]
        del self._meetings[min(its, key=lambda what: len(self._meetings[what].joined))]
        return True

    def does_not_come(self, peer: PeerID, key: str, version: int) -> None:
        """Who was called said that it does not come."""
        for (its_key, its_version, _), meeting in self._meetings.items():
            if (its_key, its_version) == (key, version) and peer in meeting.called:
                meeting.passed.add(peer)

    def _call(self, now_s: float, what: _What, meeting: _Meeting) -> list[Send]:
        """Call those who have not come, once each."""
        key, version, _ = what
        missing = self._missing(now_s, what, meeting) - meeting.called
        meeting.called |= missing
        return [Send(peer, Come(key, version)) for peer in sorted(missing) if peer != self._own]

    def _missing(self, now_s: float, what: _What, meeting: _Meeting) -> set[PeerID]:
        self._look_at_contacts(now_s, what, meeting)
        return set(meeting.expected - meeting.joined.keys() - meeting.passed)

    def _look_at_contacts(self, now_s: float, what: _What, meeting: _Meeting) -> None:
        if meeting.as_of != self._contacts.changes:
            key, version, _ = what
            meeting.expected = self._contacts.expected(now_s, key, version)
            meeting.place = self._contacts.place(now_s, key, version)
            meeting.as_of = self._contacts.changes

    def _due_s(self, what: _What, meeting: _Meeting) -> float:
        """Return when the groups are formed, as far as is known now."""
        spec = self._spec
        latest_s = meeting.first_s + spec.gather_ceiling_s
        if len(meeting.joined) < 2:
            return latest_s
        if not self._missing(meeting.last_s, what, meeting):
            return meeting.last_s
        spread_s = max(meeting.last_s - meeting.first_s, self._spread_s.get(what[0], 0.0))
        return min(latest_s, meeting.last_s + max(spec.gather_floor_s, 2 * spread_s))

    # --- forming ---

    def tick(self, now_s: float) -> list[Send]:
        """Form the groups that are due, and go on without members that do not answer."""
        effects: list[Send] = []
        for what, meeting in list(self._meetings.items()):
            if now_s >= self._due_s(what, meeting):
                effects += self._close(now_s, what, meeting)
        for round_id, group in list(self._groups.items()):
            if now_s >= group.until_s:
                if group.state == "forming":
                    effects += self._form_again(now_s, round_id, group, group.agreed)
                else:
                    del self._groups[round_id]
            elif group.state == "forming" and now_s >= group.again_s:
                group.again_s = now_s + self._spec.answer_s / 3
                effects += [
                    Send(peer, group.form) for peer in group.peers if peer not in group.agreed
                ]
        return effects

    def _close(self, now_s: float, what: _What, meeting: _Meeting) -> list[Send]:
        key, version, _ = what
        del self._meetings[what]
        if len(meeting.joined) < 2:
            # Not closed: somebody may still come, and find another who comes then.
            return [Send(peer, Alone(key, version)) for peer in meeting.joined]
        self._closed[what] = meeting.first_s
        if len(self._closed) > _CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        spread_s = meeting.last_s - meeting.first_s
        self.learn_spread(key, spread_s)
        effects: list[Send] = []
        for peers in draw_groups(meeting.joined, key, version, self._spec.group_max):
            members = tuple(
                Member(peer, meeting.joined[peer].weight, meeting.joined[peer].bandwidth)
                for peer in peers
            )
            effects += self._form(now_s, what, spread_s, members)
        return effects

    def _form(
        self, now_s: float, what: _What, spread_s: float, members: tuple[Member, ...]
    ) -> list[Send]:
        key, version, layout = what
        form = Form(key, version, layout, self._rng.getrandbits(62), spread_s, members)
        group = _Group(form, now_s + self._spec.answer_s, now_s + self._spec.answer_s / 3)
        self._groups[round_id_of(form, self._own)] = group
        return [Send(peer, form) for peer in group.peers]

    def _form_again(
        self, now_s: float, round_id: bytes, group: _Group, staying: Iterable[PeerID]
    ) -> list[Send]:
        """Ask the rest anew, as another round; one that is left alone is told so."""
        self._end(now_s, group, "dissolved")
        form, stay = group.form, set(staying)
        members = tuple(member for member in form.members if member.peer in stay)
        what = form.key, form.version, form.layout
        if len(members) < 2:
            return [Send(member.peer, Alone(form.key, form.version)) for member in members]
        return self._form(now_s, what, form.spread_s, members)

    def _end(self, now_s: float, group: _Group, state: str) -> None:
        group.state = state
        group.until_s = now_s + 4 * self._spec.answer_s

    def _group_of(self, peer: PeerID, key: str, version: int) -> _Group | None:
        """Return the group to which a peer belongs; when it has begun already, the peer has yet to hear of that."""
        for group in self._groups.values():
            its = group.form
            wanted = group.state != "dissolved" and (its.key, its.version) == (key, version)
            if wanted and peer in group.peers:
                return group
        return None

    def agree(self, now_s: float, peer: PeerID, round_id: bytes) -> list[Send]:
        """A member agrees; or repeats it, because it has not heard that the round begins."""
        group = self._groups.get(round_id)
        if group is None or peer not in group.peers:
            return []
        form = group.form
        begin = Begin(round_id, 1, tuple(range(len(form.members))))
        match group.state:
            case "begun":
                return [Send(peer, begin)]
            case "dissolved":
                newer = self._group_of(peer, form.key, form.version)
                late = Late(form.key, form.version, form.version)
                return [Send(peer, newer.form if newer is not None else late)]
        group.agreed.add(peer)
        if len(group.agreed) < len(form.members):
            return []
        self._end(now_s, group, "begun")
        return [Send(member, begin) for member in group.peers]

    def lose(self, now_s: float, peer: PeerID, round_id: bytes | None = None) -> list[Send]:
        """A member declines this round; or, with None, cannot be reached: no group waits for it."""
        effects: list[Send] = []
        for its_id, group in list(self._groups.items()):
            if group.state != "forming" or peer not in group.peers:
                continue
            if round_id in (None, its_id):
                staying = [other for other in group.peers if other != peer]
                effects += self._form_again(now_s, its_id, group, staying)
        if round_id is None:
            for meeting in self._meetings.values():
                meeting.joined.pop(peer, None)
            self._meetings = {what: m for what, m in self._meetings.items() if m.joined}
        return effects
