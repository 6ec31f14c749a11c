"""A newcomer's way to a complete state: what is loaded, what is refused, and when it starts over."""

from __future__ import annotations

import pytest

from protocols.core import Tick
from protocols.ids import PeerID
from protocols.state import (
    DonorsLeft,
    Effect,
    FetchBroken,
    Fetched,
    FetchFrom,
    GiveUp,
    LoadFetched,
    RootNamed,
    StateFetch,
    StepCommitted,
)

A, B = PeerID(b"pa"), PeerID(b"pb")
ROOT, OTHER = b"r" * 32, b"o" * 32


def fetching(*donors: PeerID, kept_bytes_max: int = 4) -> StateFetch[int]:
    core: StateFetch[int] = StateFetch(donors, kept_bytes_max=kept_bytes_max)
    assert core.start(0.0) == [FetchFrom(donors)]
    return core


def gave_up(effects: list[Effect]) -> bool:
    return [type(effect) for effect in effects] == [GiveUp]


def test_what_was_fetched_waits_for_the_record_that_names_its_root() -> None:
    core = fetching(A)
    assert core.handle(Fetched(1.0, A, ROOT)) == []
    assert core.handle(DonorsLeft(1.5, [A])) == []
    assert core.handle(RootNamed(2.0, ROOT)) == [LoadFetched()]


def test_a_root_that_is_known_already_is_compared_at_once() -> None:
    core = fetching(A)
    assert core.handle(RootNamed(0.5, ROOT)) == []
    assert core.handle(Fetched(1.0, A, ROOT)) == [LoadFetched()]


def test_without_a_donor_that_is_left_what_was_fetched_is_loaded() -> None:
    core = fetching(A)
    core.handle(Fetched(1.0, A, ROOT))
    assert core.handle(DonorsLeft(2.0, [])) == [LoadFetched()]


def test_after_the_last_step_of_a_run_nothing_is_waited_for() -> None:
    """No record follows that could name the root; who joins a run that is over can be asked for the model, too."""
    core: StateFetch[int] = StateFetch([A], last=True)
    core.start(0.0)
    assert core.handle(Fetched(1.0, A, ROOT)) == [LoadFetched()]


def test_without_a_donor_that_is_left_a_step_that_named_no_root_changes_nothing() -> None:
    """The last donor died while the step was reduced: the others have its gradient, and nobody its word."""
    core = fetching(A)
    core.handle(Fetched(1.0, A, ROOT))
    core.handle(StepCommitted(2.0, 7, 1))
    core.handle(DonorsLeft(2.0, []))
    core.handle(RootNamed(2.0, b""))
    assert list(core.kept) == [7]
    assert not core.given_up


def test_a_state_other_than_the_committed_one_is_never_loaded() -> None:
    core = fetching(A)
    core.handle(Fetched(1.0, A, OTHER))
    assert gave_up(core.handle(RootNamed(2.0, ROOT)))
    assert core.handle(DonorsLeft(3.0, [])) == []


def test_after_a_state_that_was_refused_another_donor_is_asked() -> None:
    core = fetching(A, B)
    core.handle(Fetched(1.0, A, OTHER))
    assert core.handle(RootNamed(2.0, ROOT)) == [FetchFrom((B,))]
    assert core.handle(Fetched(3.0, B, ROOT)) == [LoadFetched()]


def test_a_step_that_nobody_vouched_for_starts_over_while_a_donor_is_there() -> None:
    core = fetching(A)
    core.handle(Fetched(1.0, A, ROOT))
    assert gave_up(core.handle(RootNamed(2.0, b"")))


def test_a_fetch_that_fails_is_tried_again_after_a_pause_but_not_for_ever() -> None:
    core, now_s = fetching(A), 0.0
    for _ in range(4):
        assert core.handle(FetchBroken(now_s, "no answer")) == []
        assert core.handle(Tick(now_s)) == []
        now_s = core.wake_at_s
        assert core.handle(Tick(now_s)) == [FetchFrom((A,))]
    assert core.handle(FetchBroken(now_s, "no answer")) == [GiveUp("no answer")]


@pytest.mark.parametrize("steps", [4, 5])
def test_steps_are_kept_up_to_a_bound_and_all_of_them_or_none(steps: int) -> None:
    core = fetching(A, kept_bytes_max=4)
    effects = [core.handle(StepCommitted(1.0, step, 1)) for step in range(steps)]
    fits = steps <= 4
    assert core.given_up is not fits
    assert list(core.kept) == (list(range(steps)) if fits else [])
    assert gave_up(effects[-1]) is not fits
