"""Which of two nodes with one identity goes."""

from __future__ import annotations

from protocols.twin import Start, Twin, judge

OURS = Start(1000.0, 7)


def test_of_two_lives_the_one_that_started_later_goes() -> None:
    assert judge(OURS, Start(900.0, 9), issued_s=1100.0) is Twin.STAYS
    assert judge(OURS, Start(1050.0, 3), issued_s=1100.0) is Twin.GOES


def test_of_two_that_started_at_once_the_higher_incarnation_goes() -> None:
    other = Start(1000.0, 9)
    assert judge(OURS, other, issued_s=1100.0) is Twin.GOES
    assert judge(other, OURS, issued_s=1100.0) is Twin.STAYS


def test_our_own_record_and_what_a_former_life_has_signed_say_nothing() -> None:
    assert judge(OURS, OURS, issued_s=1100.0) is Twin.NONE
    assert judge(OURS, Start(900.0, 9), issued_s=999.0) is Twin.NONE
