"""The story from beginning to end: start four peers, kill one, let one join, export the models, compare, judge."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.demo.beside import messages_of
from node.demo.result import Options, Result
from node.demo.scenarios.collective.figures import Figures, broken_bounds
from node.demo.scenarios.collective.plan import PEERS, STEPS, Plan, make_plan
from node.demo.scenarios.collective.sights import CollectiveScene, CollectiveSight, CollectiveView
from node.demo.screen import Screen
from node.demo.watching import Watch
from node.errors import NodeError
from node.limits import process_age_s, processor

NODE_FLAGS: Final = ("--threads", "1", "--nice", "0")
_START_STILL_S: Final = 90.0
"""Starting four nodes at once is mostly importing torch."""
_REFERENCE: Final = (sys.executable, "-P", "-m", "node.demo.scenarios.collective.reference_process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to the swarm."""

    models: tuple[Path, ...]
    sights: tuple[CollectiveSight, ...]
    """The last look at every node that lived to the end."""
    joined_late: int
    failures: tuple[str, ...]


def run(options: Options, folder: Path, screen: Screen, *, model: Path) -> Result:
    """Run the scenario. Raises NodeError when it could not finish."""
    if options.plant:
        raise NodeError("the demo of outer steps has nothing to plant")
    plan = make_plan(folder / "run.toml", data=options.data, steps=options.steps or STEPS)
    outcome = train(plan, folder, screen)
    compared = _compare(plan, outcome, folder, screen)
    shutil.copyfile(outcome.models[0], model)
    figures = Figures(
        peers=len(outcome.models),
        peers_killed=1,
        peers_joined_late=outcome.joined_late,
        steps=plan.run.training.steps,
        loss_before=compared["loss_before"],
        loss=compared["losses"][0],
        loss_one_process=compared["loss"],
        outer_parameters_differ=compared["differ"],
        rounds=max(sight.rounds for sight in outcome.sights),
        rounds_missed=sum(sight.missed for sight in outcome.sights),
        bytes_per_step=_bytes_per_step(outcome),
        # Sent and received, by each of PEERS, in a butterfly.
        bytes_per_step_data_parallel=2 * 2 * (PEERS - 1) / PEERS * 4 * compared["parameters"],
        seconds=process_age_s(),
        **processor(),
    )
    return Result(
        figures=figures.to_json(),
        summary=_summary(figures),
        broken=(*outcome.failures, *broken_bounds(figures, shortened=options.steps is not None)),
    )


def _bytes_per_step(outcome: Outcome) -> float:
    """Each byte is sent by one peer and received by another: twice what all peers' own calls have moved, by each of their steps."""
    steps = sum(sight.trained for sight in outcome.sights)
    return 2 * sum(sight.exchanged_bytes for sight in outcome.sights) / max(1, steps)


# --- the swarm ---


def train(plan: Plan, folder: Path, screen: Screen) -> Outcome:
    """Train from the first step to the last, with everything that happens on the way."""
    steps = plan.run.training.steps
    with Watch(folder, screen, CollectiveView(steps), NODE_FLAGS) as watch:
        _start(watch, plan)
        watch.until(lambda scene: scene.step >= plan.kill_at, what="training")
        victim = watch.look().up[-1]
        screen.say(f"SIGKILL: node {victim.name} at step {victim.step}, in {victim.rounds} rounds")
        watch.kill(victim.name)
        watch.until(lambda scene: scene.step >= plan.join_at, what="training")
        late = _join_late(watch)
        watch.until(lambda scene: scene.finished, what="the last rounds")
        joined = watch.look().find(late)
        models = _export(watch, folder)
        sights = tuple(watch.look().up)
        failures = watch.leave()
    return Outcome(
        models=models,
        sights=sights,
        joined_late=int(joined.adoptions > 0 and joined.rounds > 0),
        failures=tuple(failures),
    )


def _start(watch: Watch[CollectiveScene], plan: Plan) -> None:
    watch.screen.say(f"start: {PEERS} nodes, each with the whole model")
    watch.start("n1", "--run", str(plan.run_file), role="trains")
    invite = watch.invite("n1")
    for index in range(2, PEERS + 1):
        watch.start(f"n{index}", "--join", invite, role="trains")
    watch.until(
        lambda scene: all(sight.step for sight in scene.up),
        what="every node to train",
        still_s=_START_STILL_S,
    )
    watch.screen.say(f"training: {PEERS} peers average every 30 steps, half the model at a time")


def _join_late(watch: Watch[CollectiveScene]) -> str:
    name = f"n{PEERS + 1}"
    helper = watch.look().up[0]
    watch.start(name, "--join", watch.ask(helper.name, "invite")["invite"], role="joins late")
    watch.screen.say(f"start: node {name}, with an invite from {helper.name}")
    scene = watch.until(
        lambda scene: scene.find(name).rounds,
        what=f"node {name} to be in a round",
        still_s=_START_STILL_S,
    )
    watch.screen.say(f"joined: node {name} is in rounds since step {scene.find(name).step}")
    return name


def _export(watch: Watch[CollectiveScene], folder: Path) -> tuple[Path, ...]:
    models = {sight.name: folder / f"{sight.name}.safetensors" for sight in watch.look().up}
    for name, path in models.items():
        watch.ask(name, "export", path=str(path))
    watch.screen.say(f"exported: the outer parameters of {len(models)} nodes")
    return tuple(models.values())


# --- the other side ---


def _compare(plan: Plan, outcome: Outcome, folder: Path, screen: Screen) -> dict[str, Any]:
    """Let one process test the models, and train what they are compared with. Raises NodeError."""
    command = [*_REFERENCE, str(plan.run_file), *map(str, outcome.models)]
    result: dict[str, Any] = {}
    for message in messages_of(command, folder / "reference.log"):
        if "doing" in message:
            screen.say(f"comparing: {message['doing']}")
        else:
            result = message
    return result


def _summary(figures: Figures) -> str:
    rows = [
        ("held-out loss before, nats per byte", f"{figures.loss_before:.4f}"),
        ("held-out loss after", f"{figures.loss:.4f}"),
        ("  one process that averages every gradient", f"{figures.loss_one_process:.4f}"),
        ("bytes of a peer per step, every one counted", f"{figures.bytes_per_step:,.0f}"),
        (
            "  float32 gradients averaged in every step",
            f"{figures.bytes_per_step_data_parallel:,.0f}",
        ),
    ]
    lines = [f"{name:<48}{value:>16}" for name, value in rows]
    lines += [
        "",
        f"{figures.peers} peers at the end with the same outer parameters, {figures.peers_killed} killed, "
        f"{figures.peers_joined_late} joined late; {figures.rounds} rounds, {figures.rounds_missed} missed.",
        f"{figures.bytes_ratio:.0f} times fewer bytes, {figures.loss_ratio:.3f} times the loss; {figures.steps} steps, "
        f"{figures.seconds:.0f} s on {figures.cores} cores ({figures.processor}).",
        "",
    ]
    return "\n".join(["", *lines])
