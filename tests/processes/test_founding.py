"""Who begins a run: nodes that are started at the same instant, and a founder that comes back, make one swarm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node.identity import Identity
from tests.processes.links import Links, open_links
from tests.processes.swarm import ProcessSwarm, pipeline, process_swarm

pytestmark = pytest.mark.process

NAMES = ("first", "second", "third", "fourth")


@pytest.fixture
def links() -> Iterator[Links]:
    with open_links() as opened:
        yield opened


def start_all(swarm: ProcessSwarm, links: Links) -> None:
    """Start all nodes at once with one and the same command line but for their own addresses."""
    flags = ["--run", str(swarm.run_file)]
    for name in NAMES:
        folder = swarm.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        peer = Identity.load_or_create(folder / "identity.key").peer_id
        flags += ["--bootstrap", f"{links.flags_for(name)[1]}/p2p/{peer}"]
    for name in NAMES:
        links.attach(name, swarm.launch(name, *flags, *links.flags_for(name)))


@pytest.mark.parametrize(
    "attempt",
    [0, *(pytest.param(k, marks=pytest.mark.soak) for k in range(1, 10))],
)
def test_four_nodes_started_at_the_same_instant_form_one_swarm(
    attempt: int, links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("founding")) as swarm:
        start_all(swarm, links)
        swarm.wait_whole()
        assert swarm.check_history() > 0
        assert [swarm.records(node)[0].index for node in swarm.living()].count(0) == 1


def test_a_first_node_that_is_killed_comes_back_into_the_run_it_began(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """With the command line it was first started with, and without having dialled anybody itself."""
    with (
        process_swarm(tmp_path_factory.mktemp("founder"), replicas=1) as swarm,
        open_links() as links,
    ):
        flags = ("--run", str(swarm.run_file), *links.flags_for("first"))
        first = swarm.launch("first", *flags)
        links.attach("first", first)
        first.wait_ready()
        for name in NAMES[1:3]:
            links.attach(name, swarm.start(name, *links.flags_for(name)))
        swarm.wait_whole()
        first.family()
        first.kill()
        witness = swarm.nodes["second"]
        swarm.wait_members(2, seen_by=witness)
        again = swarm.launch("first", *flags)
        links.attach("first", again)
        swarm.wait(lambda: pipeline(again)["member"])
        swarm.wait_whole()
        assert swarm.check_history() > 0


@pytest.mark.soak
def test_four_nodes_that_lose_their_power_together_begin_the_run_again_as_one_swarm(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What they had learned is gone with their memory; that nobody holds it any more they find out by asking."""
    with process_swarm(tmp_path_factory.mktemp("power")) as swarm:
        start_all(swarm, links)
        swarm.wait_whole()
        lost = swarm.step(swarm.nodes["first"])
        for node in swarm.living():
            node.family()
        for node in swarm.living():
            node.kill()
        start_all(swarm, links)
        swarm.wait_whole()
        assert {record.step for record in swarm.records(swarm.nodes["first"])} >= {0, 1, lost}
        begun = [
            name
            for name in NAMES
            if [record.index for record in swarm.records(swarm.nodes[name])].count(0) == 2
        ]
        assert len(begun) == 1
