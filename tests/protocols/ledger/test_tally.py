"""Counting: each microbatch at most once, whatever is asked twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols.ledger.tally import Attempt, Refusal, Settled, Tally, Work

FIRST, SECOND = Attempt(10, 1), Attempt(10, 2)
NEWER_LEASE = Attempt(11, 1)


def tally() -> Tally:
    return Tally(step=5, microbatches=8)


def refused(work: Work | Refusal) -> str:
    assert isinstance(work, Refusal)
    return work.code


def count(book: Tally, microbatch: int, attempt: Attempt = FIRST) -> None:
    assert book.begin(5, microbatch, attempt, count=True) is Work.COUNT
    assert book.finish(microbatch, added=True)


def test_a_microbatch_is_counted_when_its_gradient_was_added() -> None:
    book = tally()
    count(book, 3)
    assert book.counted == 0b1000
    assert not book.busy


def test_a_microbatch_whose_gradient_was_not_added_is_not_counted() -> None:
    book = tally()
    assert book.begin(5, 3, FIRST, count=True) is Work.COUNT
    assert not book.finish(3, added=False)
    assert book.counted == 0


def test_a_repeated_request_does_not_count_again() -> None:
    book = tally()
    count(book, 3)
    assert refused(book.begin(5, 3, FIRST, count=True)) == "overtaken"


def test_a_later_attempt_at_what_is_counted_only_computes() -> None:
    book = tally()
    count(book, 3)
    assert book.begin(5, 3, SECOND, count=True) is Work.RECOMPUTE


def test_an_attempt_below_the_highest_seen_is_refused() -> None:
    book = tally()
    count(book, 3, NEWER_LEASE)
    assert refused(book.begin(5, 3, SECOND, count=True)) == "overtaken"


def test_what_is_being_counted_is_not_begun_twice() -> None:
    book = tally()
    assert book.begin(5, 3, FIRST, count=True) is Work.COUNT
    assert refused(book.begin(5, 3, SECOND, count=True)) == "busy"


def test_computing_for_the_neighbours_is_always_allowed_and_never_counts() -> None:
    book = tally()
    book.frozen = True
    assert book.begin(5, 3, FIRST, count=False) is Work.RECOMPUTE
    assert book.counted == 0
    assert not book.busy


def test_work_for_another_step_is_refused() -> None:
    book = tally()
    assert refused(book.begin(4, 3, FIRST, count=True)) == "step-passed"
    assert refused(book.begin(6, 3, FIRST, count=True)) == "step-ahead"


def test_a_microbatch_that_the_step_does_not_have_is_a_bad_request() -> None:
    assert refused(tally().begin(5, 8, FIRST, count=True)) == "bad-request"
    assert refused(tally().begin(5, -1, FIRST, count=False)) == "bad-request"


def test_nothing_is_counted_while_the_step_is_committed() -> None:
    book = tally()
    book.frozen = True
    assert refused(book.begin(5, 3, FIRST, count=True)) == "busy"


def test_what_was_refused_during_the_commit_cannot_count_later() -> None:
    """A copy of the request may still be on its way when the commit is given up."""
    book = tally()
    book.frozen = True
    book.begin(5, 3, FIRST, count=True)
    book.frozen = False
    assert refused(book.begin(5, 3, FIRST, count=True)) == "overtaken"


def test_void_is_a_promise() -> None:
    book = tally()
    assert book.settle(3, FIRST) is Settled.VOID
    assert refused(book.begin(5, 3, FIRST, count=True)) == "overtaken"
    assert book.begin(5, 3, SECOND, count=True) is Work.COUNT


def test_settling_finds_what_is_counted_or_being_counted() -> None:
    book = tally()
    assert book.begin(5, 3, FIRST, count=True) is Work.COUNT
    assert book.settle(3, FIRST) is Settled.PENDING
    book.finish(3, added=True)
    assert book.settle(3, SECOND) is Settled.COUNTED


def test_a_claim_closes_all_older_leases_and_says_what_they_counted() -> None:
    book = tally()
    count(book, 0)
    assert book.begin(5, 1, FIRST, count=True) is Work.COUNT
    assert book.claim(0b111, generation=11) == (0b001, 0b010)
    assert refused(book.begin(5, 2, SECOND, count=True)) == "overtaken"
    assert book.begin(5, 2, NEWER_LEASE, count=True) is Work.COUNT


def test_asking_about_microbatches_that_do_not_exist_leaves_no_trace() -> None:
    book = tally()
    assert book.settle(10**6, FIRST) is Settled.VOID
    assert book.claim(1 << 1000, generation=11) == (0, 0)
    assert len(book._floors) == 0


def test_a_fence_discards_everything_counted() -> None:
    book = tally()
    count(book, 0)
    book.frozen = True
    book.fence()
    assert book.counted == 0
    assert not book.frozen


def test_work_begun_before_a_fence_does_not_count_after_it() -> None:
    book = tally()
    assert book.begin(5, 3, FIRST, count=True) is Work.COUNT
    book.fence()
    assert not book.finish(3, added=True)
    assert book.counted == 0


def test_a_fence_keeps_its_promises() -> None:
    """An attempt closed before the fence stays closed: its trainer has gone elsewhere."""
    book = tally()
    book.settle(3, SECOND)
    book.fence()
    assert refused(book.begin(5, 3, FIRST, count=True)) == "overtaken"


requests = st.lists(
    st.tuples(
        st.sampled_from(["begin", "finish", "settle", "claim", "fence", "freeze", "thaw"]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(requests)
def test_whatever_is_asked_a_gradient_holds_each_microbatch_once(
    asked: list[tuple[str, int, int, int]],
) -> None:
    """A model beside the tally: the gradient as a list, and every void that was promised."""
    book, gradient = tally(), list[int]()
    running: dict[int, tuple[Attempt, int]] = {}
    voids: dict[int, Attempt] = {}
    fences = 0
    for what, microbatch, generation, number in asked:
        attempt = Attempt(generation, number)
        if what == "begin" and book.begin(5, microbatch, attempt, count=True) is Work.COUNT:
            assert microbatch not in running
            assert microbatch not in voids or attempt > voids[microbatch]
            running[microbatch] = (attempt, fences)
        elif what == "finish" and microbatch in running:
            began_in = running.pop(microbatch)[1]
            if book.finish(microbatch, added=True):
                assert began_in == fences
                gradient.append(microbatch)
        elif what == "settle" and book.settle(microbatch, attempt) is Settled.VOID:
            voids[microbatch] = max(attempt, voids.get(microbatch, attempt))
        elif what == "claim":
            book.claim(1 << microbatch, generation)
        elif what == "fence":
            book.fence()
            gradient.clear()
            fences += 1
        elif what in ("freeze", "thaw"):
            book.frozen = what == "freeze"
        assert sorted(gradient) == [i for i in range(8) if book.counted >> i & 1]
