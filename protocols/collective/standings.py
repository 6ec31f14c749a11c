"""Whose outer state to take: what members say of theirs, compared with our own.

Members of a round always end with the same state. Who missed one finds others ahead of it on its own line, and follows; two
sides that averaged apart have different lines, and the smaller one gives way. Nobody follows one member against several
others that say the same as we do: a single liar moves nobody where three are honest.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from protocols.collective.messages import FragmentStanding, Standing
from protocols.ids import PeerID


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about one fragment."""

    line: bytes
    """To take over."""
    donors: tuple[PeerID, ...]


def judge(
    own: PeerID,
    mine: FragmentStanding,
    found: Mapping[PeerID, FragmentStanding],
    *,
    counts: bool,
) -> Verdict | None:
    """Say whose outer state of one fragment to take, or None to keep ours.

    Args:
      found: what members said.
      counts: whether our own state is one to keep; a newcomer's is not.
    """
    line = mine.lines[0]
    same = [peer for peer, standing in found.items() if standing.lines[0] == line]
    ahead = {p: s for p, s in found.items() if line in s.lines[1:]}
    others = {p: s for p, s in found.items() if s.lines[0] != line and p not in ahead}
    votes = len(same) + int(counts)
    if ahead and len(ahead) >= votes:
        return _most_common(ahead)
    if not others:
        return None
    verdict = _most_common(others)
    if verdict.line in mine.lines:  # they are behind us, on our own line
        return verdict if len(verdict.donors) > votes else None
    if len(verdict.donors) != votes:
        return verdict if len(verdict.donors) > votes else None
    return verdict if min(verdict.donors) < min([*same, own]) else None


def _most_common(found: Mapping[PeerID, FragmentStanding]) -> Verdict:
    """Return the state that most have; of several the newest."""
    count = Counter(standing.lines[0] for standing in found.values())
    version = {standing.lines[0]: standing.version for standing in found.values()}
    line = max(count, key=lambda line: (count[line], version[line], line))
    donors = sorted(peer for peer, standing in found.items() if standing.lines[0] == line)
    return Verdict(line, tuple(donors))


def step_of(standings: Mapping[PeerID, Standing]) -> int:
    """Return where the run is: the lower median of what members say, so that one liar cannot end it for us."""
    steps = [standing.step for standing in standings.values() if standing.fragments]
    return statistics.median_low(steps) if steps else 0
