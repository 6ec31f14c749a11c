"""What trainers may ask of a stage, and what they are told when they ask for something else."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
import trio

from protocols.ledger.calls import ClaimCall, SettleCall
from protocols.ledger.grants import Grant
from protocols.ledger.view import pack_ids
from protocols.schema import encode
from swarm.calls import CallError
from tests.fakes.signer import SeededSigner
from tests.swarm.pipeline.small_swarm import small_run
from tests.swarm.pipeline.strangers import Stranger, hello_from_stranger, stranger_at

pytestmark = pytest.mark.trio

FIRST, LAST = 0, 1
Scenario = Callable[[Stranger], Coroutine[Any, Any, None]]


def at(stage: int, scenario: Scenario) -> None:
    """Run a scenario at one stage; afterwards the node must serve as if nothing had been."""

    async def main() -> None:
        async with stranger_at(stage) as stranger:
            await scenario(stranger)
            await stranger.check_serves()

    trio.run(main)


def test_tensors_that_do_not_fit_are_refused_by_name_and_nothing_is_counted() -> None:
    async def scenario(stranger: Stranger) -> None:
        x, targets = stranger.inputs()
        for tensors, problem in [
            ((x[:, :3], targets), "input must be float64 of shape [2, 16, 16], not float64 of"),
            ((x.float(), targets), "input must be float64 .*not float32"),
            ((x[0], targets), r"not float64 of shape [16, 16]"),
            ((x[:1], targets[:1]), "input must be"),
            ((x * float("nan"), targets), "input has values that are not finite"),
            ((x * float("inf"), targets), "input has values that are not finite"),
            ((x, targets.to(torch.int64)), "targets must be uint8"),
            ((x,), "loss takes 2 tensors, not 1"),
            ((x, targets, targets), "loss takes 2 tensors, not 3"),
            ((), "loss takes 2 tensors, not 0"),
        ]:
            code, reason = await stranger.refused("stage", stranger.work(), *tensors)
            assert code == "bad-request"
            assert all(part in reason for part in problem.split(".*"))
        assert stranger.target.guard.faults()

    at(LAST, scenario)


def test_a_gradient_that_does_not_fit_is_refused() -> None:
    async def scenario(stranger: Stranger) -> None:
        tokens, gradient = stranger.inputs()
        for tensors, problem in [
            ((tokens, gradient[..., :8]), "output gradient must be"),
            ((tokens, gradient * float("nan")), "output gradient has values"),
            ((tokens.to(torch.int32), gradient), "input must be uint8"),
        ]:
            code, reason = await stranger.refused("stage", stranger.work(), *tensors)
            assert (code, problem in reason) == ("bad-request", True)
        large = tokens, torch.full_like(gradient, 1e308)
        code, reason = await stranger.refused("stage", stranger.work(), *large)
        assert (code, "not finite" in reason) == ("diverged", True)

    at(FIRST, scenario)


def test_a_request_for_something_that_is_not_here_is_refused_with_the_reason() -> None:
    async def scenario(stranger: Stranger) -> None:
        step = stranger.target.peer.ledger.tally.step
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"stage": 0}, "not-here", "hosts stage 1"),
            ({"stage": 7}, "not-here", "hosts stage 1"),
            ({"step": step - 1}, "step-passed", f"works on {step}"),
            ({"step": step + 5}, "step-ahead", f"works on step {step}"),
            ({"step": 0}, "step-passed", ""),
            ({"kind": "backward"}, "bad-request", "stage 1 does not do backward"),
            ({"kind": "forward"}, "bad-request", "stage 1 does not do forward"),
            ({"microbatch": 6}, "bad-request", "not in the lease"),
            ({"microbatch": 2**62}, "bad-request", "not in the lease"),
            ({"microbatch": 2**62, "count": False}, "bad-request", "has 6 microbatches"),
            ({"generation": 2**62}, "bad-request", "holds a lease"),
        ]
        for changes, code, problem in cases:
            refused = await stranger.refused("stage", stranger.work(**changes), *stranger.inputs())
            assert refused[0] == code, (changes, refused)
            assert problem in refused[1], (changes, refused)

    at(LAST, scenario)


def test_messages_that_are_none_are_refused() -> None:
    async def scenario(stranger: Stranger) -> None:
        for message in [
            None, 7, b"work", [], {}, {"op": "work"}, {"op": "steal"}, {"op": 1}, {"op": ["work"]},
            stranger.work(step=-1), stranger.work(step=2**64 - 1), stranger.work(count=1),
            stranger.work(kind="train"), stranger.work(stage=5000), stranger.work(more=1),
            encode(ClaimCall(step=1, ids=b"", grant=stranger.grant())) | {"ids": bytes(9000)},
        ]:  # fmt: skip
            code, _ = await stranger.refused("stage", message, *stranger.inputs())
            assert code == "bad-request"

    at(LAST, scenario)


def test_another_run_is_refused_before_anything_is_read() -> None:
    async def main() -> None:
        async with stranger_at(LAST) as stranger:
            other = small_run(seed=99).run_id
            async with hello_from_stranger(
                stranger.swarm, stranger.target, run=other, seed=2000
            ) as foreigner:
                for service in ("ledger", "stage", "reduce", "state"):
                    code, _ = await foreigner.refused(service, None)
                    assert code == "wrong-run"
            await stranger.check_serves()

    trio.run(main)


def leases_that_are_none(stranger: Stranger) -> list[tuple[str, Grant | None]]:
    """What somebody might show whom no lead has leased anything."""
    nobody, other = SeededSigner(4000), SeededSigner(4001)
    last = 2**63 - 1
    good = stranger.grant()
    return [
        ("none at all", None),
        ("not signed", dataclasses.replace(good, signature=b"")),
        ("by nobody who ever led", stranger.grant(by=nobody, generation=last)),
        ("by a member that does not lead", stranger.grant(by=not_leading(stranger), generation=0)),
        ("another trainer's", stranger.grant(to=other.peer_id)),
        ("raised after it was signed", dataclasses.replace(good, generation=last)),
        ("widened after it was signed", dataclasses.replace(good, ids=b"\xff" * 8)),
        ("of another step", stranger.grant(step=good.step + 1)),
    ]


def not_leading(stranger: Stranger) -> SeededSigner:
    lead = stranger.target.peer.ledger.lead_peer
    return next(node.signer for node in stranger.swarm.nodes if node.peer_id != lead)


def test_who_holds_no_lease_has_nothing_counted_and_closes_nothing() -> None:
    """One claim of all microbatches by a stranger, with the highest generation that is believed, had stopped a run."""

    async def scenario(stranger: Stranger) -> None:
        tally = stranger.target.peer.ledger.tally
        step, everything = tally.step, pack_ids(2**6 - 1)
        for what, grant in leases_that_are_none(stranger):
            generation = grant.generation if grant is not None else 2**63 - 1
            asked: list[Any] = [
                stranger.work(generation=generation, grant=grant and encode(grant)),
                stranger.work(generation=generation, grant=grant and encode(grant), kind="forward"),
            ]
            if grant is not None:
                asked += [
                    encode(SettleCall(step=step, microbatch=0, attempt=9, grant=grant)),
                    encode(ClaimCall(step=step, ids=everything, grant=grant)),
                ]
            for message in asked:
                tensors = stranger.inputs() if message["op"] == "work" else ()
                code, _ = await stranger.refused("stage", message, *tensors)
                assert code in ("bad-request", "overtaken", "step-ahead"), what
                assert (tally.counted, len(tally._floors)) == (0, 0), what
        answer = await stranger.call("stage", stranger.work(), *stranger.inputs())
        assert answer.message["counted"]
        stranger.target.peer.ledger.tally.fence()  # as a record would
        stranger.target.peer.state.discard()
        await stranger.swarm.until(
            lambda: stranger.target.peer.host and not stranger.target.peer.host.stage.counted
        )

    at(LAST, scenario)


def test_questions_about_strange_microbatches_are_refused_and_cost_no_memory() -> None:
    async def scenario(stranger: Stranger) -> None:
        tally, grant = stranger.target.peer.ledger.tally, stranger.grant()
        for microbatch in (6, 65_536, 10**9, 2**62):
            question = SettleCall(step=tally.step, microbatch=microbatch, attempt=0, grant=grant)
            code, reason = await stranger.refused("stage", encode(question))
            assert (code, reason) == ("bad-request", "that is not in the lease")
        everything = ClaimCall(step=tally.step, ids=bytes(8000) + b"\xff", grant=grant)
        code, _ = await stranger.refused("stage", encode(everything))
        assert code == "bad-request"
        assert len(tally._floors) == 0

    at(LAST, scenario)


def test_a_repeated_request_counts_once() -> None:
    async def main() -> None:
        async with stranger_at(LAST) as stranger:
            request = stranger.work()
            assert (await stranger.call("stage", request, *stranger.inputs())).message["counted"]
            code, _ = await stranger.refused("stage", request, *stranger.inputs())
            assert code == "overtaken"
            again = await stranger.call("stage", stranger.work(), *stranger.inputs())
            assert again.message["counted"]
            host = stranger.target.peer.host
            assert host is not None
            assert host.stage.counted == 1

    trio.run(main)


def test_a_device_error_makes_the_gradient_broken_and_the_member_starts_the_step_again() -> None:
    async def main() -> None:
        async with stranger_at(LAST) as stranger:
            peer = stranger.target.peer
            host = peer.host
            assert host is not None
            assert (await stranger.call("stage", stranger.work(), *stranger.inputs())).message[
                "counted"
            ]

            def out_of_memory(*tensors: object, **options: object) -> None:
                host.stage._gradient += 1.0  # some of it got there
                raise RuntimeError("out of memory")

            lossless, host.stage.loss = host.stage.loss, out_of_memory  # type: ignore[method-assign,assignment]
            before = peer.ledger.record
            assert before is not None
            code, _ = await stranger.refused(
                "stage", stranger.work(microbatch=1), *stranger.inputs()
            )
            assert code == "failed"
            host.stage.loss = lossless  # type: ignore[method-assign]
            await stranger.swarm.until(lambda: stranger.swarm.newest.index > before.index)
            await stranger.swarm.until(lambda: not host.stage.gradient().any())
            assert peer.ledger.tally.counted == 0
            await stranger.check_serves()

    trio.run(main)


def test_a_full_queue_is_said_and_a_step_gets_through_all_the_same() -> None:
    async def main() -> None:
        async with stranger_at(LAST) as stranger:
            opened = stranger.target.resources
            assert opened is not None
            begun, release = threading.Event(), threading.Event()

            def block() -> None:
                begun.set()
                release.wait(10)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.compute.run_own, block)
                await stranger.swarm.until(begun.is_set)
                nursery.start_soon(_fill, opened.compute)
                await stranger.swarm.until(lambda: opened.compute.waiting == 64)
                code, _ = await stranger.refused("stage", stranger.work(), *stranger.inputs())
                assert code == "busy"
                stranger.target.peer.state.discard()  # our own work is not refused
                await stranger.swarm.until(lambda: opened.compute.waiting == 65)
                release.set()
            await stranger.swarm.until(lambda: not opened.compute.waiting)
            await stranger.check_serves()

    trio.run(main)


async def _fill(compute: Any) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(compute.run, int)


def test_a_draining_node_says_so() -> None:
    async def main() -> None:
        async with stranger_at(LAST) as stranger:
            peer = stranger.target.peer
            peer.draining = True
            code, _ = await stranger.refused("stage", stranger.work(), *stranger.inputs())
            assert code == "draining"
            peer.draining = False
            await stranger.check_serves()

    trio.run(main)


def test_a_stage_that_is_not_ready_says_so_at_once() -> None:
    """Not after the time it would wait for a step to open: that would hold up every trainer at every join."""

    async def main() -> None:
        async with stranger_at(LAST) as stranger:
            host = stranger.target.peer.host
            assert host is not None
            host.loaded = False
            next_step = stranger.target.peer.ledger.tally.step + 1
            with trio.fail_after(1.0), pytest.raises(CallError, match="not-here"):
                await stranger.call("stage", stranger.work(step=next_step), *stranger.inputs())
            host.loaded = True

    trio.run(main)
