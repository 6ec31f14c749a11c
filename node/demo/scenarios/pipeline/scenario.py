"""The story from beginning to end: prepare, start, train, kill, join, finish, compare, judge."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.demo.result import Options, Result
from node.demo.scenarios.pipeline.accounts import Accounts, audit, counted_by, merge_journals
from node.demo.scenarios.pipeline.comparison import Comparison, compare
from node.demo.scenarios.pipeline.faults import Killed, join_late, kill_lead_with_work, kill_trainer
from node.demo.scenarios.pipeline.figures import Figures, broken_bounds
from node.demo.scenarios.pipeline.plan import REPLICAS, STAGES, STEPS, Plan, make_plan
from node.demo.scenarios.pipeline.report import summary
from node.demo.scenarios.pipeline.sights import PipelineScene, PipelineSight, PipelineView
from node.demo.screen import Screen
from node.demo.watching import Watch
from node.limits import process_age_s, processor
from protocols.ids import PeerID
from protocols.run.pipeline import pipeline_of
from swarm.pipeline.journal import read_journal

NODE_FLAGS: Final = ("--threads", "1", "--nice", "0")
"""A thread each: the nodes share the machine. Nice 0: here, training is what the person is waiting for."""
PLANTED: Final = (sys.executable, "-P", "-m", "node.demo.scenarios.pipeline.planted")
_TRAINER: Final = "t1"
_JOIN_STILL_S: Final = 60.0
"""Starting six nodes at once is mostly importing torch, and a slow disk takes its time for that."""
_EXPORT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to the swarm."""

    node: Killed
    trainer: Killed
    joined: PipelineSight | None
    nodes_started: int
    training_s: float
    failures: tuple[str, ...]
    """A sentence for everything that went wrong when the nodes left."""


def run(options: Options, folder: Path, screen: Screen, *, model: Path) -> Result:
    """Run the scenario. Raises NodeError when it could not finish."""
    plan = make_plan(
        folder / "run.toml", data=options.data, steps=options.steps or STEPS, dtype=options.dtype
    )
    outcome = _train(plan, folder, model, screen, plant=options.plant)
    comparison = _compare(plan, folder, model, screen)
    accounts, figures = _figures(plan, folder, outcome, comparison)
    broken = broken_bounds(figures, dtype=options.dtype, shortened=options.steps is not None)
    return Result(
        figures=figures.to_json(),
        summary=summary(figures, outcome.node, outcome.trainer, outcome.joined, comparison),
        broken=(*outcome.failures, *accounts.problems, *broken),
    )


# --- the swarm ---


def _train(plan: Plan, folder: Path, model: Path, screen: Screen, *, plant: str) -> Outcome:
    """Train from the first step to the last, with everything that happens on the way."""
    # Who joins reads no file because a peer names it, so each is told where the text is.
    flags = (*NODE_FLAGS, "--data", pipeline_of(plan.run).data.pattern)
    with Watch(folder, screen, PipelineView(pipeline_of(plan.run).steps), flags) as watch:
        started = _start(watch, plan, plant=plant)
        training_from_s = time.monotonic()
        screen.say(f"training: {STAGES} stages x {REPLICAS} replicas, a trainer on every node")
        watch.until(lambda scene: scene.step >= plan.kill_node_at, what="training")
        node = kill_lead_with_work(watch, microbatches=pipeline_of(plan.run).microbatches)
        watch.until(lambda scene: scene.step >= plan.kill_trainer_at, what="training")
        trainer = kill_trainer(watch, _TRAINER)
        joined = None
        if plan.join_at is None:
            screen.say("nobody joins late: the run is too short for that")
        else:
            join_at = plan.join_at
            watch.until(lambda scene: scene.step >= join_at, what="training")
            joined = join_late(watch, f"n{started}", role="joins late")
            started += 1
        watch.until(lambda scene: _finished(scene, plan), what="the last step")
        training_s = time.monotonic() - training_from_s
        failures = _leave(watch, model)
    return Outcome(
        node=node,
        trainer=trainer,
        joined=joined,
        nodes_started=started,
        training_s=training_s,
        failures=tuple(failures),
    )


