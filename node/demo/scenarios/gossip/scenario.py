"""The story from beginning to end: start eight peers, kill one, let one join, export all models, compare, judge."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.demo.beside import messages_of
from node.demo.result import Options, Result
from node.demo.scenarios.gossip.figures import Figures, broken_bounds
from node.demo.scenarios.gossip.plan import PEERS, STEPS, Plan, make_plan
from node.demo.scenarios.gossip.sights import GossipScene, GossipView
from node.demo.screen import Screen
from node.demo.watching import Watch
from node.errors import NodeError
from node.limits import process_age_s, processor

NODE_FLAGS: Final = ("--threads", "1", "--nice", "0")
TARGET: Final = 90.0
LOOKS: Final = 5
"""Points of the course at which the mean accuracy is kept, evenly spaced over the batches."""
_START_STILL_S: Final = 90.0
"""Starting eight nodes at once is mostly importing torch."""
_REFERENCE: Final = (sys.executable, "-P", "-m", "node.demo.scenarios.gossip.reference_process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to the swarm."""

    models: dict[str, Path]
    """By the peers that lived to the end."""
    exchanges_to_target: float | None
    course: tuple[tuple[float, float], ...]
    """(mean batches trained, mean accuracy) at `LOOKS` points."""
    killed_at: int
    began_at: int
    """Mean batches when the late peer began to train: some seconds after it was started."""
    joined_late: int
    refused: int
    failures: tuple[str, ...]


def run(options: Options, folder: Path, screen: Screen, *, model: Path) -> Result:
    """Run the scenario. Raises NodeError when it could not finish."""
    if options.data or options.plant:
        raise NodeError("the gossip demo trains on the digits, and has nothing to plant")
    plan = make_plan(folder / "run.toml", steps=options.steps or STEPS)
    outcome = train(plan, folder, screen)
    compared = _compare(plan, outcome, folder, screen)
    shutil.copyfile(next(iter(outcome.models.values())), model)
    figures = Figures(
        peers=len(outcome.models),
        peers_killed=1,
        peers_joined_late=outcome.joined_late,
        batches_per_peer=plan.run.training.steps,
        accuracy_mean=statistics.fmean(compared["accuracies"]),
        accuracy_min=min(compared["accuracies"]),
        accuracy_reference=compared["accuracy_reference"],
        accuracy_alone_mean=compared["accuracy_alone_mean"],
        exchanges_to_target=outcome.exchanges_to_target,
        plain_exchanges_to_target=compared["plain_exchanges"],
        plain_exchanges_cap=compared["plain_exchanges_cap"],
        plain_accuracy=compared["plain_accuracy"],
        models_refused=outcome.refused,
        seconds=process_age_s(),
        **processor(),
    )
    return Result(
        figures=figures.to_json(),
        summary=_summary(figures),
        broken=(*outcome.failures, *broken_bounds(figures, shortened=options.steps is not None)),
    )


# --- the swarm ---


def train(plan: Plan, folder: Path, screen: Screen) -> Outcome:
    """Train from the first batch to the last, with everything that happens on the way."""
    steps = plan.run.training.steps
    course = _Course(steps)
    with Watch(folder, screen, GossipView(steps), NODE_FLAGS) as watch:
        _start(watch, plan)
        watch.until(course.seen(lambda scene: scene.mean_step >= plan.kill_at), what="training")
        victim = watch.look().up[-1]
        screen.say(f"SIGKILL: node {victim.name} after {victim.step} batches")
        watch.kill(victim.name)
        watch.until(course.seen(lambda scene: scene.mean_step >= plan.join_at), what="training")
        late, began_at = _join_late(watch, course)
        watch.until(course.seen(lambda scene: _finished(scene, steps)), what="the last batch")
        joined = watch.look().find(late)
        models = _export(watch, folder)
        refused = sum(sight.refused for sight in watch.look().up)
        failures = watch.leave()
    return Outcome(
        models=models,
        exchanges_to_target=course.target_at,
        course=tuple(course.points),
        killed_at=int(victim.step or 0),
        began_at=began_at,
        joined_late=int(joined.fetched and joined.step == steps),
        refused=refused,
        failures=tuple(failures),
    )


