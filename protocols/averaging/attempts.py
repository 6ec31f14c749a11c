"""What the owner of a new attempt decides from the promises of more than half of the members; the rule is in `round`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from protocols.averaging.messages import Begin, Promise, Result


def what_to_begin(
    round_id: bytes,
    attempt: int,
    promises: Mapping[int, Promise],
    *,
    members: int,
    quorum: int,
    troubles: Iterable[tuple[int, int]],
) -> Begin | str:
    """Return the Begin of an attempt, or why the round is given up.

    Args:
      promises: by member; a quorum of them at least.
      troubles: (who misses something, from whom).
    """
    result = _to_take_over(promises, unheard=members - len(promises), quorum=quorum)
    if isinstance(result, str):
        return result
    group = fit(promises, troubles)
    if result is not None:
        holders = tuple(sorted(i for i, promise in promises.items() if promise.result == result))
        return Begin(round_id, attempt, group, result, holders)
    if len(group) < quorum:
        return "too few members are left"
    return Begin(round_id, attempt, group)


def _to_take_over(
    promises: Mapping[int, Promise], *, unheard: int, quorum: int
) -> Result | str | None:
    """Return the result that may count already, or else one that is held; None when all is to be exchanged anew."""
    top = max(promise.accepted for promise in promises.values())
    if top:
        said = Counter(p.result for p in promises.values() if p.accepted == top and p.result)
        if len(said) > 1:
            # One attempt, two results: an owner gave different sums. Which of them may count still?
            said = Counter({r: n for r, n in said.items() if n + unheard >= quorum})
        if len(said) > 1:
            return "members hold different means"
        return next(iter(said), None)
    held = {promise.result for promise in promises.values() if promise.result is not None}
    if len({result.exchange for result in held}) < len(held):
        return None  # two means of one exchange: neither is good
    return max(held, key=lambda result: result.exchange, default=None)


def fit(promised: Iterable[int], troubles: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return whom to exchange with: of two in trouble with each other one goes, the one that has more of it."""
    left, troubles = set(promised), sorted(troubles)
    while pairs := [(a, b) for a, b in troubles if a in left and b in left]:
        times = Counter(index for pair in pairs for index in pair)
        accused = {b for _, b in pairs}
        left.discard(max(sorted(times), key=lambda index: (times[index], index in accused)))
    return tuple(sorted(left))


def well_formed(begin: Begin, members: int, quorum: int) -> bool:
    """Tell whether a Begin makes sense in a round of so many members."""
    result = begin.result
    if result is None:
        needed = members if begin.attempt == 1 else quorum
        return len(begin.group) >= needed and _are_some_of(begin.group, members)
    held = begin.holders and _are_some_of(begin.holders, members)
    return bool(held) and can_be(result, begin.attempt - 1, members, quorum)


def is_sound(promise: Promise, members: int, quorum: int) -> bool:
    """Tell whether a promise makes sense in a round of so many members."""
    result = promise.result
    if result is None:
        return promise.accepted == 0
    last = promise.attempt - 1
    return promise.accepted <= last and can_be(result, last, members, quorum)


def can_be(result: Result, last: int, members: int, quorum: int) -> bool:
    """Tell whether an exchange among so many members, in attempt `last` or before, can have had this result."""
    enough = len(result.digests) == len(result.group) >= quorum
    return enough and result.exchange <= last and _are_some_of(result.group, members)


def _are_some_of(group: tuple[int, ...], members: int) -> bool:
    """Tell whether these are places of members, rising."""
    return list(group) == sorted({*group}) and group[-1] < members