def _start(watch: Watch[PipelineScene], plan: Plan, *, plant: str) -> int:
    """Start all nodes, wait until every stage has its replicas, and return how many nodes there are."""
    count = STAGES * REPLICAS
    watch.screen.say(f"start: {count} nodes that host and train, and {_TRAINER}, which only trains")
    watch.start("n1", "--run", str(plan.run_file), role="hosts, trains")
    invite = watch.invite("n1")
    for index in range(2, count + 1):
        planted = bool(plant) and index == count
        watch.start(
            f"n{index}",
            "--join",
            invite,
            role="counts one twice" if planted else "hosts, trains",
            command=PLANTED if planted else (),
        )
    watch.start(_TRAINER, "--join", invite, "--no-host", role="trains only")
    watch.until(
        lambda scene: scene.latest and min(scene.latest.members_by_stage) >= REPLICAS,
        what=f"{REPLICAS} replicas of every stage",
        still_s=_JOIN_STILL_S,
    )
    return count + 1


def _finished(scene: PipelineScene, plan: Plan) -> bool:
    return all((sight.step or 0) >= pipeline_of(plan.run).steps for sight in scene.hosting)


def _leave(watch: Watch[PipelineScene], model: Path) -> list[str]:
    """Export the model, let all nodes drain, and return what went wrong about leaving."""
    helper = watch.look().hosting[0]
    exported = watch.ask(helper.name, "export", timeout_s=_EXPORT_S, path=str(model))
    watch.screen.say(f"exported by {helper.name}: step {exported['step']}, {exported['bytes']:,} B")
    watch.screen.say("draining")
    return watch.leave()


# --- the other side ---


def _compare(plan: Plan, folder: Path, model: Path, screen: Screen) -> Comparison:
    steps = pipeline_of(plan.run).steps
    screen.say("comparing: the same model on the same batches, in one process on all cores")
    return compare(
        plan.run_file,
        model,
        folder / "reference.log",
        on_step=lambda step, loss: screen.progress(
            f"one process: step {step}/{steps}, loss {loss:.3f}"
        ),
    )


def _figures(
    plan: Plan, folder: Path, outcome: Outcome, comparison: Comparison
) -> tuple[Accounts, Figures]:
    journals = [
        list(read_journal(path)) for path in sorted(folder.glob("*/runs/*/records.msgpack"))
    ]
    accounts = audit(journals, stages=pipeline_of(plan.run).stages, expected=comparison.trained_on)
    records, _ = merge_journals(journals)
    steps = max((record.step for record in records), default=0)
    by_victim = counted_by(records, _peer(outcome.node.peer_id))
    lost = outcome.node.step not in by_victim
    served = outcome.joined is not None and counted_by(records, _peer(outcome.joined.peer_id))
    figures = Figures(
        steps=steps,
        tokens=steps * plan.step_tokens,
        initial_loss=comparison.initial_loss,
        final_loss=comparison.final_loss,
        reference_loss=comparison.reference_loss,
        relative_difference=comparison.relative_difference,
        parameter_difference=comparison.parameter_difference,
        nodes_started=outcome.nodes_started,
        nodes_killed=1 if lost else 0,
        trainers_killed=1,
        nodes_joined_late=1 if served else 0,
        microbatches_expected=accounts.expected,
        microbatches_missing=accounts.missing,
        microbatches_repeated=accounts.repeated,
        recovery_seconds_max=max(outcome.node.recovery_s, outcome.trainer.recovery_s),
        tokens_per_second=plan.tokens / outcome.training_s,
        reference_tokens_per_second=comparison.reference_tokens_per_second,
        seconds=process_age_s(),
        **processor(),
    )
    return accounts, figures


def _peer(text: str) -> PeerID:
    return PeerID.from_text(text)
