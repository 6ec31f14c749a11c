"""The life of a node: the table, the facts that outlive states, and isolation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from protocols.life import (
    TABLE,
    Drain,
    DrainAsked,
    Drained,
    Effect,
    Entered,
    Event,
    FellBehind,
    Joined,
    Leave,
    LeaveAsked,
    Life,
    LifeState,
    Paused,
    PeersCounted,
    Redial,
    Resumed,
    Started,
    Synced,
)

ISOLATED_AFTER_S = 30.0
PATHS: dict[LifeState, list[Event]] = {
    LifeState.STARTING: [],
    LifeState.JOINING: [Started(1)],
    LifeState.SYNCING: [Started(1), Joined(2, "a peer answered")],
    LifeState.SERVING: [Started(1), Joined(2, "a peer answered"), Synced(3, "step 7")],
    LifeState.ISOLATED: [Started(1), PeersCounted(40, 0)],
    LifeState.PAUSED: [Started(1), Paused(2, "asked")],
    LifeState.DRAINING: [Started(1), DrainAsked(2, "SIGTERM", 20)],
    LifeState.LEFT: [LeaveAsked(1, "SIGTERM again")],
}
"""How to get a fresh node into each state."""
EVENTS: list[Event] = [
    Started(50),
    Joined(50, "joined"),
    Synced(50, "synced"),
    FellBehind(50, "behind"),
    Paused(50, "paused"),
    Resumed(50, "resumed"),
    DrainAsked(50, "drain", 20),
    Drained(50),
    LeaveAsked(50, "leave"),
]


def life_in(state: LifeState, *, first: bool = False) -> Life:
    life = Life(0, isolated_after_s=ISOLATED_AFTER_S, first=first)
    for event in PATHS[state]:
        life.handle(event)
    assert life.snapshot.state is state
    return life


def states_of(effects: list[Effect]) -> list[LifeState]:
    return [effect.state for effect in effects if isinstance(effect, Entered)]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(LifeState, EVENTS)))
def test_a_state_changes_only_as_the_table_says(state: LifeState, event: Event) -> None:
    life = life_in(state)
    before = life.snapshot
    effects = life.handle(event)
    if type(event) in TABLE[state]:
        assert life.snapshot.state is TABLE[state][type(event)]
        assert states_of(effects) == [life.snapshot.state]
        assert life.snapshot.since_s == event.now_s
    else:
        assert effects == []
        assert life.snapshot == before


def test_every_state_but_left_can_drain_or_leave_at_once() -> None:
    for state in set(LifeState) - {LifeState.LEFT, LifeState.DRAINING}:
        assert TABLE[state][DrainAsked] is LifeState.DRAINING
        assert TABLE[state][LeaveAsked] is LifeState.LEFT


def test_draining_hands_out_its_deadline_and_ends_in_left() -> None:
    life = life_in(LifeState.SERVING)
    assert life.handle(DrainAsked(10, "SIGTERM", 20)) == [
        Entered(LifeState.DRAINING, "SIGTERM"),
        Drain(20),
    ]
    effects = life.handle(Drained(12))
    assert states_of(effects) == [LifeState.LEFT]
    assert effects[-1] == Leave()


def test_a_node_without_peers_is_isolated_after_the_time_it_was_given() -> None:
    life = life_in(LifeState.SERVING)
    life.handle(PeersCounted(100, 3))
    assert life.handle(PeersCounted(110, 0)) == []  # the wait begins when the last peer goes
    assert life.handle(PeersCounted(110 + ISOLATED_AFTER_S - 1, 0)) == []
    effects = life.handle(PeersCounted(110 + ISOLATED_AFTER_S, 0))
    assert states_of(effects) == [LifeState.ISOLATED]
    assert Redial() in effects
    assert life.handle(PeersCounted(200, 0)) == []  # said once


def test_an_isolated_node_that_was_in_step_serves_as_soon_as_it_has_joined_again() -> None:
    life = life_in(LifeState.SERVING)
    life.handle(PeersCounted(10, 1))
    life.handle(PeersCounted(11, 0))
    life.handle(PeersCounted(11 + ISOLATED_AFTER_S, 0))
    effects = life.handle(Joined(60, "a peer answered"))
    assert states_of(effects) == [LifeState.SYNCING, LifeState.SERVING]


def test_a_node_that_fell_behind_while_isolated_syncs_before_it_serves() -> None:
    life = life_in(LifeState.SERVING)
    life.handle(PeersCounted(10, 1))
    life.handle(PeersCounted(11, 0))
    life.handle(PeersCounted(11 + ISOLATED_AFTER_S, 0))
    life.handle(FellBehind(55, "stage 1: steps missed"))
    assert states_of(life.handle(Joined(60, "a peer answered"))) == [LifeState.SYNCING]
    assert states_of(life.handle(Synced(61, "step 9"))) == [LifeState.SERVING]


def test_state_held_before_joining_counts_after_it() -> None:
    life = life_in(LifeState.JOINING)
    assert life.handle(Synced(5, "from disk")) == []
    assert states_of(life.handle(Joined(6, "a peer answered")))[-1] is LifeState.SERVING


def test_the_first_node_of_a_swarm_waits_for_peers_without_calling_it_isolation() -> None:
    life = Life(0, isolated_after_s=ISOLATED_AFTER_S, first=True)
    life.handle(Started(1))
    life.handle(Joined(1, "first node of a new swarm"))
    assert life.handle(PeersCounted(1e6, 0)) == []
    life.handle(PeersCounted(1e6 + 1, 1))
    life.handle(PeersCounted(1e6 + 2, 0))
    effects = life.handle(PeersCounted(1e6 + 2 + ISOLATED_AFTER_S, 0))
    assert states_of(effects) == [LifeState.ISOLATED]


def test_a_draining_node_is_never_isolated() -> None:
    life = life_in(LifeState.DRAINING)
    assert life.handle(PeersCounted(1000, 0)) == []


def test_time_that_runs_backwards_is_our_own_bug() -> None:
    life = life_in(LifeState.SERVING)
    with pytest.raises(LocalProtocolError):
        life.handle(Synced(2, "earlier than the state's own beginning"))


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 9)), max_size=60))
def test_whatever_happens_a_node_that_has_left_stays_left(steps: list[tuple[float, int]]) -> None:
    """Any order of events: nothing raises, and LEFT is final and announced once."""
    life = Life(0, isolated_after_s=ISOLATED_AFTER_S)
    now_s, left = 0.0, 0
    for pause_s, choice in steps:
        now_s += pause_s
        event: Event
        if choice < 2:
            event = PeersCounted(now_s, choice)
        else:
            kind = type(EVENTS[choice % len(EVENTS)])
            event = _event(kind, now_s)
        left += states_of(life.handle(event)).count(LifeState.LEFT)
    assert left == (life.snapshot.state is LifeState.LEFT)


def _event(kind: type[Event], now_s: float) -> Event:
    if kind is DrainAsked:
        return DrainAsked(now_s, "drain", 20)
    if kind in (Started, Drained):
        return kind(now_s)
    return kind(now_s, "because")  # type: ignore[call-arg, arg-type]


def test_a_node_that_joined_while_it_was_paused_goes_on_to_sync_when_it_resumes() -> None:
    life = life_in(LifeState.PAUSED)
    assert life.handle(Joined(3, "a peer answered")) == []
    assert states_of(life.handle(Resumed(9, "the owner"))) == [LifeState.JOINING, LifeState.SYNCING]


def test_a_paused_node_is_never_isolated() -> None:
    life = life_in(LifeState.PAUSED)
    assert life.handle(PeersCounted(500, 0)) == []
    life.handle(Resumed(1000, "the owner"))
    assert life.handle(PeersCounted(1001, 0)) == []
