"""What the demo does to its swarm, each fault addressed by what a node is seen to be doing, not by the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from node.demo.scenarios.pipeline.sights import PipelineScene, PipelineSight
from node.demo.watching import Watch

CLOSELY_S: Final = 0.02
"""Between looks while something short is to be seen: a microbatch takes about a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Killed:
    """One node that was killed, what it held, and how long the swarm needed to get over it."""

    name: str
    peer_id: str
    step: int
    """The step that was in progress."""
    held: str
    """What was lost with it."""
    recovery_s: float
    """From the kill until every surviving member was seen to have committed the step in progress."""


def kill_lead_with_work(watch: Watch[PipelineScene], *, microbatches: int) -> Killed:
    """SIGKILL the node that leads, in the middle of a step, with gradients in it that exist nowhere else.

    The lead, because nobody should be able to call it a coordinator: at this point it is also the node that began the
    run, and the address in everybody's invite. Its stage must still miss two microbatches, so that the step cannot be
    over before the signal arrives; the journal shows afterwards whether it was (`accounts.counted_by`).
    """

    def victim(scene: PipelineScene) -> PipelineSight | None:
        open_step = scene.step + 1
        return next(
            (
                sight
                for sight in scene.hosting
                if sight.leading
                and sight.counting_step == open_step
                and sight.counted_in_step
                and _counted_at(scene, sight.stage, open_step) <= microbatches - 2
                and _has_replica(scene, sight)
            ),
            None,
        )

    scene = watch.until(
        victim, what="the lead to have work that would be lost with it", every_s=CLOSELY_S
    )
    found = victim(scene)
    assert found is not None
    return _kill(watch, found, scene.step + 1, f"{found.counted_in_step} microbatches counted")


def kill_trainer(watch: Watch[PipelineScene], name: str) -> Killed:
    """SIGKILL a node that only trains, while microbatches that it drives are somewhere between the stages."""
    scene = watch.until(
        lambda scene: scene.find(name).in_flight and scene.find(name).step == scene.step,
        what=f"microbatches in flight at {name}",
        every_s=CLOSELY_S,
    )
    found = scene.find(name)
    return _kill(watch, found, scene.step + 1, f"{found.in_flight} microbatches in flight")


def _kill(watch: Watch[PipelineScene], victim: PipelineSight, step: int, held: str) -> Killed:
    began_s = time.monotonic()
    watch.kill(victim.name)
    # Whatever is in progress now: were the step committed in the moment of the kill, the next one is what must recover.
    in_progress = watch.look().step + 1
    watch.screen.say(f"SIGKILL: node {victim.name} ({_title(victim)}) in step {step}, with {held}")
    watch.until(
        lambda scene: all((sight.step or 0) >= in_progress for sight in scene.hosting),
        what=f"step {in_progress}, in progress when node {victim.name} was killed",
        every_s=CLOSELY_S,
    )
    recovery_s = time.monotonic() - began_s
    watch.screen.say(
        f"recovered: step {in_progress} is committed at all stages, {recovery_s:.1f} s after the kill"
    )
    return Killed(victim.name, victim.peer_id, step, held, recovery_s)


def join_late(watch: Watch[PipelineScene], name: str, *, role: str) -> PipelineSight:
    """Start a node that nobody knows, and wait until it has fetched its stage's state and counted microbatches."""
    helper = next(sight for sight in watch.look().hosting if sight.state == "serving")
    invite = watch.ask(helper.name, "invite")["invite"]
    watch.start(name, "--join", invite, role=role)
    watch.screen.say(f"start: node {name}, with an invite from {helper.name}")
    began_s = time.monotonic()
    scene = watch.until(
        lambda scene: scene.find(name).fetched_bytes and scene.find(name).counted,
        what=f"node {name} to fetch a stage and serve it",
    )
    joined = scene.find(name)
    watch.screen.say(
        f"joined: node {name} fetched {joined.fetched_bytes / 1e6:.1f} MB, hosts stage {joined.stage} and counts "
        f"microbatches, {time.monotonic() - began_s:.1f} s after its start"
    )
    return joined


def _title(sight: PipelineSight) -> str:
    return f"leads, {sight.role}" if sight.leading else sight.role


def _counted_at(scene: PipelineScene, stage: int | None, step: int) -> int:
    """Microbatches counted at a stage, by what the nodes say."""
    return sum(
        sight.counted_in_step
        for sight in scene.hosting
        if sight.stage == stage and sight.counting_step == step
    )


def _has_replica(scene: PipelineScene, of: PipelineSight) -> bool:
    return any(
        sight.stage == of.stage and sight.name != of.name and sight.state == "serving"
        for sight in scene.hosting
    )
