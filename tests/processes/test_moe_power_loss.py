"""A moe run of real daemons that loses power everywhere goes on from its disks: every expert, and every trainer's trunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from node.identity import Identity
from swarm.data.text import read_text
from tests.node.processes import Daemon
from tests.processes.links import Links, open_links
from tests.processes.swarm import ProcessSwarm, process_swarm

pytestmark = pytest.mark.process

NAMES = ("first", "second", "third")
EXPERTS = 8
RUN = """\
name = "experts"
mode = "moe"
[data]
pattern = "{text}"
sha256 = "{sha256}"
[model]
layers = 2
width = 16
heads = 2
context = 16
[moe]
grid = [2, 2]
hidden = 16
k = 2
nodes_to_start = 3
[training]
batch = 4
steps = 1000000
"""


@pytest.fixture
def links() -> Iterator[Links]:
    with open_links() as opened:
        yield opened


def start(swarm: ProcessSwarm, links: Links, *names: str) -> None:
    text = swarm.folder / "text"
    run_file = swarm.folder / "moe.toml"
    sha256 = read_text(str(text), bytes_max=16 << 20).sha256
    run_file.write_text(RUN.format(text=text, sha256=sha256))
    flags = ["--run", str(run_file), "--checkpoint-every-s", "0.5"]
    for name in NAMES:
        folder = swarm.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        peer = Identity.load_or_create(folder / "identity.key").peer_id
        flags += ["--bootstrap", f"{links.flags_for(name)[1]}/p2p/{peer}"]
    for name in names:
        links.attach(name, swarm.launch(name, *flags, *links.flags_for(name)))


def moe(node: Daemon) -> dict[str, Any]:
    section: dict[str, Any] = node.ask("status")["services"].get("moe", {})
    return section


def hosted(swarm: ProcessSwarm) -> int:
    return sum(moe(node).get("experts_hosted", 0) for node in swarm.living())


def trained(swarm: ProcessSwarm) -> list[int]:
    return [moe(node).get("step") or 0 for node in swarm.living()]


def test_all_nodes_lose_power_and_every_expert_and_trunk_goes_on(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("moe")) as swarm:
        start(swarm, links, *NAMES)
        swarm.wait(lambda: hosted(swarm) == EXPERTS and min(trained(swarm)) >= 20)
        swarm.wait(
            lambda: all(
                len(list(node.paths.state_dir.glob("runs/*/checkpoints/*"))) >= EXPERTS // 3 + 1
                for node in swarm.living()
            )
        )
        before = {name: moe(node) for name, node in swarm.nodes.items()}
        swarm.kill_all()
        start(swarm, links, *reversed(NAMES))
        swarm.wait(lambda: hosted(swarm) == EXPERTS and min(trained(swarm)) > 0)
        after = {name: moe(node) for name, node in swarm.nodes.items()}
        assert sum(section["experts_taken_back"] for section in after.values()) == EXPERTS
        for name, section in after.items():
            assert section["experts_lost"] == section["experts_created"] == 0
            assert section["experts_hosted"] == before[name]["experts_hosted"]
            assert section["step"] > before[name]["step"] // 4, "its trunk is not begun anew"
            assert "goes on from its checkpoint: batches=" in swarm.nodes[name].log.read_text()
