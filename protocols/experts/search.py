"""Beam search for the experts with the highest scores among those that are alive (arXiv:2002.04013, section 3.2).

An expert's score is the sum of its coordinates' scores. The search walks down the grid: at each coordinate it keeps the
`beam` best prefixes under which something is alive. What is not known is looked up, best first; the search goes on with what
is known once everything it asked for was answered, or its patience is over: no search waits for one slow peer.

hivemind's search, with two faults of it avoided: an empty prefix inside a grid of three and more dimensions is remembered as
empty, and an empty first beam finds nothing instead of failing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from protocols.experts.uid import ExpertUID, Grid, Place, Prefix
from protocols.experts.view import PrefixView

IN_FLIGHT_MAX: Final = 32
"""Prefixes of one search that are looked up at once."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """These must be looked up before the search can go on; it has asked for them just now or earlier."""

    prefixes: tuple[Prefix, ...]
    """Only those it has not asked for before."""


@dataclass(frozen=True, slots=True)
class Found:
    """Experts that are alive, the best first. May be empty."""

    uids: tuple[ExpertUID, ...]
    looked_up: int
    """Prefixes that were not known before."""


Step: TypeAlias = LookUp | Found


class BeamSearch:
    """One search. Call `proceed` to begin, whenever something was learned, and when `until_s` is reached.

    Args:
      scores: of each coordinate, by dimension. For many rows at once: of each coordinate the largest of the rows'.
      beam: experts wanted, and prefixes kept at each coordinate.
      until_s: what has not been learned by then is done without.
    """

    def __init__(
        self, grid: Grid, scores: Sequence[Sequence[float]], *, beam: int, until_s: float
    ) -> None:
        if [len(row) for row in scores] != list(grid.sizes):
            raise ValueError(f"scores of {[len(row) for row in scores]} for a grid of {grid.sizes}")
        self._grid = grid
        self._scores = scores
        self._beam = beam
        self.until_s = until_s
        self._asked: set[Prefix] = set()

    def proceed(self, view: PrefixView, now_s: float) -> Step:
        """Walk as far down as what is known reaches."""
        layer, scores = self._grid.layer, self._scores
        places: list[tuple[float, Place]] = [(0.0, ())]
        if len(scores) > 1:
            first = [(score, (u,)) for u, score in enumerate(scores[0])]
            places = heapq.nlargest(len(first), first)
        for depth in range(min(1, len(scores) - 1), len(scores)):
            below: list[tuple[float, Place]] = []
            unknown: list[Prefix] = []
            alive = 0
            for score, place in places:
                if alive + len(unknown) >= self._beam:
                    break
                prefix = Prefix(layer, place)
                view.use(prefix, now_s)
                children = view.children(prefix, now_s)
                if children is None:
                    if now_s < self.until_s:
                        unknown.append(prefix)
                    continue
                inside = [u for u in children if u < len(scores[depth])]  # others are made up
                alive += bool(inside)
                below += [(score + scores[depth][u], (*place, u)) for u in inside]
            if unknown:
                return self._ask(unknown)
            places = heapq.nlargest(self._beam, below)
        uids = tuple(ExpertUID(layer, place) for _, place in places if place)
        return Found(uids, len(self._asked))

    def _ask(self, unknown: Sequence[Prefix]) -> LookUp:
        new = tuple(prefix for prefix in unknown if prefix not in self._asked)[:IN_FLIGHT_MAX]
        self._asked.update(new)
        return LookUp(new)
