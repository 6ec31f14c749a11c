"""Whose outer state is taken."""

from __future__ import annotations

from protocols.collective.messages import FragmentStanding, Standing
from protocols.collective.standings import judge, step_of
from tests.protocols.collective.world import peer


def at(*history: str, version: int = 0) -> FragmentStanding:
    """Return a standing whose lines are named by letters, the newest first."""
    lines = tuple(name.encode() * 16 for name in history)
    return FragmentStanding(version or len(history), lines, round=0)


OWN = peer(5)
MINE = at("b", "a")
AHEAD = at("c", "b", "a")
FORK = at("x", "a")


def verdict(mine: FragmentStanding, *found: FragmentStanding, counts: bool = True) -> str | None:
    said = {peer(number): standing for number, standing in enumerate(found)}
    result = judge(OWN, mine, said, counts=counts)
    return result.line.decode()[0] if result is not None else None


def test_who_is_behind_follows() -> None:
    assert verdict(MINE, AHEAD) == "c"
    assert verdict(MINE, AHEAD, AHEAD, MINE) == "c"
    assert verdict(MINE, AHEAD, at("d", "c", "b"), at("d", "c", "b")) == "d"


def test_who_is_where_the_others_are_stays() -> None:
    assert verdict(MINE) is None
    assert verdict(MINE, MINE, MINE) is None
    assert verdict(AHEAD, MINE) is None, "the other one is behind"


def test_one_against_several_moves_nobody() -> None:
    assert verdict(MINE, AHEAD, MINE, MINE) is None
    assert verdict(MINE, FORK, MINE) is None


def test_of_two_sides_the_smaller_gives_way() -> None:
    assert verdict(MINE, FORK, FORK) == "x"
    assert verdict(MINE, FORK, FORK, MINE, MINE) is None
    assert verdict(MINE, FORK, FORK, MINE) == "x", (
        "as many: the side with the smallest PeerID stays"
    )
    assert verdict(MINE, MINE, FORK, FORK) is None


def test_who_alone_went_on_comes_back_to_several() -> None:
    assert verdict(AHEAD, MINE, MINE) == "b"


def test_a_newcomer_takes_what_most_have() -> None:
    assert verdict(at("0"), MINE, counts=False) == "b"
    assert verdict(at("0"), MINE, FORK, FORK, counts=False) == "x"
    assert verdict(MINE, MINE, counts=False) is None


def test_one_liar_does_not_say_where_the_run_is() -> None:
    def standing(step: int) -> Standing:
        return Standing(step, (MINE,))

    assert step_of({peer(1): standing(10), peer(2): standing(12), peer(3): standing(10**9)}) == 12
    assert step_of({peer(1): standing(10), peer(2): standing(10**9)}) == 10
    assert step_of({peer(1): Standing(0, ())}) == 0
