"""Which experts are alive and where, as far as the directory has said lately: a cache of what is under each prefix.

Rules:
- What is known is used at once, however old, until its records expire; it is refreshed in the background.
- A prefix under which nothing is alive is remembered as empty for `negative_s`, and no longer: somebody may have come.
- A host that does not answer is doubted: its records count for nothing until it has written a newer one.
- Of several hosts of one expert those of the highest epoch count: an older host has been replaced and may not know it. An
  epoch that no expert can come to was made up and does not count.
- A host names the replicas of its expert: they are asked too, and still are while its record lives, when it answers no more.
- A prefix that only a search has wanted is forgotten when none wants it any more: a large grid is not watched as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.experts.epoch import plausible
from protocols.experts.messages import Stated
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.ids import PeerID

UNUSED_S: Final = 60.0
"""So long is a prefix looked up again after the last search that wanted it."""


@dataclass(frozen=True, slots=True)
class HostStatement:
    """One host's record under a prefix."""

    peer: PeerID
    stated: tuple[Stated, ...]
    until_s: float
    """By our clock."""
    issued_s: float
    """By the host's own clock: compared only with others of its records."""


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """A host's word that it has an expert. Sorted, the first is the one that others must give way to."""

    rank: tuple[int, bytes] = field(init=False, repr=False)
    epoch: int
    peer: PeerID

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", (-self.epoch, bytes(self.peer)))


@dataclass(slots=True)
class _Known:
    asked_s: float
    whole: bool
    """All peers that may hold records were asked, not only the first that held some."""
    statements: dict[PeerID, HostStatement]
    children: dict[int, list[tuple[Stated, HostStatement]]]
    """Coordinate -> (line, whose statement it is in)."""


