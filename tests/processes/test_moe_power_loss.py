"""A moe run of real daemons that loses power everywhere goes on from its disks: every expert, and every trainer's trunk."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from node.identity import Identity
from swarm.data.text import read_text
from tests.node.processes import Daemon
from tests.processes.links import Links, open_links
from tests.processes.swarm import ProcessSwarm, process_swarm

pytestmark = pytest.mark.process

NAMES = ("first", "second", "third")
EXPERTS = 8
STEPS = 40
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
steps = {steps}
"""


@pytest.fixture
def links() -> Iterator[Links]:
    with open_links() as opened:
        yield opened


def write_run(swarm: ProcessSwarm, *, steps: int, start: str = "") -> None:
    text = swarm.folder / "text"
    swarm.run_file = swarm.folder / "moe.toml"
    sha256 = read_text(str(text), bytes_max=16 << 20).sha256
    swarm.run_file.write_text(RUN.format(text=text, sha256=sha256, steps=steps) + start)


def start(swarm: ProcessSwarm, links: Links, *names: str) -> None:
    flags = ["--run", str(swarm.run_file), "--checkpoint-every-s", "0.5"]
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
        write_run(swarm, steps=1_000_000)
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


@pytest.mark.soak
def test_a_run_that_is_over_is_prolonged_and_who_has_no_file_fetches_what_it_hosts(
    links: Links, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("moe")) as swarm:
        write_run(swarm, steps=STEPS)
        start(swarm, links, *NAMES)
        swarm.wait(lambda: hosted(swarm) == EXPERTS and min(trained(swarm)) == STEPS)
        first, model = swarm.nodes["first"], tmp_path / "model.safetensors"
        done = first.command("export", str(model), "--checkpoint")
        assert done.returncode == 0, done.stderr
        table = done.stdout[done.stdout.index("[start]") :]
        listed = first.command("checkpoints", "list").stdout
        assert listed.endswith(table), "the same that `checkpoints list` prints"
        again = tmp_path / "again.safetensors"
        exported = first.command("checkpoints", "export", str(again))
        assert exported.returncode == 0, exported.stderr
        whole, of_disk = load_file(model), load_file(again)
        assert whole.keys() == of_disk.keys()
        experts = [name for name in whole if ".mlp.experts." in name]
        assert len(experts) == 2 * EXPERTS
        assert all(torch.equal(whole[name], of_disk[name]) for name in experts)
        swarm.kill_all()

        write_run(swarm, steps=STEPS + 20, start="\n" + table)
        check = first.command("config", "check", str(swarm.run_file))
        assert "the whole checkpoint is here and fits" in check.stdout, check.stdout + check.stderr
        start(swarm, links, *NAMES)
        swarm.wait(
            lambda: hosted(swarm) == EXPERTS and min(trained(swarm)) == STEPS + 20, patience_s=120
        )
        for name, node in swarm.nodes.items():
            assert moe(node)["experts_lost"] == moe(node)["experts_adopted"] == 0, name
        states = [node.ask("status")["life"]["state"] for node in swarm.living()]
        assert states == ["serving"] * 3
        fetched = [
            path.parent.name
            for name in ("second", "third")
            for path in (swarm.folder / name).glob("**/start/*/*.safetensors")
        ]
        assert "trunk" in fetched
        assert any(name.startswith("expert+") for name in fetched)


def steps_of(node: Daemon) -> dict[str, int]:
    """Return expert -> steps of what a node hosts."""
    return {row["expert"]: row["steps"] for row in moe(node).get("table", ()) if row["here"]}


@pytest.mark.soak
def test_all_leave_in_good_order_and_who_had_an_expert_last_goes_on_with_it(
    links: Links, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with process_swarm(tmp_path_factory.mktemp("moe")) as swarm:
        write_run(swarm, steps=1_000_000)
        start(swarm, links, *NAMES)
        swarm.wait(lambda: hosted(swarm) == EXPERTS and min(trained(swarm)) >= 20)
        first, second, third = (swarm.nodes[name] for name in NAMES)
        assert first.end(signal.SIGTERM) == 0
        swarm.wait(lambda: hosted(swarm) == EXPERTS)
        at = min(trained(swarm))
        swarm.wait(lambda: min(trained(swarm)) >= at + 20)
        assert second.end(signal.SIGTERM) == 0
        swarm.wait(lambda: len(steps_of(third)) == EXPERTS)
        before = steps_of(third)
        assert third.end(signal.SIGTERM) == 0

        start(swarm, links, "first")
        swarm.wait(lambda: "back with experts on disk" in swarm.nodes["first"].log.read_text())
        time.sleep(5.0)
        assert not steps_of(swarm.nodes["first"]), "its copies are old, and it knows that"
        start(swarm, links, "third")
        swarm.wait(lambda: len(steps_of(swarm.nodes["third"])) == EXPERTS)
        after = steps_of(swarm.nodes["third"])
        assert all(after[uid] >= steps for uid, steps in before.items()), (before, after)
