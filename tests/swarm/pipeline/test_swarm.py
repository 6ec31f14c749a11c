"""Whole swarms under faults: whatever happens, the parameters are those of one process on the same batches."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.ledger.messages import Accept, Accepted, Records, Reduce
from protocols.run import AdamWSpec, RunSpec
from protocols.state_calls import StateCall
from swarm.pipeline.export import export_run
from swarm.pipeline.reference import parameter_difference
from swarm.state.export import load_model
from swarm.state.snapshot import Snapshot
from tests.swarm.pipeline.small_swarm import (
    Point,
    SmallSwarm,
    SwarmNode,
    call_of,
    cast_of,
    open_swarm,
    small_run,
)

pytestmark = pytest.mark.trio

FAULT_STEP = 3
_WAITS_FOR_THE_HASH = "waiting for the members to commit to the state's hash"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


async def four_nodes(swarm: SmallSwarm) -> list[SwarmNode]:
    return [await swarm.node() for _ in range(4)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_four_peers_train_what_one_process_trains(dtype: str) -> None:
    async def main() -> None:
        async with open_swarm(small_run(dtype=dtype)) as swarm:
            await four_nodes(swarm)
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def test_three_stages_with_two_replicas_each() -> None:
    async def main() -> None:
        async with open_swarm(small_run(stages=3, steps=4)) as swarm:
            for _ in range(6):
                await swarm.node()
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def test_a_lone_node_trains_all_by_itself_and_leaves_at_once() -> None:
    async def main() -> None:
        async with open_swarm(small_run(stages=1, steps=3, replicas=1)) as swarm:
            node = await swarm.node()
            await swarm.finished()
            swarm.check_equals_reference()
            node.peer.drain()
            with trio.fail_after(0.5):
                await node.left.wait()

    run(main)


POINTS: dict[str, Point] = {
    "forward": call_of("stage", kind="forward", step_from=FAULT_STEP),
    "backward": call_of("stage", kind="backward", step_from=FAULT_STEP),
    "loss": call_of("stage", kind="loss", step_from=FAULT_STEP),
    "asked to reduce": cast_of(Reduce),
    "asked for a part": call_of("reduce", summed=False),
    "asked for a sum": call_of("reduce", summed=True),
    "asked to accept": cast_of(Accept),
    "told a record": cast_of(Records),
}
"""What a node is asked in the moment in which it dies or loses its network."""


@pytest.mark.parametrize(
    ("fault", "point", "stage"),
    [
        ("crash", "forward", 0),
        ("crash", "backward", 0),
        ("crash", "loss", 1),
        ("crash", "asked to reduce", 0),
        pytest.param("crash", "asked for a part", 1, marks=pytest.mark.soak),
        pytest.param("crash", "asked for a sum", 0, marks=pytest.mark.soak),
        pytest.param("crash", "asked to accept", 1, marks=pytest.mark.soak),
        ("crash", "told a record", 0),
        ("cut", "backward", 0),
        ("cut", "asked to reduce", 1),
        pytest.param("cut", "asked for a sum", 0, marks=pytest.mark.soak),
        pytest.param("cut", "asked to accept", 1, marks=pytest.mark.soak),
    ],
)
def test_a_member_is_lost_in_the_middle(fault: str, point: str, stage: int) -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=8)) as swarm:
            first, *_ = await four_nodes(swarm)
            await swarm.until_step(FAULT_STEP - 1)
            victim = swarm.member_of(stage, but=first)
            lost = trio.Event()

            def lose() -> None:
                getattr(victim, fault)()
                lost.set()

            victim.at(POINTS[point], lose)
            await swarm.until(lost.is_set)
            if fault == "cut":
                swarm.nodes.remove(victim)  # whatever it thinks, it is not among those who count
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def test_the_lead_is_lost_between_accept_and_commit() -> None:
    """The others hold an accepted record whose decision nobody told them: it must be the one that is decided."""

    async def main() -> None:
        async with open_swarm(small_run()) as swarm:
            lead, *others = await four_nodes(swarm)
            await swarm.until_step(FAULT_STEP - 1)
            lead.at(cast_of(Accepted), lead.crash)
            await swarm.until(lambda: lead not in swarm.nodes)
            await swarm.finished()
            assert len(swarm.nodes) == len(others)
            swarm.check_equals_reference()

    run(main)


def test_a_member_whose_network_comes_back_is_removed_and_joins_again() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=12)) as swarm:
            first, *_ = await four_nodes(swarm)
            await swarm.until_step(FAULT_STEP - 1)
            victim = swarm.member_of(1, but=first)
            victim.at(POINTS["loss"], victim.cut)
            await swarm.until(lambda: len(swarm.newest.members) == 3)
            victim.heal()
            await swarm.until(lambda: len(swarm.newest.members) == 4)
            await swarm.finished()
            assert victim.peer.expulsions == 1
            assert victim.peer.state.complete is not None
            swarm.check_equals_reference()

    run(main)


def test_a_trainer_that_vanishes_loses_no_microbatch() -> None:
    async def main() -> None:
        async with open_swarm(small_run()) as swarm:
            nodes = [await swarm.node(train=False) for _ in range(4)]
            trainers = [await swarm.node(observer=True) for _ in range(2)]
            await swarm.until_step(FAULT_STEP - 1)
            doomed = trainers[0]
            for node in nodes:
                node.at(_asked_by(doomed, "loss"), doomed.crash)
            await swarm.until(lambda: doomed not in swarm.nodes)
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def _asked_by(trainer: SwarmNode, kind: str) -> Point:
    """The first call of a kind while this trainer has work: most likely its own, and any other serves as well."""

    def matches(service: str, message: object) -> bool:
        works = bool(trainer.peer.trainer.journeys)
        return works and POINTS[kind](service, message)

    return matches


def test_a_late_joiner_fetches_the_state_and_serves() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=14)) as swarm:
            await four_nodes(swarm)
            await swarm.until_step(2)
            late = await swarm.node(stage=1)
            await swarm.until(late.serving.is_set)
            await swarm.finished()
            assert late.peer.state.fetched_bytes > 0
            counted = {
                tally.peer
                for record in swarm.records.values()
                for tally in record.tallies
                if tally.counted
            }
            assert late.peer_id in counted
            swarm.check_equals_reference()

    run(main)


def test_a_late_joiner_goes_on_at_another_donor_when_the_first_dies() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=14)) as swarm:
            first, *_ = await four_nodes(swarm)
            await swarm.until_step(2)
            donor = swarm.member_of(1, but=first)
            donor.at(call_of("state"), donor.crash)
            late = await swarm.node(stage=1)
            await swarm.until(late.serving.is_set)
            await swarm.finished()
            assert late.peer.state.complete is not None
            swarm.check_equals_reference()

    run(main)


def test_who_joins_a_run_that_is_over_gets_its_state() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=3)) as swarm:
            await four_nodes(swarm)
            await swarm.finished()
            late = await swarm.node(stage=1)
            await swarm.until(late.serving.is_set)
            hosted = late.peer.state.complete
            assert hosted is not None
            assert hosted.version == 3
            swarm.check_equals_reference()

    run(main)


def test_a_state_other_than_the_committed_one_is_refused() -> None:
    """A donor gives a state that is whole, of the right shape and finite, and not the one its stage committed to."""

    async def main() -> None:
        async with open_swarm(small_run(steps=30)) as swarm:
            nodes = await four_nodes(swarm)
            await swarm.until_step(2)
            for node in nodes:
                lie_at_first(node)
            late = await swarm.node(stage=1)
            await swarm.until(late.serving.is_set)
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def lie_at_first(node: SwarmNode, times: int = 2) -> None:
    """Let a node answer its first questions, for a manifest and its only chunk, with a state that nobody has."""
    snapshots: Any = node.peer.state.snapshots
    wanted, asked = snapshots._wanted, itertools.count()

    async def false(call: StateCall) -> Snapshot:
        snapshot = await wanted(call)
        return with_another_bit(snapshot) if next(asked) < times else snapshot

    snapshots._wanted = false


def with_another_bit(snapshot: Snapshot) -> Snapshot:
    data = bytearray(snapshot.data)
    data[7] ^= 0x80  # the sign of the first number
    size = snapshot.manifest.chunk_bytes
    chunks = tuple(
        hashlib.sha256(data[start : start + size]).digest() for start in range(0, len(data), size)
    )
    return Snapshot(dataclasses.replace(snapshot.manifest, chunks=chunks), memoryview(data))


def test_what_was_fetched_is_loaded_when_its_only_donor_dies_before_the_next_step() -> None:
    """Nobody else holds the stage's state any more: without what the newcomer has, the run would stand still for good."""

    async def main() -> None:
        async with open_swarm(small_run(steps=8, replicas=1)) as swarm:
            donor = await swarm.node(stage=0, train=False)
            await swarm.node(stage=1, train=False)
            trainer = await swarm.node(observer=True)
            await swarm.until_step(2)
            trainer.crash()  # no step is committed until there is another one
            late = await swarm.node(stage=0, train=False)
            await swarm.until(lambda: _WAITS_FOR_THE_HASH in late.reasons)
            donor.crash()
            await swarm.node(observer=True)
            await swarm.finished()
            assert late.peer.state.fetched_bytes > 0
            swarm.check_equals_reference()

    run(main)


