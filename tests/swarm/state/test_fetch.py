"""The fetch plan against donors that lie, die or are busy."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from protocols.ids import PeerID
from swarm.state.fetch import Arrival, ChunkRequest, FetchPlan
from swarm.state.snapshot import Snapshot

A, B, C = (PeerID(bytes([0, 1, letter])) for letter in b"abc")
SNAPSHOT = Snapshot.of(
    {"x": torch.arange(80, dtype=torch.uint8)}, part="stage/0", version=0, chunk_bytes=10
)


def plan_of(*donors: PeerID) -> FetchPlan:
    return FetchPlan(SNAPSHOT.manifest, donors)


def answer(plan: FetchPlan, request: ChunkRequest) -> Arrival:
    return plan.on_chunk(request.donor, request.chunk, SNAPSHOT.chunk(request.chunk))


def test_donors_share_the_work_lowest_chunks_first() -> None:
    requests = plan_of(A, B).next_requests(0.0)
    assert requests == [
        ChunkRequest(A, 0),
        ChunkRequest(B, 1),
        ChunkRequest(A, 2),
        ChunkRequest(B, 3),
    ]


def test_a_chunk_in_flight_is_not_asked_for_again() -> None:
    plan = plan_of(A)
    assert plan.next_requests(0.0)
    assert plan.next_requests(0.0) == []


def test_an_honest_donor_is_enough() -> None:
    plan = plan_of(A)
    while requests := plan.next_requests(0.0):
        assert all(answer(plan, request) is Arrival.STORED for request in requests)
    assert plan.done
    assert plan.bytes_done == 80
    assert not plan.stuck


def test_the_donor_of_a_false_chunk_is_blamed_and_its_chunks_go_to_another() -> None:
    plan = plan_of(A, B)
    first = plan.next_requests(0.0)
    assert plan.on_chunk(A, 0, b"false bytes") is Arrival.FALSE
    assert plan.blamed == (A,)
    for request in first:
        if request.donor == B:
            answer(plan, request)
    assert plan.next_requests(0.0) == [ChunkRequest(B, 0), ChunkRequest(B, 2)]


def test_a_blamed_donor_stays_out_even_when_it_is_found_again() -> None:
    plan = plan_of(A)
    plan.next_requests(0.0)
    plan.on_chunk(A, 0, b"")
    plan.add_donor(A)
    assert plan.next_requests(0.0) == []
    assert plan.stuck


def test_a_transfer_resumes_at_a_new_donor_with_what_it_has() -> None:
    plan = plan_of(A)
    for request in plan.next_requests(0.0):
        answer(plan, request)
    for request in (*plan.next_requests(0.0), ChunkRequest(A, 2)):
        plan.on_failure(A, request.chunk)
    assert plan.stuck
    plan.add_donor(B)
    assert plan.next_requests(0.0) == [ChunkRequest(B, 2), ChunkRequest(B, 3)]


def test_a_dead_donor_is_not_asked_for_ever() -> None:
    plan = plan_of(A)
    asked = 0
    while requests := plan.next_requests(0.0):
        asked += len(requests)
        plan.on_failure(A, requests[0].chunk)
    assert plan.stuck
    assert asked <= 4


def test_one_answer_forgives_earlier_failures() -> None:
    plan = plan_of(A)
    in_flight = plan.next_requests(0.0)
    for _ in range(6):
        failed, answered = in_flight
        plan.on_failure(A, failed.chunk)
        answer(plan, answered)
        in_flight = plan.next_requests(0.0)
    assert not plan.stuck
    assert plan.bytes_done == 60


def test_a_busy_donor_is_asked_again_when_its_wait_is_over_and_others_meanwhile() -> None:
    plan = plan_of(A)
    for request in plan.next_requests(0.0):
        plan.on_busy(A, request.chunk, retry_at_s=5.0)
    assert plan.next_requests(4.9) == []
    assert not plan.stuck
    assert plan.wake_at_s() == 5.0
    plan.add_donor(B)
    assert plan.next_requests(4.9) == [ChunkRequest(B, 0), ChunkRequest(B, 1)]
    assert plan.next_requests(5.0) == [ChunkRequest(A, 2), ChunkRequest(A, 3)]


def test_a_chunk_that_comes_twice_is_late_not_an_error() -> None:
    plan = plan_of(A)
    [request, _] = plan.next_requests(0.0)
    assert answer(plan, request) is Arrival.STORED
    assert answer(plan, request) is Arrival.LATE


def test_a_donor_that_was_never_asked_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        plan_of(A).on_failure(B, 0)


@given(seed=st.integers(0, 2**32))
def test_with_one_honest_donor_left_the_transfer_ends_and_only_liars_are_blamed(seed: int) -> None:
    chance = random.Random(seed)
    plan = plan_of(A, B, C)
    now_s, in_flight = 0.0, []
    for _ in range(500):
        in_flight += plan.next_requests(now_s)
        if plan.done:
            break
        if not in_flight:
            now_s = max(now_s, plan.wake_at_s() or now_s)
            continue
        request = in_flight.pop(chance.randrange(len(in_flight)))
        fate = chance.choice(["answer", "lie", "fail", "busy"])
        if fate == "lie" and request.donor == A:
            plan.on_chunk(A, request.chunk, b"lie")
        elif fate == "fail" and request.donor == B:
            plan.on_failure(B, request.chunk)
        elif fate == "busy":
            plan.on_busy(request.donor, request.chunk, retry_at_s=now_s + 1.0)
        else:
            answer(plan, request)
    assert plan.done
    assert set(plan.blamed) <= {A}