class PrefixView:
    """What is known under each prefix.

    Args:
      fresh_s: a prefix in use is due for another look after this.
      negative_s: so long is an empty prefix not asked again by a search.
    """

    def __init__(self, *, fresh_s: float, negative_s: float | None = None) -> None:
        self._fresh_s = fresh_s
        self._negative_s = 5 * fresh_s if negative_s is None else negative_s
        self._known: dict[Prefix, _Known] = {}
        self._wanted: dict[Prefix, float] = {}
        """Until when each is kept fresh."""
        self._doubted: dict[PeerID, float] = {}
        """Records issued up to then count for nothing."""
        self._own: dict[ExpertUID, int] = {}
        self._own_replicas: dict[ExpertUID, tuple[PeerID, ...]] = {}
        self._me: PeerID | None = None

    def want(self, prefixes: Iterable[Prefix]) -> None:
        """Keep these fresh from now on."""
        self._wanted.update(dict.fromkeys(prefixes, math.inf))

    def use(self, prefix: Prefix, now_s: float) -> None:
        """A search looks at this one: keep it fresh for a while."""
        self._wanted[prefix] = max(self._wanted.get(prefix, 0.0), now_s + UNUSED_S)

    @property
    def wanted(self) -> Sequence[Prefix]:
        return sorted(self._wanted)

    def due(self, now_s: float) -> Sequence[Prefix]:
        """Return the wanted prefixes that were not looked up for `fresh_s`, the longest ago first. Forget the unused."""
        for prefix in [p for p, until_s in self._wanted.items() if until_s < now_s]:
            del self._wanted[prefix]
        for prefix in self._known.keys() - self._wanted.keys():
            del self._known[prefix]
        asked = {prefix: self.asked_s(prefix) for prefix in self._wanted}
        late = [prefix for prefix, at_s in asked.items() if now_s - at_s >= self._fresh_s]
        return sorted(late, key=lambda prefix: (asked[prefix], prefix))

    def learn(
        self,
        prefix: Prefix,
        statements: Iterable[HostStatement],
        *,
        asked_s: float,
        whole: bool = True,
    ) -> None:
        """Take what the directory has under a prefix: all of it; what is not there any more is gone.

        Args:
          whole: false for what the first peer that holds something has, which counts only while nothing is known.
        """
        before = self._known.get(prefix)
        if before is not None and (before.asked_s > asked_s or not whole):
            return  # a look that began later has answered before
        kept = {statement.peer: statement for statement in statements}
        children: dict[int, list[tuple[Stated, HostStatement]]] = {}
        for statement in kept.values():
            for line in statement.stated:
                if plausible(line.epoch):
                    children.setdefault(line.coordinate, []).append((line, statement))
        self._known[prefix] = _Known(asked_s, whole, kept, children)

    def doubt(self, peer: PeerID) -> None:
        """It does not answer."""
        issued = [
            known.statements[peer].issued_s
            for known in self._known.values()
            if peer in known.statements
        ]
        newest_s = max(issued, default=self._doubted.get(peer, 0.0))
        self._doubted[peer] = newest_s

    def own(
        self,
        me: PeerID,
        experts: Mapping[ExpertUID, int],
        replicas: Mapping[ExpertUID, tuple[PeerID, ...]] | None = None,
    ) -> None:
        """Say what this node hosts, with epochs and who answers for it as well: known at once, without the directory."""
        self._me, self._own, self._own_replicas = me, dict(experts), dict(replicas or {})

    # --- reading ---

    def asked_s(self, prefix: Prefix) -> float:
        """Return when the look began that told what is known of a prefix."""
        known = self._known.get(prefix)
        return known.asked_s if known is not None else -math.inf

    def children(self, prefix: Prefix, now_s: float) -> Sequence[int] | None:
        """Return the next coordinates under which something is alive, in order; None when a look is needed to know."""
        known = self._known.get(prefix)
        own = {
            uid.place[len(prefix.place)]
            for uid in self._own
            if uid.layer == prefix.layer and uid.place[: len(prefix.place)] == prefix.place
        }
        if known is None:
            return sorted(own) or None
        alive = own | {
            coordinate
            for coordinate, lines in known.children.items()
            if any(self._answers(line, statement, now_s) for line, statement in lines)
        }
        if not alive and now_s - known.asked_s >= self._negative_s:
            return None
        return sorted(alive)

    def claims(self, uid: ExpertUID, now_s: float) -> Sequence[Claim]:
        """Return who says that it has this expert, older epochs included, the rightful one first."""
        known = self._known.get(Prefix(uid.layer, uid.place[:-1]))
        lines = known.children.get(uid.place[-1], []) if known is not None else []
        claims = {
            Claim(line.epoch, statement.peer)
            for line, statement in lines
            if self._counts(statement, now_s)
        }
        if self._me is not None and uid in self._own:
            claims.add(Claim(self._own[uid], self._me))
        return sorted(claims)

    def hosts(self, uid: ExpertUID, now_s: float) -> Sequence[Claim]:
        """Return the hosts of this expert's highest epoch, the rightful one first."""
        claims = self.claims(uid, now_s)
        return [claim for claim in claims if claim.epoch == claims[0].epoch]

    def answering(self, uid: ExpertUID, now_s: float) -> Sequence[Claim]:
        """Return whom to ask for this expert: its hosts, then its replicas."""
        hosts = self.hosts(uid, now_s)
        return [*hosts, *(claim for claim in self._replicas(uid, now_s) if claim not in hosts)]

    def _replicas(self, uid: ExpertUID, now_s: float) -> Sequence[Claim]:
        """Return who answers for an expert beside its host, as its host said; also when the host does not answer any more."""
        if uid in self._own:
            lines = [(self._own[uid], peer) for peer in self._own_replicas.get(uid, ())]
        else:
            known = self._known.get(Prefix(uid.layer, uid.place[:-1]))
            stated = known.children.get(uid.place[-1], []) if known is not None else []
            lines = [
                (line.epoch, peer)
                for line, statement in stated
                if statement.until_s > now_s and statement.peer != self._me
                for peer in line.replicas
            ]
        if not lines:
            return []
        # A host that answers goes before one that does not, whatever epoch that one states.
        claims = self.claims(uid, now_s)
        rightful = claims[0].epoch if claims else max(epoch for epoch, _ in lines)
        return [Claim(epoch, peer) for epoch, peer in lines if epoch == rightful]

    def overtaken(self, uid: ExpertUID, epoch: int, now_s: float) -> bool:
        """Tell whether a host of this epoch is known to have been replaced."""
        claims = self.claims(uid, now_s)
        return bool(claims) and claims[0].epoch > epoch

    def alive(self, grid: Grid, now_s: float) -> Sequence[ExpertUID]:
        """Return the experts of a layer that are known to be alive, in order."""
        found = {uid for uid in self._own if uid in grid}
        for prefix, known in self._known.items():
            if prefix.layer != grid.layer or len(prefix.place) != len(grid.sizes) - 1:
                continue
            for coordinate, lines in known.children.items():
                if any(self._answers(line, statement, now_s) for line, statement in lines):
                    found.add(ExpertUID(grid.layer, (*prefix.place, coordinate)))
        return sorted(uid for uid in found if uid in grid)

    def complete(self, grids: Iterable[Grid]) -> bool:
        """Tell whether every prefix of these grids was looked up at least once, wholly."""
        known = (self._known.get(prefix) for grid in grids for prefix in grid.prefixes())
        return all(of is not None and of.whole for of in known)

    def _answers(self, line: Stated, statement: HostStatement, now_s: float) -> bool:
        """Tell whether the host, or a replica that it named, answers."""
        named = bool(line.replicas) and statement.until_s > now_s and statement.peer != self._me
        return named or self._counts(statement, now_s)

    def _counts(self, statement: HostStatement, now_s: float) -> bool:
        if statement.until_s <= now_s or statement.peer == self._me:
            return (
                False  # what we host we know ourselves: a record of ours may be of an earlier life
            )
        return statement.issued_s > self._doubted.get(statement.peer, -1.0)
