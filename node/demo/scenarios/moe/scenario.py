"""The story: the run undisturbed, the same run with a host killed and a node joining, then one process; compare, judge."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.demo.beside import messages_of
from node.demo.result import Options, Result
from node.demo.scenarios.moe.figures import Figures, broken_bounds
from node.demo.scenarios.moe.plan import NODES, STEPS, Plan, make_plan
from node.demo.scenarios.moe.sights import MoeScene, MoeSight, MoeView
from node.demo.screen import Screen
from node.demo.watching import Watch
from node.errors import NodeError
from node.limits import process_age_s, processor
from protocols.experts.spec import MoeSpec
from protocols.run import ByteTransformerSpec

NODE_FLAGS: Final = ("--threads", "1", "--nice", "0")
_START_STILL_S: Final = 90.0
"""Starting five nodes at once is mostly importing torch."""
_REFERENCE: Final = (sys.executable, "-P", "-m", "node.demo.scenarios.moe.reference_process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to one swarm."""

    model: Path
    peers: tuple[str, ...]
    """PeerIDs of the nodes that began together."""
    sights: tuple[MoeSight, ...]
    """The last look at every node."""
    joined: int
    failures: tuple[str, ...]


def run(options: Options, folder: Path, screen: Screen, *, model: Path) -> Result:
    """Run the scenario. Raises NodeError when it could not finish."""
    if options.plant:
        raise NodeError("the demo of experts has nothing to plant")
    plan = make_plan(folder / "run.toml", data=options.data, steps=options.steps or STEPS)
    calm = train(plan, folder / "calm", screen, disturbed=False)
    outcome = train(plan, folder / "kill", screen, disturbed=True)
    compared = _compare(plan, calm, outcome, folder, screen)
    shutil.copyfile(outcome.model, model)
    figures = Figures(
        nodes=NODES,
        experts=_experts(plan),
        batches_per_node=plan.run.training.steps,
        loss=compared["losses"][1],
        loss_undisturbed=compared["losses"][0],
        loss_one_process=compared["loss"],
        experts_adopted=sum(sight.adopted for sight in outcome.sights),
        experts_lost=sum(sight.lost for sight in (*calm.sights, *outcome.sights)),
        steps_failed=sum(sight.failed for sight in (*calm.sights, *outcome.sights)),
        nodes_killed=sum(sight.fate == "killed" for sight in outcome.sights),
        nodes_joined=outcome.joined,
        seconds=process_age_s(),
        **processor(),
    )
    broken = broken_bounds(figures, shortened=options.steps is not None)
    return Result(
        figures=figures.to_json() | {"one_process_by_rate": compared["by_rate"]},
        summary=_summary(figures),
        broken=(*calm.failures, *outcome.failures, *broken),
    )


def _experts(plan: Plan) -> int:
    model = plan.run.model
    assert isinstance(model, ByteTransformerSpec)
    return len(list(plan.run.settings(MoeSpec).uids(model.layers)))


# --- the swarm ---


def train(plan: Plan, folder: Path, screen: Screen, *, disturbed: bool) -> Outcome:
    """Train from the first batch to the last; `disturbed`: one host is killed, and a node joins."""
    folder.mkdir()
    steps, experts = plan.run.training.steps, _experts(plan)
    joined = 0
    with Watch(folder, screen, MoeView(steps, experts), NODE_FLAGS) as watch:
        _start(watch, plan, experts)
        peers = tuple(sight.peer_id for sight in watch.look().up)
        if disturbed:
            watch.until(lambda scene: scene.mean_step >= plan.kill_at, what="training")
            victim = watch.look().up[-1]
            screen.say(f"SIGKILL: node {victim.name} with {victim.hosted} experts")
            watch.kill(victim.name)
            watch.until(lambda scene: scene.hosted >= experts, what="adoption")
            screen.say(f"adopted: all {experts} experts are on {len(watch.look().up)} nodes")
            watch.until(lambda scene: scene.mean_step >= plan.join_at, what="training")
            late = _join_late(watch)
        watch.until(
            lambda scene: all(sight.step == steps for sight in scene.up), what="the last batch"
        )
        watch.until(lambda scene: scene.hosted >= experts, what="every expert")
        if disturbed:
            sight = watch.look().find(late)
            joined = int(sight.hosted > 0 and sight.step == steps)
        model = folder / "model.safetensors"
        watch.ask("n1", "export", path=str(model))
        sights = tuple(watch.look().sights)
        failures = watch.leave()
    return Outcome(model=model, peers=peers, sights=sights, joined=joined, failures=tuple(failures))


def _start(watch: Watch[MoeScene], plan: Plan, experts: int) -> None:
    watch.screen.say(f"start: {NODES} nodes, {experts} experts between them")
    watch.start("n1", "--run", str(plan.run_file), role="hosts, trains")
    invite = watch.invite("n1")
    for index in range(2, NODES + 1):
        watch.start(f"n{index}", "--join", invite, role="hosts, trains")
    watch.until(
        lambda scene: all(sight.step for sight in scene.up),
        what="every node to train",
        still_s=_START_STILL_S,
    )
    loads = ", ".join(str(sight.hosted) for sight in watch.look().up)
    watch.screen.say(f"training: {NODES} nodes host {loads} experts")


def _join_late(watch: Watch[MoeScene]) -> str:
    name = f"n{NODES + 1}"
    helper = watch.look().up[0]
    invite = watch.ask(helper.name, "invite")["invite"]
    watch.start(name, "--join", invite, role="joins late")
    watch.screen.say(f"start: node {name}, with an invite from {helper.name}")
    watch.until(
        lambda scene: scene.find(name).step and scene.find(name).hosted,
        what=f"node {name} to train and to host",
        still_s=_START_STILL_S,
    )
    watch.screen.say(f"joined: node {name} trains, and hosts {watch.look().find(name).hosted}")
    return name


# --- the other side ---


def _compare(
    plan: Plan, calm: Outcome, outcome: Outcome, folder: Path, screen: Screen
) -> dict[str, Any]:
    """Let one process test the models, and train what they are compared with. Raises NodeError."""
    command = [
        *_REFERENCE, str(plan.run_file), ",".join(calm.peers), str(calm.model), str(outcome.model)
    ]  # fmt: skip
    result: dict[str, Any] = {}
    for message in messages_of(command, folder / "reference.log"):
        if "doing" in message:
            screen.say(f"comparing: {message['doing']}")
        else:
            result = message
    return result


def _summary(figures: Figures) -> str:
    rows = [
        ("held-out loss, one host killed, one node joined", figures.loss),
        ("  the same run undisturbed", figures.loss_undisturbed),
        ("  one process, the same samples, its best rate", figures.loss_one_process),
    ]
    lines = [f"{name:<52}{value:>10.4f}" for name, value in rows]
    lines += [
        "",
        f"{figures.experts} experts on {figures.nodes} nodes: {figures.experts_adopted} adopted, {figures.experts_lost} lost; "
        f"{figures.steps_failed} steps failed.",
        f"{figures.batches_per_node} batches each, {figures.seconds:.0f} s on {figures.cores} cores ({figures.processor}).",
        "",
    ]
    return "\n".join(["", *lines])
