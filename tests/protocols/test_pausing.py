"""When a node rests: its owner's word, hours, and how busy the machine is."""

from __future__ import annotations

import pytest

from protocols.pausing import BUSY_S, FREE_S, Facts, Hours, Kept, Pausing, hours_from_text


def facts(now_s: float, *, minute: int = 0, others: float | None = None) -> Facts:
    return Facts(now_s=now_s, now_unix_s=1e9 + now_s, minute=minute, others_cores=others)


def test_a_pause_lasts_until_it_is_taken_back() -> None:
    pausing = Pausing()
    assert pausing.observe(facts(0)) is None
    pausing.ask(None)
    assert pausing.observe(facts(1)) == "asked by `murmura pause`"
    pausing.take_back()
    assert pausing.observe(facts(2)) is None


def test_a_pause_for_a_time_ends_by_itself_also_over_a_restart() -> None:
    pausing = Pausing()
    pausing.ask(1e9 + 100)
    again = Pausing(kept=pausing.kept)
    assert again.observe(facts(99)) is not None
    assert again.observe(facts(100)) is None
    assert again.kept == Kept()


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("9-17", 9 * 60, 17 * 60), ("22:30-7:15", 7 * 60 + 14, 7 * 60 + 15), ("18-24", 1439, 0)],
)
def test_outside_of_its_hours_a_node_rests(text: str, inside: int, outside: int) -> None:
    pausing = Pausing([hours_from_text(text)])
    assert pausing.observe(facts(0, minute=inside)) is None
    assert pausing.observe(facts(1, minute=outside)) == "outside of schedule_hours"


def test_hours_may_span_midnight() -> None:
    assert hours_from_text("22:00-07:00") == Hours(1320, 420)


@pytest.mark.parametrize("text", ["", "9", "9-9", "0-24", "25-3", "9:60-10", "24:30-3", "nine-ten"])
def test_other_hours_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        hours_from_text(text)


def test_a_burst_of_work_neither_pauses_nor_resumes() -> None:
    pausing = Pausing(idle_load=0.5)
    assert pausing.observe(facts(0, others=2.0)) is None
    assert pausing.observe(facts(BUSY_S - 1, others=0.1)) is None
    assert pausing.observe(facts(BUSY_S, others=2.0)) is None
    assert pausing.observe(facts(2 * BUSY_S, others=2.0)) is not None
    again = Pausing(idle_load=0.5, kept=pausing.kept)
    assert again.observe(facts(0, others=0.1)) is not None
    assert again.observe(facts(FREE_S - 1, others=0.9)) is not None
    assert again.observe(facts(FREE_S, others=0.1)) is not None
    assert again.observe(facts(2 * FREE_S, others=0.1)) is None


def test_who_has_no_bound_on_load_any_more_is_not_paused_by_the_one_it_had() -> None:
    assert Pausing(kept=Kept(busy=True)).observe(facts(0)) is None
