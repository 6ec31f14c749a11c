"""All nodes lose power at once, again and again, and the run goes on from their disks; at last with fewer nodes."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.preemption.fleet import Fleet, names_of
from benchmarks.preemption.models import checkpoint_model, difference, live_model
from benchmarks.preemption.runs import STAGES, write_run
from node.demo.scenarios.pipeline.comparison import compare
from node.errors import NodeError
from protocols.ledger.view import Record

LOSSES: Final = 5
EVERY_STEPS: Final = 16
"""Between checkpoints."""
_STEPS_BETWEEN: Final = 40
"""Two checkpoints and a half, then a random moment of as many steps as lie between two."""
_STEPS: Final = LOSSES * (_STEPS_BETWEEN + EVERY_STEPS) + 60
_FEWER: Final = 4
_BEGIN_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class _Loss:
    """One loss of power."""

    lost_at: int
    """The last step that anybody had decided."""
    write_s: float
    """What writing a checkpoint took, at most."""
    step_s: float
    """What a step took, on average, since the run had begun or gone on."""

    @property
    def allowed(self) -> int:
        """Steps that may be lost: those between two checkpoints, and those made while one was written."""
        return EVERY_STEPS + max(1, math.ceil(self.write_s / self.step_s))


def power_loss(folder: Path, rng: random.Random, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill all nodes five times and start them again in any order; compare the outcome with a run in one process."""
    run_file = write_run(folder / "power.toml", steps=_STEPS)
    flags = ("--checkpoint-every-steps", str(EVERY_STEPS))
    lost, allowed, resumed_s = [], [], []
    with Fleet(folder / "p", run_file, names_of(), *flags) as fleet:
        fleet.start()
        for number in range(1, LOSSES + 1):
            fleet.wait_whole()
            loss = _lose_power(fleet, rng)
            began_s = time.monotonic()
            if number < LOSSES:
                fleet.start(*rng.sample(fleet.names, len(fleet.names)))
                record = _goes_on(fleet, epoch=number)
            else:
                four = _hold_all_stages(fleet, rng)
                fleet.start(*four, flags=("--no-train",))
                record = _goes_on(fleet, epoch=number)
                apart = _difference_at(fleet, record, folder)
            resumed_s.append(time.monotonic() - began_s)
            lost.append(loss.lost_at - record.step)
            allowed.append(loss.allowed)
            say(
                f"power lost at step {loss.lost_at}, {loss.allowed} steps may be lost: goes on from step"
                f" {record.step} with {len(fleet.nodes)} nodes"
            )
        say(f"parameters of {_FEWER} nodes at step {record.step}, against the disks: {apart}")
        fleet.start(*(name for name in fleet.names if name not in fleet.nodes))
        fleet.wait_step_everywhere(_STEPS)
        model = folder / "power.safetensors"
        live_model(next(iter(fleet.nodes.values())), model)
    against = compare(run_file, model, folder / "reference.log", on_step=lambda step, loss: None)
    ratio = against.final_loss / against.reference_loss
    say(f"held-out loss {against.final_loss:.6f}, unbroken {against.reference_loss:.6f}")
    # The loss that came nearest to what it may lose, so that the two figures belong together.
    worst = max(range(LOSSES), key=lambda index: lost[index] - allowed[index])
    return {
        "power_losses": LOSSES,
        "resumed": len(lost),
        "steps_lost_max": lost[worst],
        "steps_lost_allowed": allowed[worst],
        "steps_lost": lost,
        "resume_seconds_max": round(max(resumed_s), 1),
        "loss_ratio_to_unbroken": round(ratio, 6),
        "parameter_difference": apart,
        "nodes_before": 2 * STAGES,
        "nodes_after": _FEWER,
    }


def _lose_power(fleet: Fleet, rng: random.Random) -> _Loss:
    """Let steps pass, kill all nodes at a random moment, and say how far they had come."""
    first, began_s = fleet.step(), time.monotonic()
    fleet.wait_steps(_STEPS_BETWEEN + rng.randrange(EVERY_STEPS))
    step_s = (time.monotonic() - began_s) / max(1, fleet.step() - first)
    write_s = max(
        node.ask("status")["services"]["checkpoints"]["write_seconds"] or 0.0
        for node in fleet.nodes.values()
    )
    time.sleep(rng.uniform(0.0, step_s))
    fleet.kill_all()
    lost_at = max(record.step for journal in fleet.journals() for record in journal)
    return _Loss(lost_at, write_s, step_s)


def _goes_on(fleet: Fleet, *, epoch: int) -> Record:
    """Wait until the nodes have agreed to go on, and all of them serve; return the first record of the epoch."""
    fleet.wait_whole()
    firsts = {
        record.digest(): record
        for journal in fleet.journals()
        for record in [next((r for r in journal if r.epoch == epoch), None)]
        if record is not None and not record.commits_step
    }
    found = [record for record in firsts.values() if record.index == min(
        r.index for r in firsts.values()
    )]  # fmt: skip
    if len(found) != 1:
        raise NodeError(f"epoch {epoch} began {len(found)} times")
    return found[0]


def _hold_all_stages(fleet: Fleet, rng: random.Random) -> list[str]:
    """Choose four nodes that have all stages on their disks, and are a majority."""
    by_stage: dict[str, list[str]] = {}
    for name in rng.sample(fleet.names, len(fleet.names)):
        newest = max((fleet.folder / name).glob("runs/*/checkpoints/stage+*/*.json"),
                     key=lambda path: path.name)  # fmt: skip
        by_stage.setdefault(newest.parent.name, []).append(name)
    chosen = [names[0] for names in by_stage.values()]
    return chosen + [n for n in fleet.names if n not in chosen][: _FEWER - len(chosen)]


def _difference_at(fleet: Fleet, record: Record, folder: Path) -> float:
    """Compare what the swarm holds, where nobody trains, with what was on the disks at that step."""
    live = live_model(next(iter(fleet.nodes.values())), folder / "live.safetensors")
    if live["step"] != record.step:
        raise NodeError(f"the swarm is at step {live['step']}, it went on from {record.step}")
    checkpoint_model(
        [fleet.folder / name for name in fleet.names], folder / "disks.safetensors", record.step
    )
    return difference(folder / "live.safetensors", folder / "disks.safetensors")
