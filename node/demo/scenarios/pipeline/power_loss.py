"""Another story: every node loses power at once in the middle, and the run goes on from their disks to its end."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.demo.result import Options, Result
from node.demo.scenarios.pipeline.accounts import audit, merge_journals
from node.demo.scenarios.pipeline.comparison import Comparison, compare
from node.demo.scenarios.pipeline.figures import inexact
from node.demo.scenarios.pipeline.plan import REPLICAS, STAGES, STEPS, Plan, make_plan
from node.demo.scenarios.pipeline.sights import PipelineScene, PipelineView
from node.demo.screen import Screen
from node.demo.watching import Watch
from node.limits import process_age_s, processor
from protocols.ledger.view import Record
from protocols.run.pipeline import pipeline_of
from swarm.pipeline.journal import read_journal

EVERY_STEPS_MAX: Final = 16
"""Between checkpoints; fewer in a run of few steps."""
NODES: Final = STAGES * REPLICAS
_FLAGS: Final = ("--threads", "1", "--nice", "0")
_START_STILL_S: Final = 60.0
"""Starting six nodes at once is mostly importing torch, and a slow disk takes its time for that."""
_EXPORT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What was lost with the power, and how the run came back."""

    at_step: int
    """The last that anybody had decided."""
    resumed_step: int | None
    """From which the run went on; None when it did not go on from any."""
    steps_lost_allowed: int
    """Those between two checkpoints, and those made while one is written."""
    resume_s: float
    """From starting the nodes again until all of them serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one loss of power cost. The keys are an interface, as those of `figures.Figures`."""

    steps: int
    nodes: int
    lost_at_step: int
    resumed_step: int | None
    steps_lost: int | None
    steps_lost_allowed: int
    resume_seconds: float
    final_loss: float
    reference_loss: float
    relative_difference: float
    parameter_difference: float
    microbatches_expected: int
    microbatches_missing: int
    """Of the final history, as the next."""
    microbatches_repeated: int
    seconds: float
    processor: str
    cores: int
    date: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data, numbers rounded to what they can say."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("resume_seconds", "seconds"):
            plain[name] = round(plain[name], 1)
        for name in ("final_loss", "reference_loss"):
            plain[name] = round(plain[name], 6)
        for name in ("relative_difference", "parameter_difference"):
            plain[name] = float(f"{plain[name]:.3g}")
        return plain


def run(options: Options, folder: Path, screen: Screen, *, model: Path) -> Result:
    """Run the story. Raises NodeError when it could not finish."""
    plan = make_plan(
        folder / "run.toml", data=options.data, steps=options.steps or STEPS, dtype=options.dtype
    )
    lost, failures = _train(plan, folder, model, screen)
    screen.say("comparing: the same model on the same batches, in one process that never stopped")
    comparison = compare(
        plan.run_file,
        model,
        folder / "reference.log",
        on_step=lambda step, loss: screen.progress(f"one process: step {step}, loss {loss:.3f}"),
    )
    accounts = audit(
        _journals(folder).values(), stages=STAGES, expected=comparison.trained_on
    )  # fmt: skip
    figures = Figures(
        steps=pipeline_of(plan.run).steps,
        nodes=NODES,
        lost_at_step=lost.at_step,
        resumed_step=lost.resumed_step,
        steps_lost=None if lost.resumed_step is None else lost.at_step - lost.resumed_step,
        steps_lost_allowed=lost.steps_lost_allowed,
        resume_seconds=lost.resume_s,
        final_loss=comparison.final_loss,
        reference_loss=comparison.reference_loss,
        relative_difference=comparison.relative_difference,
        parameter_difference=comparison.parameter_difference,
        microbatches_expected=accounts.expected,
        microbatches_missing=accounts.missing,
        microbatches_repeated=accounts.repeated,
        seconds=process_age_s(),
        **processor(),
    )
    return Result(
        figures=figures.to_json(),
        summary=_summary(figures, comparison),
        broken=(*failures, *accounts.problems, *broken_bounds(figures, dtype=options.dtype)),
    )


def broken_bounds(figures: Figures, *, dtype: str) -> Iterator[str]:
    """Yield a sentence for every bound that is broken."""
    yield from inexact(figures, dtype)
    if figures.steps_lost is None:
        yield "the run did not go on from its checkpoints"
    elif not 0 <= figures.steps_lost <= figures.steps_lost_allowed:
        yield f"{figures.steps_lost} steps were lost; at most {figures.steps_lost_allowed} are allowed"


# --- the swarm ---


