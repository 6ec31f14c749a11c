"""A swarm of real daemons that loses power everywhere goes on from its disks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from node.identity import Identity
from protocols.ids import RunID
from swarm.pipeline.vote_file import Kept, read_vote
from tests.processes.forked import ForkedDaemon
from tests.processes.links import Links, open_links
from tests.processes.swarm import ProcessSwarm, pipeline, process_swarm

pytestmark = pytest.mark.process

NAMES = ("first", "second", "third", "fourth")


@pytest.fixture
def links() -> Iterator[Links]:
    with open_links() as opened:
        yield opened


def start(swarm: ProcessSwarm, links: Links, *names: str) -> None:
    """Start nodes with the same command line as before, fixed addresses of all of them in it."""
    flags = ["--run", str(swarm.run_file), "--checkpoint-every-steps", "8"]
    for name in NAMES:
        folder = swarm.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        peer = Identity.load_or_create(folder / "identity.key").peer_id
        flags += ["--bootstrap", f"{links.flags_for(name)[1]}/p2p/{peer}"]
    for name in names:
        links.attach(name, swarm.launch(name, *flags, *links.flags_for(name)))


def test_all_nodes_lose_power_and_go_on_from_the_newest_whole_step(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("power")) as swarm:
        start(swarm, links, *NAMES)
        swarm.wait_whole()
        swarm.wait_steps(20, seen_by=swarm.nodes["first"])
        swarm.kill_all()
        lost_at = max(record.step for record in swarm.records(swarm.nodes["first"]))
        start(swarm, links, *reversed(NAMES))
        swarm.wait_whole()
        records = swarm.records(swarm.nodes["first"])
        begun = next(record for record in records if record.epoch == 1)
        assert begun.step % 8 == 0
        assert lost_at - 16 <= begun.step <= lost_at
        assert max(record.step for record in records if record.epoch == 1) > begun.step
        begins = [r.index for node in swarm.living() for r in swarm.records(node)].count(0)
        assert begins == 1, "it was begun once, and not anew"


@pytest.mark.soak
def test_a_torn_checkpoint_is_refused_and_its_node_joins_or_goes_back(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("torn")) as swarm:
        start(swarm, links, *NAMES)
        swarm.wait_whole()
        swarm.wait_steps(20, seen_by=swarm.nodes["first"])
        swarm.kill_all()
        folder = swarm.nodes["second"].paths.state_dir
        newest = max(folder.glob("runs/*/checkpoints/*/*.safetensors"))
        newest.write_bytes(newest.read_bytes()[:-7])
        start(swarm, links, *NAMES)
        swarm.wait_whole()
        second = swarm.nodes["second"]
        refused = json.loads(second.command("status", "--json").stdout)["services"]["checkpoints"]
        assert "bytes, its manifest says" in refused["refused"][0]["reason"]
        assert pipeline(second)["member"]


@pytest.mark.soak
def test_a_vote_that_cannot_be_read_is_refused_and_its_node_goes_on_with_the_others(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("vote")) as swarm:
        start(swarm, links, *NAMES)
        swarm.wait_whole()
        swarm.wait_steps(20, seen_by=swarm.nodes["first"])
        swarm.kill_all()
        (folder,) = swarm.nodes["second"].paths.state_dir.glob("runs/*")
        vote = folder / "vote.msgpack"
        vote.write_bytes(b"torn")
        start(swarm, links, *NAMES)
        swarm.wait_whole()
        assert pipeline(swarm.nodes["second"])["member"]
        lines = swarm.nodes["second"].log.read_text().splitlines()
        refused = [line for line in lines if "restarting: what this node has voted" in line]
        assert len(refused) == 1, "and its service is not begun again and again"
        run = RunID(bytes.fromhex(folder.name))
        swarm.wait(lambda: vote.read_bytes() != b"torn")
        assert read_vote(vote, run) == Kept()


GOSSIP_RUN = """\
name = "alone"
mode = "gossip"
[data]
kind = "digits"
[model]
kind = "mlp"
[gossip]
[training]
batch = 16
steps = 1000000
"""


def test_a_gossip_peer_goes_on_from_its_own_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with process_swarm(tmp_path_factory.mktemp("gossip")) as swarm:
        run_file = swarm.folder / "gossip.toml"
        run_file.write_text(GOSSIP_RUN)
        flags = ["--run", str(run_file), "--threads", "1", "--checkpoint-every-s", "0.2"]
        first = ForkedDaemon(swarm.folder / "peer", *flags)
        swarm.adopt("peer", first)
        swarm.wait(lambda: first.ask("status")["services"]["checkpoints"]["count"])
        first.family()
        first.kill()
        again = ForkedDaemon(swarm.folder / "peer", *flags)
        swarm.adopt("peer", again)
        swarm.wait(lambda: again.ask("status")["services"].get("gossip", {}).get("step"))
        assert "goes on from its checkpoint: batches=" in again.log.read_text()
