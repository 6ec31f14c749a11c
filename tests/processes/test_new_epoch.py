"""An operator's `--new-epoch` with real daemons: survivors go on, and of two sides that both did it the longer one stays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from node.identity import Identity
from protocols.ledger.epoch import history_of
from protocols.ledger.view import Record
from swarm.pipeline.journal import read_journal
from tests.processes.forked import ForkedDaemon
from tests.processes.links import Links, open_links
from tests.processes.swarm import ProcessSwarm, pipeline, process_swarm

pytestmark = [pytest.mark.process, pytest.mark.soak]

NAMES = ("first", "second", "third", "fourth", "fifth")


@pytest.fixture
def links() -> Iterator[Links]:
    with open_links() as opened:
        yield opened


def start(swarm: ProcessSwarm, links: Links, name: str, *extra: str) -> None:
    """Start a node with the command line that all have, fixed addresses of all of them in it."""
    flags = ["--run", str(swarm.run_file), "--checkpoint-every-steps", "8", *extra]
    for other in NAMES:
        folder = swarm.folder / other
        folder.mkdir(mode=0o700, exist_ok=True)
        peer = Identity.load_or_create(folder / "identity.key").peer_id
        flags += ["--bootstrap", f"{links.flags_for(other)[1]}/p2p/{peer}"]
    links.attach(name, swarm.launch(name, *flags, *links.flags_for(name)))


def two_sides(swarm: ProcessSwarm) -> tuple[list[str], list[str]]:
    """Return two pairs of nodes, each with both stages. One node is left over, so that neither pair is a majority."""
    by_stage: dict[int, list[str]] = {0: [], 1: []}
    for name in NAMES:
        by_stage[pipeline(swarm.nodes[name])["stage"]].append(name)
    return [by_stage[0][0], by_stage[1][0]], [by_stage[0][1], by_stage[1][1]]


def last(swarm: ProcessSwarm, name: str) -> Record | None:
    records = swarm.records(swarm.nodes[name])
    return records[-1] if records else None


def goes_on_alone(swarm: ProcessSwarm, *names: str) -> bool:
    """Tell whether nodes are in a history of their own, and have made steps in it."""
    found = [last(swarm, name) for name in names]
    return all(
        record is not None and record.forks and record.step > record.forks[-1].step + 2
        for record in found
    )


def test_survivors_of_a_majority_go_on_when_an_operator_says_so(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("word")) as swarm:
        for name in NAMES:
            start(swarm, links, name)
        swarm.wait_whole()
        swarm.wait_steps(20, seen_by=swarm.nodes["first"])
        survivors, _ = two_sides(swarm)
        swarm.kill_all()
        for name in survivors:
            start(swarm, links, name)
        waits = swarm.nodes[survivors[0]]
        swarm.wait(lambda: "--new-epoch" in (pipeline(waits)["waiting_for"] or ""))
        waits.family()
        waits.kill()
        start(swarm, links, survivors[0], "--new-epoch")
        swarm.wait(lambda: goes_on_alone(swarm, *survivors))


def test_two_sides_that_both_began_an_epoch_become_one_when_they_meet(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("sides")) as swarm:
        for name in NAMES:
            start(swarm, links, name)
        swarm.wait_whole()
        swarm.wait_steps(20, seen_by=swarm.nodes["first"])
        long, short = two_sides(swarm)
        swarm.kill_all()
        for a, b in itertools.product(long, short):
            links.between(a, b).is_cut = True
        start(swarm, links, long[0], "--new-epoch")
        start(swarm, links, long[1])
        swarm.wait(lambda: goes_on_alone(swarm, *long))
        swarm.wait_steps(100, seen_by=swarm.nodes[long[0]])
        start(swarm, links, short[0], "--new-epoch")
        start(swarm, links, short[1])
        swarm.wait(lambda: goes_on_alone(swarm, *short))
        histories = {
            history_of(record.epoch) for n in (long[0], short[0]) if (record := last(swarm, n))
        }
        assert len(histories) == 2, "each side has a history of its own"
        for a, b in itertools.product(long, short):
            links.between(a, b).is_cut = False
        both = [swarm.nodes[name] for name in (*long, *short)]
        swarm.wait(lambda: all(pipeline(node)["member"] for node in both) and _agree(both))
        kept = last(swarm, long[0])
        assert kept is not None
        for name in short:
            _check_gave_up(swarm.nodes[name], kept)
        for name in long:
            assert pipeline(swarm.nodes[name])["history_given_up"] is None


def _agree(nodes: list[ForkedDaemon]) -> bool:
    return all(len(pipeline(node)["members"]) == len(nodes) for node in nodes)


def _check_gave_up(node: ForkedDaemon, kept: Record) -> None:
    """It says so in the log and in its status, and what it had is aside."""
    status = json.loads(node.command("status", "--json").stdout)
    given_up = status["services"]["pipeline"]["history_given_up"]
    assert "its checkpoints are in" in given_up
    assert "another history of this run was met, and it stays" in node.log.read_text()
    (folder,) = node.paths.state_dir.glob("runs/*")
    assert list((folder / "checkpoints-given-up").glob("*/*.safetensors"))
    (journal,) = folder.glob("records.msgpack")
    history = {history_of(record.epoch) for record in read_journal(journal)}
    assert history == {history_of(kept.epoch)}, (
        "nothing of the history that ended is in the journal"
    )