def _train(plan: Plan, folder: Path, model: Path, screen: Screen) -> tuple[Lost, list[str]]:
    """Train to the middle, lose power, start again, and train to the end."""
    pipeline = pipeline_of(plan.run)
    every = max(2, min(EVERY_STEPS_MAX, pipeline.steps // 6))
    flags = (*_FLAGS, "--data", pipeline.data.pattern, "--checkpoint-every-steps", str(every))
    with Watch(folder, screen, PipelineView(pipeline.steps), flags) as watch:
        commands = _start(watch, plan)
        began_s = time.monotonic()
        first = watch.look().step
        # Two steps before a checkpoint is due, where the most would be lost.
        lose_at = pipeline.steps // 2 // every * every + every - 2
        scene = watch.until(lambda scene: scene.step >= lose_at, what="training")
        step_s = (time.monotonic() - began_s) / max(1, scene.step - first)
        write_s = _write_seconds(watch)
        watch.kill_all()
        at_step = max(record.step for j in _journals(folder).values() for record in j)
        screen.say(f"power lost: SIGKILL to all {NODES} nodes, with step {at_step} committed")
        again_s = time.monotonic()
        for name, command in commands.items():
            watch.start(name, *command, role="starts again")
        watch.until(_all_serve, what="all nodes to serve again", still_s=_START_STILL_S)
        resume_s = time.monotonic() - again_s
        resumed = _resumed_at(folder)
        screen.say(f"resumed: from step {resumed}, {resume_s:.1f} s after the start")
        watch.until(lambda scene: _finished(scene, pipeline.steps), what="the last step")
        watch.ask("n1", "export", timeout_s=_EXPORT_S, path=str(model))
        failures = watch.leave()
    allowed = every + max(1, math.ceil(write_s / step_s))
    lost = Lost(
        at_step=at_step, resumed_step=resumed, steps_lost_allowed=allowed, resume_s=resume_s
    )
    return lost, failures


def _start(watch: Watch[PipelineScene], plan: Plan) -> Mapping[str, tuple[str, ...]]:
    """Start all nodes, wait until every stage has its replicas, and return each one's command line.

    The first has an address that stays, so that the others find it again.
    """
    watch.screen.say(f"start: {NODES} nodes that host and train, and write checkpoints")
    address = f"/ip4/127.0.0.1/tcp/{_free_port()}"
    commands: dict[str, tuple[str, ...]] = {
        "n1": ("--run", str(plan.run_file), "--listen", address)
    }
    watch.start("n1", *commands["n1"], role="hosts, trains")
    invite = watch.invite("n1")
    for number in range(2, NODES + 1):
        commands[f"n{number}"] = ("--join", invite)
        watch.start(f"n{number}", "--join", invite, role="hosts, trains")
    watch.until(
        lambda scene: scene.latest and min(scene.latest.members_by_stage) >= REPLICAS,
        what=f"{REPLICAS} replicas of every stage",
        still_s=_START_STILL_S,
    )
    return commands


def _all_serve(scene: PipelineScene) -> bool:
    return len(scene.hosting) == NODES and all(sight.state == "serving" for sight in scene.hosting)


def _finished(scene: PipelineScene, steps: int) -> bool:
    return len(scene.hosting) == NODES and all((s.step or 0) >= steps for s in scene.hosting)


def _write_seconds(watch: Watch[PipelineScene]) -> float:
    """Return how long writing a checkpoint took, at the slowest node."""
    statuses = [watch.ask(f"n{number}", "status") for number in range(1, NODES + 1)]
    return max(s["services"]["checkpoints"]["write_seconds"] or 0.0 for s in statuses)


def _resumed_at(folder: Path) -> int | None:
    """Return the step from which the epoch after the loss of power began."""
    records, _ = merge_journals(_journals(folder).values())
    return next((record.step for record in records if record.epoch == 1), None)


def _journals(folder: Path) -> dict[str, list[Record]]:
    paths = sorted(folder.glob("*/runs/*/records.msgpack"))
    return {str(path): list(read_journal(path)) for path in paths}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _summary(figures: Figures, comparison: Comparison) -> str:
    """Return what happened, for people."""
    return "\n".join(
        (
            "",
            f"{'':<38}{'swarm':>14}{'one process':>14}",
            f"{'held-out loss after':<38}{figures.final_loss:>14.6f}{figures.reference_loss:>14.6f}",
            f"{'relative difference of the losses':<38}{figures.relative_difference:>14.1e}",
            f"{'largest difference of a parameter tensor':<39}{figures.parameter_difference:>13.1e}",
            "",
            f"{figures.nodes} nodes lost power at step {figures.lost_at_step} of {figures.steps}, and went on from step"
            f" {figures.resumed_step}: {figures.steps_lost} steps were made again.",
            f"Of {figures.microbatches_expected:,} microbatches of the final history {figures.microbatches_missing} are"
            f" missing and {figures.microbatches_repeated} were counted again.",
            f"{comparison.parameters:,} parameters, {figures.seconds:.0f} s on {figures.cores} cores ({figures.processor}).",
            "",
        )
    )
