"""Half of the nodes are taken away inside ten seconds, as spot machines are, and come back later in any order."""

from __future__ import annotations

import functools
import random
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node import exit_codes
from node.demo.scenarios.pipeline.accounts import audit
from node.demo.scenarios.pipeline.comparison import compare
from node.demo.scenarios.pipeline.figures import PARAMETER_DIFFERENCE_MAX
from node.identity import Identity
from protocols.ids import PeerID
from protocols.ledger.view import Record
from tests.node.processes import Daemon
from tests.processes.forked import ForkedDaemon
from tests.processes.swarm import MICROBATCHES, STAGES, ProcessSwarm, pipeline, process_swarm

pytestmark = [pytest.mark.process, pytest.mark.soak]

NAMES = tuple(f"n{number}" for number in range(8))
STEPS = 600
WITHIN_S = 10.0
EVERY = 8
FLAGS = ("--checkpoint-every-steps", str(EVERY))


@dataclass(frozen=True, slots=True)
class Preemption:
    """Who goes, when, how, and in which order they come back."""

    went: tuple[tuple[float, str, signal.Signals], ...]
    """(seconds after the first notice, name, signal), in the order of time."""
    back: tuple[tuple[float, str], ...]
    """(seconds after the one before, name)."""


def draw(seed: int) -> Preemption:
    """Draw half of the nodes. An even seed takes them faster than the others notice, every fourth without any notice."""
    rng = random.Random(f"preemption/{seed}")
    victims = rng.sample(NAMES, len(NAMES) // 2)
    within_s = WITHIN_S if seed % 2 else 0.5
    signals = (signal.SIGTERM, signal.SIGKILL) if seed % 4 else (signal.SIGKILL,)
    went = sorted((rng.uniform(0, within_s), name, rng.choice(signals)) for name in victims)
    back = tuple((rng.uniform(0, 3), name) for name in rng.sample(victims, len(victims)))
    return Preemption(tuple(went), back)


class Fleet:
    """Eight nodes, each with one command line for all its lives."""

    def __init__(self, swarm: ProcessSwarm) -> None:
        self.swarm = swarm
        self._entries: dict[str, tuple[str, ...]] = {}

    def start(self, name: str) -> ForkedDaemon:
        swarm = self.swarm
        if name not in self._entries:
            first = not self._entries
            self._entries[name] = self._first_entry() if first else ("--join", swarm.invite())
        return swarm.launch(name, *self._entries[name], *FLAGS)

    def _first_entry(self) -> tuple[str, ...]:
        """The first has an address that stays: who was killed a moment after it came in knows no other."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        return ("--run", str(self.swarm.run_file), "--listen", f"/ip4/127.0.0.1/tcp/{port}")

    def preempt(self, plan: Preemption) -> None:
        """Have them go at their moments, then start them again. A notice leads to exit 0."""
        began_s = time.monotonic()
        for at_s, name, number in plan.went:
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            self.swarm.nodes[name].family()
            self.swarm.nodes[name].process.send_signal(number)
        for _, name, number in plan.went:
            code = self.swarm.nodes[name].process.wait(30)
            assert code == (exit_codes.OK if number is signal.SIGTERM else -number), name
            assert self.swarm.nodes[name].left_behind() == set()
        for after_s, name in plan.back:
            time.sleep(after_s)
            self.start(name)


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Eight nodes that train, each with a checkpoint on its disk."""
    folder = tmp_path_factory.mktemp("preemption")
    with process_swarm(folder, steps=STEPS, dtype="float64") as swarm:
        fleet = Fleet(swarm)
        for name in NAMES:
            node = fleet.start(name)
            if name == NAMES[0]:
                node.wait_ready()
        swarm.wait_whole()
        swarm.wait(lambda: all(checkpoints(node) for node in swarm.living()))
        yield fleet


def checkpoints(node: Daemon) -> int:
    return int(node.ask("status")["services"]["checkpoints"]["count"])


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_half_of_the_nodes_go_inside_ten_seconds_and_come_back(
    fleet: Fleet, seed: int, tmp_path: Path
) -> None:
    fleet.preempt(draw(seed))
    check_end(fleet, tmp_path)


@pytest.mark.parametrize("decide", [False, True], ids=["the rest waits", "the rest decides"])
def test_all_nodes_of_a_stage_are_killed_at_once_and_the_run_goes_on_from_a_checkpoint(
    fleet: Fleet, decide: bool, tmp_path: Path
) -> None:
    """Of two halves the one with the smallest PeerID decides. If that is the one that was killed, the rest hears that it is
    back; else the killed are members again at once, and after a while the lead has all go back to their disks."""
    swarm = fleet.swarm
    smallest = min(NAMES, key=lambda name: peer_of(swarm.nodes[name]))
    killed = int(pipeline(swarm.nodes[smallest])["stage"]) ^ decide
    victims = [name for name in NAMES if pipeline(swarm.nodes[name])["stage"] == killed]
    assert len(victims) == len(NAMES) // 2
    went = tuple((0.0, name, signal.SIGKILL) for name in victims)
    fleet.preempt(Preemption(went, tuple((1.0, name) for name in reversed(victims))))
    swarm.wait(lambda: begun_again(swarm), patience_s=90.0)
    check_end(fleet, tmp_path)
    assert min(begun_again(swarm), key=lambda record: record.index).step % EVERY == 0


def begun_again(swarm: ProcessSwarm) -> list[Record]:
    """Return the records that were decided after the nodes went back to their disks."""
    return [record for node in swarm.living() for record in swarm.records(node) if record.epoch]


def peer_of(node: Daemon) -> PeerID:
    return Identity.load_or_create(node.paths.state_dir / "identity.key").peer_id


def check_end(fleet: Fleet, folder: Path) -> None:
    """All of them train to the last step, and the model is the one that one process makes, each microbatch counted once."""
    swarm = fleet.swarm
    swarm.wait_whole()
    assert swarm.step(swarm.nodes[NAMES[0]]) < STEPS, "they came back to a run that was over"
    for goal in range(50, STEPS + 1, 50):
        swarm.wait(functools.partial(have_reached, swarm, goal))
    model = folder / "model.safetensors"
    assert swarm.living()[-1].command("export", str(model)).returncode == 0
    run, log = swarm.run_file, folder / "reference.log"
    compared = compare(run, model, log, on_step=lambda step, loss: None)
    assert compared.trained_on == {s: list(range(MICROBATCHES)) for s in range(1, STEPS + 1)}
    journals = [swarm.records(node) for node in swarm.nodes.values()]
    accounts = audit(journals, stages=STAGES, expected=compared.trained_on)
    assert accounts.problems == ()
    assert (accounts.missing, accounts.repeated) == (0, 0)
    assert compared.parameter_difference <= PARAMETER_DIFFERENCE_MAX["float64"]


def have_reached(swarm: ProcessSwarm, step: int) -> bool:
    return all(swarm.step(node) >= step for node in swarm.living())
