"""The daemon's frame on the in-memory network: the order of starting and leaving, with a training of the test's own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from node.config import NodeConfig
from node.control.client import ControlClient
from node.control.server import listen
from node.daemon import serve
from node.errors import BusyError, ControlError, NodeError
from node.identity import Identity
from node.network import Network
from node.node import Node
from node.paths import Paths
from node.services import Service
from node.systemd import Supervisor
from protocols.life import LifeState
from swarm.mode import Progress
from tests.fakes.directory import MemoryDht
from tests.fakes.host import MemoryNetwork
from tests.node.http.client import get
from tests.node.nodes import RUN_TOML, make_startup

pytestmark = pytest.mark.trio


class Recorder(Supervisor):
    """Stands in for systemd; sets an event when the node is ready."""

    def __init__(self) -> None:
        super().__init__({})
        self.is_ready = trio.Event()
        self.stopped_within_s: float | None = None

    def ready(self) -> None:
        self.is_ready.set()

    def stopping(self, deadline_s: float) -> None:
        self.stopped_within_s = deadline_s


class Training:
    """A service that holds work until it is drained."""

    name = "pipeline"

    def __init__(self, node: Node) -> None:
        self.node = node
        self.up = trio.Event()
        self.drained = False
        self.network_was_there = False
        self.can_drain = trio.Event()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self.node.life.needs_state(self.name, "fetching stage 1")
        self.up.set()
        task_status.started()
        await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> None:
        await self.can_drain.wait()
        self.network_was_there = await self.node.directory.announce("still/here", b"x", 60)
        self.drained = True

    def status(self) -> dict[str, Any]:
        return {"stage": 1, "step": 41}

    task_seconds = 0.0

    def progress(self) -> Progress:
        return Progress(in_run=True, role="stage 1", step=41)

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"bytes": 0, "step": 41}


@asynccontextmanager
async def memory_network(
    config: NodeConfig, paths: Paths, identity: Identity, rng: random.Random
) -> AsyncIterator[Network]:
    async with MemoryNetwork.open() as network:
        host = network.join(identity.peer_id)
        yield Network(host=host, directory=MemoryDht().directory(identity))


class Scene:
    """One daemon in this process, and what the test does to it."""

    def __init__(self, folder: Path, **flags: Any) -> None:
        run_file = folder / "run.toml"
        run_file.write_text(RUN_TOML)
        self.startup = make_startup(folder / "node", run=str(run_file), **flags)
        self.supervisor = Recorder()
        self.training: Training | None = None
        self.left = False

    def build(self, node: Node) -> Iterable[Service]:
        self.training = Training(node)
        return [self.training]

    def play(self, script: Callable[[Scene, trio.Nursery], Awaitable[None]]) -> None:
        async def daemon() -> None:
            await serve(
                self.startup,
                connect=memory_network,
                build_services=self.build,
                supervisor=self.supervisor,
            )
            self.left = True

        async def main() -> None:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(daemon)
                    await self.supervisor.is_ready.wait()
                    await script(self, nursery)

        trio.run(main)

    async def ask(self, method: str, **params: Any) -> Any:
        def call() -> Any:
            with ControlClient(self.startup.effective.paths.socket) as client:
                return client.call(method, **params)

        return await trio.to_thread.run_sync(call)

    async def trained(self) -> Training:
        while self.training is None:
            await trio.lowlevel.checkpoint()
        await self.training.up.wait()
        return self.training


def test_a_drain_ends_work_first_and_the_network_last(tmp_path: Path) -> None:
    async def script(scene: Scene, nursery: trio.Nursery) -> None:
        training = await scene.trained()
        assert (await scene.ask("status"))["life"]["state"] == "syncing"
        await scene.ask("drain", deadline_s=7)
        assert training.node.life.snapshot.state is LifeState.DRAINING
        assert training.node.refuses_work() == "this node is leaving"
        # The control socket answers while draining, since a drain may take long.
        assert (await scene.ask("status"))["life"]["state"] == "draining"
        training.can_drain.set()

    scene = Scene(tmp_path)
    scene.play(script)
    assert scene.left
    assert scene.supervisor.stopped_within_s == 7
    assert scene.training is not None
    assert scene.training.drained
    assert scene.training.network_was_there


def test_leaving_at_once_waits_for_no_drain(tmp_path: Path) -> None:
    async def script(scene: Scene, nursery: trio.Nursery) -> None:
        training = await scene.trained()
        await scene.ask("drain", deadline_s=3600)
        training.node.life.leave("asked by the test")

    scene = Scene(tmp_path)
    scene.play(script)
    assert scene.left
    assert scene.training is not None
    assert not scene.training.drained


def test_status_and_public_facts_come_from_the_services(tmp_path: Path) -> None:
    async def script(scene: Scene, nursery: trio.Nursery) -> None:
        training = await scene.trained()
        status = await scene.ask("status")
        assert status["services"]["pipeline"]["step"] == 41
        assert status["life"]["reason"] == "first node of a new swarm"
        exported = await scene.ask("export", path="/tmp/never-written")
        assert exported["step"] == 41
        with pytest.raises(ControlError) as refused:
            await scene.ask("export", path="/nodir/x.st")
        assert refused.value.reason == "the folder /nodir does not exist"
        assert "make it" in refused.value.hint
        with pytest.raises(ControlError, match="is no file"):
            await scene.ask("export", path="/dev/null")
        training.can_drain.set()
        await scene.ask("drain")

    Scene(tmp_path).play(script)


def test_a_second_daemon_on_the_same_socket_is_refused_before_it_is_ready(tmp_path: Path) -> None:
    async def script(scene: Scene, nursery: trio.Nursery) -> None:
        training = await scene.trained()
        with pytest.raises(BusyError):
            listen(scene.startup.effective.paths.socket)
        training.can_drain.set()
        await scene.ask("drain")

    Scene(tmp_path).play(script)


def test_a_transport_that_cannot_start_is_an_error_a_person_can_read(tmp_path: Path) -> None:
    @asynccontextmanager
    async def broken(
        config: NodeConfig, paths: Paths, identity: Identity, rng: random.Random
    ) -> AsyncIterator[Network]:
        if config.listen:
            raise BusyError("cannot listen on /ip4/127.0.0.1/tcp/1", "choose another with --listen")
        yield Network(host=None, directory=None)  # type: ignore[arg-type]

    scene = Scene(tmp_path)

    async def main() -> None:
        await serve(scene.startup, connect=broken, supervisor=scene.supervisor)

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(NodeError, match="cannot listen")
    assert not scene.supervisor.is_ready.is_set()


def test_http_is_served_from_ready_until_the_node_has_left(tmp_path: Path) -> None:
    async def script(scene: Scene, nursery: trio.Nursery) -> None:
        training = await scene.trained()
        address = (await scene.ask("status"))["network"]["http"]["address"]
        port = int(address.rpartition(":")[2])
        assert (await get(port, "/startupz")).status == 200
        assert (await get(port, "/readyz")).status == 503
        training.node.life.has_state("pipeline", "has it")
        assert (await get(port, "/readyz")).status == 200
        assert "murmura_step 41.0" in (await get(port, "/metrics")).text
        training.task_seconds = 999.0
        assert (await get(port, "/healthz")).status == 503
        await scene.ask("drain")
        assert (await get(port, "/readyz")).status == 503
        training.can_drain.set()

    scene = Scene(tmp_path, http_listen="0")
    scene.play(script)
    assert scene.left


def test_without_the_setting_nothing_of_http_is_there(tmp_path: Path) -> None:
    async def script(scene: Scene, nursery: trio.Nursery) -> None:
        training = await scene.trained()
        assert (await scene.ask("status"))["network"]["http"] is None
        training.can_drain.set()
        await scene.ask("drain")

    Scene(tmp_path).play(script)
