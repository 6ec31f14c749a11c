"""One peer among others: what strangers cannot do to it, and what happens when things happen at the same time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.core import PeerDown
from protocols.ids import PeerID
from protocols.ledger.calls import PartCall
from protocols.ledger.events import Admitted, DiscardGradient, StateLoaded
from protocols.ledger.messages import (
    Accept,
    Heartbeat,
    Lease,
    Message,
    Prepare,
    Records,
    Reduce,
    Reduced,
    TallyReport,
)
from protocols.ledger.view import Ballot, Member, MemberTally, Record, pack_ids
from protocols.schema import encode
from protocols.state_calls import StateCall
from swarm.calls import CallError
from swarm.pipeline.stage_state import StageState
from tests.swarm.pipeline.small_swarm import open_swarm, small_run
from tests.swarm.pipeline.strangers import STRANGER_ID, Stranger, stranger_at

pytestmark = pytest.mark.trio

Scenario = Callable[[Stranger], Coroutine[Any, Any, None]]
ABSURD = Ballot(2**62, STRANGER_ID)


def with_stranger(scenario: Scenario, stage: int = 0) -> None:
    async def main() -> None:
        async with stranger_at(stage) as stranger:
            await scenario(stranger)

    trio.run(main)


def forged(record: Record) -> list[Message]:
    """What a stranger may say about the record after `record`, and about itself."""
    index, step = record.index + 1, record.step + 1
    mine = Member(STRANGER_ID, 1, 0, index)
    fake = Record(
        index=index, step=record.step, lead=STRANGER_ID, members=(mine,), previous=record.digest()
    )
    far = Record(index=2**30, step=2**30, lead=STRANGER_ID, members=(mine,))
    report = TallyReport(record.index, step, pack_ids(2**6 - 1), leaving=True, broken=True)
    return [
        Records((fake,), index),
        Records((far,), 2**30),
        Records((), 2**62, cut=True),
        Heartbeat(2**62, bytes(32), ABSURD),
        Heartbeat(record.index, record.digest(), ABSURD),
        Heartbeat(record.index, bytes(32), ABSURD),
        Prepare(index, ABSURD),
        Prepare(2**62, ABSURD),
        Reduce(index, ABSURD, step, (MemberTally(STRANGER_ID, b"\x3f"),)),
        Accept(index, ABSURD, fake),
        Reduced(index, Ballot(0, record.lead), bytes(32), 1e300, 1.0),
        report,
        Lease(record.index, step, 2**62, pack_ids(2**6 - 1), fresh=True),
    ]


def test_nothing_that_a_stranger_says_disturbs_a_member() -> None:
    async def scenario(stranger: Stranger) -> None:
        peer = stranger.target.peer
        record = peer.ledger.record
        assert record is not None
        lead, tally = peer.ledger.lead_peer, peer.ledger.tally
        for message in forged(record):
            await stranger.cast(message)
            assert peer.ledger.record == record
            assert peer.ledger.lead_peer == lead
            assert peer.ledger.tally is tally
            assert (tally.counted, tally.frozen) == (0, False)
            assert not peer.trainer.journeys
            assert not peer.ledger.broken
        await stranger.check_serves()
        assert peer.ledger.member is not None

    for stage in (0, 1):  # the lead, and one that is not
        with_stranger(scenario, stage)


def test_questions_about_parts_cost_a_stranger_its_time_and_not_ours() -> None:
    async def scenario(stranger: Stranger) -> None:
        record = stranger.target.peer.ledger.record
        assert record is not None
        for index in (0, record.index + 1, 2**62):
            for part in (0, 2**62):
                call = PartCall(index=index, ballot=ABSURD, part=part, summed=False)
                with trio.fail_after(1.0):
                    code, _ = await stranger.refused("reduce", encode(call))
                assert code == "busy"
        await stranger.check_serves()

    with_stranger(scenario)


def test_state_that_is_not_here_is_refused() -> None:
    async def scenario(stranger: Stranger) -> None:
        for call, expected in [
            (StateCall(part="stage/1", version=0), "not-here"),
            (StateCall(part="stage/1000", version=None), "not-here"),
            (StateCall(part="stage/0", version=5), "step-passed"),
            (StateCall(part="stage/0", version=2**62), "step-passed"),
            (StateCall(part="stage/0", version=0, chunk=2**62), "bad-request"),
        ]:
            code, _ = await stranger.refused("state", encode(call))
            assert code == expected
        answer = await stranger.call("state", encode(StateCall(part="stage/0", version=None)))
        assert answer.message["version"] == 0
        await stranger.check_serves()

    with_stranger(scenario)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["op", "tag", "body", "step", "stage", "index", "ballot", "part", "summed", "chunk", "kind",
     "microbatch", "count", "generation", "attempt", "ids"]
)  # fmt: skip
WORDS = st.sampled_from(["work", "settle", "claim", "forward", "loss", "join", "records", "lease"])
NEARLY = st.dictionaries(FIELDS, PLAIN | WORDS, max_size=9)


@given(st.lists(st.tuples(st.sampled_from(["ledger", "stage", "reduce", "state"]), PLAIN | NEARLY),
                min_size=20, max_size=40))  # fmt: skip
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_message_is_refused_or_answered_and_the_node_goes_on(
    messages: list[tuple[str, Any]],
) -> None:
    async def scenario(stranger: Stranger) -> None:
        peer = stranger.target.peer
        record = peer.ledger.record
        for service, message in messages:
            if service == "ledger" and message is None:
                continue  # a probe
            code, _ = await stranger.refused(service, message)
            assert code in ("bad-request", "busy", "not-here", "step-passed", "step-ahead")
        assert peer.ledger.record == record
        await stranger.check_serves()

    with_stranger(scenario)


# --- at the same time ---


def test_two_admissions_in_a_row_end_in_the_second() -> None:
    async def scenario(stranger: Stranger) -> None:
        peer = stranger.target.peer
        record = peer.ledger.record
        assert record is not None
        loaded: list[int] = []
        object.__setattr__(
            peer.state._owner, "loaded", lambda: loaded.append(peer.state.stage or 0)
        )
        for stage in (1, 0, 1, 0, 1):
            peer.state.admitted(Admitted(record, stage, (), synced=True))
        await stranger.swarm.until(lambda: peer.state.complete is not None)
        assert loaded == [1]
        assert peer.host is not None
        assert peer.host.stage.stage == 1

    with_stranger(scenario)


def test_an_expulsion_while_loading_leaves_a_node_that_can_join_again() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=20)) as swarm:
            for _ in range(4):
                await swarm.node()
            await swarm.until_step(2)
            late = await swarm.node(stage=1)
            await swarm.until(lambda: late.peer.state._loading is not None)
            first_ledger = late.peer.ledger
            await swarm.until(lambda: _vanish(late.peer_id, swarm.nodes[0].peer))
            await swarm.until(lambda: late.peer.ledger is not first_ledger)
            await swarm.until(late.serving.is_set)
            await swarm.until(lambda: late.peer.ledger.synced)
            await swarm.finished()
            swarm.check_equals_reference()

    trio.run(main)


def _vanish(peer: PeerID, lead: Any) -> bool:
    """Have the lead remove a member, as if its network had failed."""
    lead.feed(PeerDown(trio.current_time(), peer))
    return peer not in lead.ledger.view


def test_a_load_that_ends_after_an_expulsion_tells_the_new_ledger_nothing() -> None:
    async def scenario(stranger: Stranger) -> None:
        peer = stranger.target.peer
        record = peer.ledger.record
        assert record is not None
        peer.state.admitted(Admitted(record, 1, (), synced=True))
        await trio.testing.wait_all_tasks_blocked()
        peer.state.expelled()
        heard: list[Any] = []
        peer.feed = heard.append  # type: ignore[method-assign,assignment]
        await stranger.swarm.until(lambda: not peer._compute.waiting)
        await trio.testing.wait_all_tasks_blocked()
        assert not any(isinstance(event, StateLoaded) for event in heard)

    with_stranger(scenario)


def test_a_fence_while_work_is_queued_discards_that_work_too() -> None:
    async def scenario(stranger: Stranger) -> None:
        peer = stranger.target.peer
        host = peer.host
        assert host is not None

        async def count(microbatch: int) -> None:
            """What arrives while the gradient is being reset is refused, and so not counted: both are in order."""
            try:
                await stranger.call(
                    "stage", stranger.work(microbatch=microbatch), *stranger.inputs()
                )
            except CallError as error:
                if error.code != "busy":
                    raise

        async with trio.open_nursery() as nursery:
            for microbatch in range(4):
                nursery.start_soon(count, microbatch)
            while not peer.ledger.tally.busy:
                await trio.lowlevel.checkpoint()
            peer.ledger.tally.fence()
            peer._do(DiscardGradient())
        await stranger.swarm.until(lambda: not host._discarding)
        assert host.stage.counted == peer.ledger.tally.counted.bit_count()
        peer.ledger.tally.fence()
        peer._do(DiscardGradient())
        await stranger.swarm.until(lambda: not host._discarding)
        assert not host.stage.gradient().any()
        await stranger.check_serves()

    with_stranger(scenario)


def test_a_peer_that_failed_and_is_made_anew_is_reached_over_the_same_streams() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=10)) as swarm:
            first, *_ = [await swarm.node() for _ in range(4)]
            await swarm.until_step(2)
            victim = swarm.member_of(1, but=first)
            await victim.fail()
            await swarm.until(lambda: victim.peer.ledger.synced)
            counted = victim.peer.counters.counted
            await swarm.until(lambda: victim.peer.counters.counted > counted)
            await swarm.finished()
            swarm.check_equals_reference()

    trio.run(main)


def test_replicas_that_step_together_hold_the_same_bits() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=3)) as swarm:
            nodes = [await swarm.node() for _ in range(4)]
            await swarm.finished()
            by_stage: dict[int, list[torch.Tensor]] = {}
            for node in nodes:
                hosted = node.peer.state.complete
                assert hosted is not None
                by_stage.setdefault(hosted.stage, []).append(hosted.flat)
            assert all(torch.equal(*pair) for pair in by_stage.values())

    trio.run(main)


def test_a_founder_that_is_asked_before_its_stage_is_built_tells_its_records_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes that are started at once knock while the founder still builds; the last record it tells must be the newest."""
    found = StageState.found

    async def slowly(self: StageState, stage: int) -> None:
        await trio.sleep(1.0)
        await found(self, stage)

    monkeypatch.setattr(StageState, "found", slowly)

    async def main() -> None:
        async with open_swarm(small_run(replicas=1)) as swarm:
            swarm.nursery.start_soon(swarm.node)
            await trio.sleep(0.1)
            await swarm.node()
            await swarm.until(lambda: swarm.records and swarm.step >= 1)
            for node in swarm.nodes:
                told = [record.index for record in node.journal]
                assert told == sorted(told)
            swarm.nursery.cancel_scope.cancel()

    trio.run(main)
