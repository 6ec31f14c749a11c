"""A real node whose cloud takes its machine away."""

from __future__ import annotations

import time

import pytest

from tests.fakes.metadata import MetadataServer, served
from tests.node.processes import Daemon, daemons
from tests.processes.swarm import write_run_file

pytestmark = [pytest.mark.process, pytest.mark.soak]


def test_a_node_that_is_preempted_has_written_what_it_held_and_ends_in_good_order(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("notice")
    flags = ("--run", str(write_run_file(folder, replicas=1, stages=1)), "--threads", "1")
    cloud = MetadataServer()
    with served(cloud.answer) as address, daemons() as started:
        node = Daemon(folder / "node", *flags, "--notices", "aws", "--notices-address", address)
        started.append(node)
        node.wait_ready()
        status = node.wait_until(lambda s: s["services"].get("pipeline", {}).get("step"))
        assert status["services"]["notices"]["problem"] is None
        assert status["services"]["checkpoints"]["count"] == 0
        cloud.gone = True
        told_s = time.monotonic()
        assert node.process.wait(30.0) == 0
        assert time.monotonic() - told_s < 25.0
        assert "notice of aws: terminate at" in node.log.read_text()
        assert list(folder.glob("node/runs/*/checkpoints/stage+0/*.json"))