def test_a_drained_peer_hands_over_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=8)) as swarm:
            first, *_ = await four_nodes(swarm)
            await swarm.until_step(FAULT_STEP)
            await swarm.member_of(1, but=first).drain()
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def test_the_last_holder_of_a_stage_leaves_only_when_another_has_its_state() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=14, replicas=1)) as swarm:
            for stage in (0, 1, 1):
                await swarm.node(stage=stage)
            await swarm.until_step(2)
            await swarm.member_of(0).drain()
            await swarm.finished()
            swarm.check_equals_reference()

    run(main)


def test_all_peers_may_leave_at_once() -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=1000)) as swarm, trio.open_nursery() as nursery:
            for node in await four_nodes(swarm):
                await swarm.until_step(1)
                nursery.start_soon(node.drain)

    run(main)


def with_rate(rate: float) -> RunSpec:
    run = small_run(steps=40, replicas=2, dtype="float32")
    optimizer = AdamWSpec(lr=rate, lr_min=rate, warmup_steps=0, clip_norm=0.0)
    return dataclasses.replace(run, optimizer=optimizer)


@pytest.mark.parametrize("rate", [1e7, 1e300])
def test_numbers_that_diverge_honestly_blame_nobody_and_lose_nothing(rate: float) -> None:
    async def main() -> None:
        async with open_swarm(with_rate(rate)) as swarm:
            nodes = await four_nodes(swarm)
            await swarm.until(lambda: any(node.peer.diverged for node in nodes))
            step = swarm.step
            await trio.sleep(1.0)
            assert swarm.step == step
            for node in nodes:
                assert not node.guard.faults()
                hosted = node.peer.state.complete
                assert hosted is not None
                assert all(bool(p.isfinite().all()) for p in hosted.parameters().values())
                assert node.peer.ledger.member is not None
                assert node.peer.expulsions == 0

    run(main)


def test_the_steps_of_a_fast_run_do_not_bury_what_matters(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with open_swarm(small_run(stages=1, steps=40, replicas=1)) as swarm:
            await swarm.node()
            await swarm.finished()

    with caplog.at_level("DEBUG", logger="swarm.pipeline.peer"):
        run(main)
    said = [r.levelname for r in caplog.records if r.getMessage().startswith("record learned")]
    assert len(said) > 40
    assert said.count("INFO") < 5


def test_the_trained_model_can_be_gathered_from_any_node(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_swarm(small_run(steps=2)) as swarm:
            *_, last = await four_nodes(swarm)
            await swarm.finished()
            assert last.resources is not None
            result = await export_run(last.peer, last.resources, tmp_path / "model.safetensors")
            assert result["step"] == 2
            _, model = load_model(tmp_path / "model.safetensors")
            exported = {name: p.detach() for name, p in model.named_parameters()}
            assert parameter_difference(exported, swarm.parameters()) == 0.0

    run(main)
