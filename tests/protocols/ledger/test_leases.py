"""Dealing work: a lease saves work, and dead or slow trainers lose theirs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerID
from protocols.ledger import leases as module
from protocols.ledger.leases import Leases, first_generation

ANNE, BERT, CARL = (PeerID(name) for name in (b"anne", b"bert", b"carl"))
ALL = 0b1111


def leases(*, known: bool = True) -> Leases:
    book = Leases(1, generation=100, known=known, all_ids=ALL, grace_s=1.0, lease_s=10.0)
    for trainer in (ANNE, BERT):
        book.renew(0.0, trainer, 0, 0)
    return book


def test_two_trainers_never_get_the_same_microbatch() -> None:
    book = leases()
    first, _, _ = book.deal(0.0, ANNE, 2, ALL)
    second, _, _ = book.deal(0.0, BERT, 4, ALL)
    assert first.bit_count() == 2
    assert first | second == ALL
    assert not first & second


def test_generations_grow_with_each_deal() -> None:
    book = leases()
    _, first, _ = book.deal(0.0, ANNE, 1, ALL)
    _, second, _ = book.deal(0.0, BERT, 1, ALL)
    assert 100 < first < second


@given(st.integers(0, 10**6), st.integers(0, 4094))
def test_generations_of_a_later_index_or_round_are_above(index: int, ballot_round: int) -> None:
    assert first_generation(index, ballot_round) < first_generation(index, ballot_round + 1)
    assert first_generation(index, ballot_round) < first_generation(index + 1, 0)


def test_only_what_nobody_has_touched_is_fresh() -> None:
    book = leases()
    _, _, fresh = book.deal(0.0, ANNE, 2, ALL)
    assert fresh
    book.expire(ANNE)
    ids, _, fresh = book.deal(0.0, BERT, 4, ALL)
    assert (ids, fresh) == (0b1100, True)  # fresh ones first, never mixed with others
    ids, _, fresh = book.deal(0.0, BERT, 4, ALL)
    assert (ids, fresh) == (0b0011, False)


def test_an_elected_lead_takes_nothing_for_fresh() -> None:
    _, _, fresh = leases(known=False).deal(0.0, ANNE, 2, ALL)
    assert not fresh


def test_a_dead_trainers_microbatches_are_dealt_again() -> None:
    book = leases()
    book.deal(0.0, ANNE, 4, ALL)
    assert book.deal(0.0, BERT, 4, ALL)[0] == 0
    book.expire(ANNE)
    assert book.deal(0.0, BERT, 4, ALL)[0] == ALL


def test_what_is_on_its_way_stays_reserved_until_it_must_have_arrived() -> None:
    book = leases()
    _, generation, _ = book.deal(0.0, ANNE, 4, ALL)
    book.renew(0.5, ANNE, holding=0, seen=generation - 1)  # sent before the lease arrived
    assert book.held_by(ANNE) == ALL
    book.renew(1.5, ANNE, holding=0, seen=generation - 1)  # it was lost
    assert book.held_by(ANNE) == 0


def test_what_a_trainer_has_seen_and_does_not_hold_is_free() -> None:
    book = leases()
    _, generation, _ = book.deal(0.0, ANNE, 4, ALL)
    book.renew(0.1, ANNE, holding=0b0001, seen=generation)
    assert book.held() == 0b0001


def test_a_new_lead_adopts_what_trainers_say_they_hold() -> None:
    book = leases(known=False)
    book.renew(0.0, ANNE, holding=0b0011, seen=0)
    assert book.deal(0.0, BERT, 4, ALL)[0] == 0b1100


def test_nobody_adopts_what_another_holds() -> None:
    book = leases()
    book.deal(0.0, ANNE, 4, ALL)
    assert book.renew(0.0, BERT, holding=ALL, seen=0) == ALL  # so Bert is told
    assert book.held_by(BERT) == 0


def test_an_idle_trainer_gets_what_another_has_held_for_too_long() -> None:
    book = leases()
    _, first, _ = book.deal(0.0, ANNE, 4, ALL)
    assert book.deal(9.0, BERT, 4, ALL)[0] == 0
    ids, second, fresh = book.deal(11.0, BERT, 4, ALL)
    assert (ids, fresh) == (ALL, False)
    assert second > first
    assert book.held_by(ANNE) == 0


def test_each_time_a_microbatch_is_taken_over_its_holder_gets_twice_as_long() -> None:
    book = leases()
    book.deal(0.0, ANNE, 4, ALL)
    book.deal(11.0, BERT, 4, ALL)
    assert book.deal(22.0, ANNE, 4, ALL)[0] == 0
    assert book.deal(32.0, ANNE, 4, ALL)[0] == ALL


def test_a_trainer_that_lost_sight_of_its_work_gets_it_again() -> None:
    book = leases()
    book.deal(0.0, ANNE, 4, ALL)
    assert book.deal(11.0, ANNE, 4, ALL)[0] == ALL


def test_the_number_of_trainers_is_bounded() -> None:
    book = leases()
    for number in range(module.TRAINERS_MAX + 10):
        book.renew(0.0, PeerID(b"sybil%d" % number), 0, 0)
    assert len(book.trainers()) == module.TRAINERS_MAX
    assert book.deal(0.0, CARL, 4, ALL)[0] == 0