class _Course:
    """What was seen of the mean accuracy while the peers that began together train."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.target_at: float | None = None
        self.points: list[tuple[float, float]] = []

    def seen(self, condition: Callable[[GossipScene], Any]) -> Callable[[GossipScene], Any]:
        """Wrap what is waited for: every look is noted on the way."""

        def noted(scene: GossipScene) -> Any:
            accuracy, exchanges = scene.mean_accuracy, scene.mean_exchanges
            if accuracy is not None:
                if accuracy >= TARGET and self.target_at is None:
                    self.target_at = exchanges
                if scene.mean_step >= self._steps * (len(self.points) + 1) / LOOKS:
                    self.points.append((scene.mean_step, accuracy))
            return condition(scene)

        return noted


def _start(watch: Watch[GossipScene], plan: Plan) -> None:
    watch.screen.say(f"start: {PEERS} nodes, each with a model of its own and a part of the data")
    watch.start("n1", "--run", str(plan.run_file), role="trains")
    invite = watch.invite("n1")
    for index in range(2, PEERS + 1):
        watch.start(f"n{index}", "--join", invite, role="trains")
    watch.until(
        lambda scene: all(sight.step for sight in scene.up),
        what="every node to train",
        still_s=_START_STILL_S,
    )
    watch.screen.say(f"training: {PEERS} peers, {plan.run.data.kind}, Dirichlet parts")


def _join_late(watch: Watch[GossipScene], course: _Course) -> tuple[str, int]:
    name = f"n{PEERS + 1}"
    helper = watch.look().up[0]
    watch.start(name, "--join", watch.ask(helper.name, "invite")["invite"], role="joins late")
    watch.screen.say(f"start: node {name}, with an invite from {helper.name}")
    scene = watch.until(
        course.seen(lambda scene: scene.find(name).step), what=f"node {name} to train"
    )
    joined = scene.find(name)
    how = "a neighbour's model" if joined.fetched else "a model of its own"
    watch.screen.say(f"joined: node {name} began with {how}")
    return name, int(scene.mean_step)


def _finished(scene: GossipScene, steps: int) -> bool:
    return all(sight.step == steps for sight in scene.up)


def _export(watch: Watch[GossipScene], folder: Path) -> dict[str, Path]:
    models = {sight.name: folder / f"{sight.name}.safetensors" for sight in watch.look().up}
    for name, path in models.items():
        watch.ask(name, "export", path=str(path))
    watch.screen.say(f"exported: {len(models)} models")
    return models


# --- the other side ---


def _compare(plan: Plan, outcome: Outcome, folder: Path, screen: Screen) -> dict[str, Any]:
    """Let one process test the models, and train what they are compared with. Raises NodeError."""
    command = [
        *_REFERENCE, str(plan.run_file), str(plan.kill_at), str(plan.join_at),
        *map(str, outcome.models.values()),
    ]  # fmt: skip
    result: dict[str, Any] = {}
    for message in messages_of(command, folder / "reference.log"):
        if "doing" in message:
            screen.say(f"comparing: {message['doing']}")
        else:
            result = message
    return result


def _summary(figures: Figures) -> str:
    plain = figures.plain_exchanges_to_target
    rows = [
        ("mean accuracy of the peers' models", f"{figures.accuracy_mean:.1f} %"),
        ("  the worst of them", f"{figures.accuracy_min:.1f} %"),
        ("one model that saw all data, as many samples", f"{figures.accuracy_reference:.1f} %"),
        ("peers that never exchange", f"{figures.accuracy_alone_mean:.1f} %"),
        ("exchanges until 90 %", _number(figures.exchanges_to_target)),
        (
            "  without the variance correction",
            _number(plain) if plain else f"more than {figures.plain_exchanges_cap:.0f}",
        ),
    ]
    lines = [f"{name:<48}{value:>16}" for name, value in rows]
    lines += [
        "",
        f"{figures.peers} peers at the end, {figures.peers_killed} killed, {figures.peers_joined_late} joined late; "
        f"{figures.batches_per_peer} batches each, {figures.seconds:.0f} s on {figures.cores} cores ({figures.processor}).",
        "",
    ]
    return "\n".join(["", *lines])


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"
