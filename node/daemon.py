"""The composition root: what a node is made of, in which order it starts, and how it leaves.

Starting is local and quick: lock, identity, transport, control socket, READY. Only then torch is imported, peers are
looked for, and services of training begin. Leaving is nested: services drain while everything they need still runs.

    infrastructure nursery      control socket, transport, directory, calls, heartbeat, signals
      services nursery          joining, then what `node.training.build_services` returns
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import trio

from node import logs
from node.checkpoints import Checkpoints
from node.clock import unix_s
from node.config import Effective, NodeConfig
from node.control.commands import command_table
from node.control.server import ControlServer, listen
from node.errors import NodeError
from node.files import exclusive
from node.heartbeat import beat, watch_health
from node.identity import Identity
from node.joining import Joining
from node.life import NodeLife
from node.limits import (
    MemoryLimit,
    be_nice,
    cap_library_threads,
    process_age_s,
    raise_descriptor_limit,
)
from node.membership import Membership, resolve
from node.network import Network, open_network
from node.node import Node
from node.notices import Notices, cloud_of
from node.paths import Paths
from node.pausing import PausingService
from node.public import serve_public
from node.runfile import memory_max_bytes
from node.services import ServiceGroup
from node.starter import BuildServices, TrainingStarter
from node.systemd import Supervisor
from node.training import build_services
from protocols.notices import ADDRESS
from protocols.replies import Hello
from protocols.run import RunSpec
from swarm.calls import Caller, Guard, Rates

log = logging.getLogger(__name__)

OpenNetwork: TypeAlias = Callable[
    [NodeConfig, Paths, Identity, random.Random], AbstractAsyncContextManager[Network]
]


_OF_ONE_START: Final = frozenset({"--new-epoch", "--new-swarm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """What is settled before the event loop runs."""

    effective: Effective
    identity: Identity
    membership: Membership
    descriptors_max: int
    new_epoch: bool = False


def run_daemon(effective: Effective, *, new_epoch: bool = False) -> None:
    """Be a node until it has left. Raises NodeError for what a person can fix; returns after a drained stop.

    A node that has let go of everything in order to pause goes on as its own program, started anew in this process.
    """
    config = effective.config
    logs.set_up(level=config.log_level, style=config.log_format)
    be_nice(config.nice)
    cap_library_threads(config.compute_threads)
    with prepared(effective, new_epoch=new_epoch) as startup:
        try:
            pauses = trio.run(serve, startup)
        except BaseExceptionGroup as group:
            raise what_a_person_can_fix(group) from group
    if pauses:
        _start_again()


def _start_again() -> NoReturn:
    """Replace this process by the program it was started with. Flags that are for one start only are left out."""
    sys.stdout.flush()
    logging.shutdown()
    arguments = [word for word in sys.orig_argv[1:] if word not in _OF_ONE_START]
    os.execv(sys.executable, [sys.orig_argv[0], *arguments])


@contextmanager
def prepared(
    effective: Effective, *, run: RunSpec | None = None, new_epoch: bool = False
) -> Iterator[Startup]:
    """Make the folders, take the lock, and settle identity and run; the socket goes when the block ends. Raises NodeError."""
    config, paths = effective.config, effective.paths
    paths.prepare()
    with exclusive(paths.lock):
        identity = Identity.load_or_create(paths.identity)
        try:
            yield Startup(
                effective=effective,
                identity=identity,
                membership=resolve(config, paths, identity.peer_id, run=run),
                descriptors_max=raise_descriptor_limit(),
                new_epoch=new_epoch,
            )
        finally:
            paths.socket.unlink(missing_ok=True)


async def serve(
    startup: Startup,
    *,
    connect: OpenNetwork = open_network,
    build_services: BuildServices = build_services,
    supervisor: Supervisor | None = None,
    opened: Callable[[Node], None] | None = None,
) -> bool:
    """Start, work, and leave. True when this node left only to pause.

    Args:
      opened: told of the node before READY. Whoever embeds one gives it: then signals and standard output are left alone.
      connect: opens transport and directory; tests pass the in-memory ones.
      build_services: called in a thread once the run is known; it may load torch.
    """
    supervisor = supervisor or Supervisor()
    config, paths = startup.effective.config, startup.effective.paths
    life = NodeLife(
        isolated_after_s=config.isolated_after_s,
        first=startup.membership.first,
        drain_s=config.drain_s,
    )
    node: Node | None = None
    async with trio.open_nursery() as infrastructure:
        if opened is None:
            await infrastructure.start(_watch_signals, life)
        infrastructure.start_soon(_cancel_when_leaving, life, infrastructure.cancel_scope)
        rng = random.Random()  # jitter only: nothing that peers must agree on is drawn from it
        async with (
            listen(paths.socket) as listener,
            connect(config, paths, startup.identity, rng) as network,
        ):
            node = assemble(startup, life, network, rng)
            await serve_public(node)
            infrastructure.start_soon(ControlServer(command_table(node)).serve, listener)
            await infrastructure.start(node.caller.run)
            infrastructure.start_soon(node.lag.run)
            infrastructure.start_soon(beat, node, supervisor)
            infrastructure.start_soon(watch_health, node)
            if config.http_listen:
                await infrastructure.start(_serve_http, node)
            if opened is not None:
                node.pausing.embedded = True
                opened(node)
            _say_ready(node, supervisor, aloud=opened is None)
            await _work(node, supervisor, build_services)
            infrastructure.cancel_scope.cancel()
    if node is not None and node.fatal is not None:
        raise node.fatal
    return life.starts_again


async def _serve_http(node: Node, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    # Loaded where it is wanted: 13 MB.
    from node.http.server import open_server

    async with open_server(node) as server:
        node.http = server
        await server.run(task_status=task_status)


def assemble(startup: Startup, life: NodeLife, network: Network, rng: random.Random) -> Node:
    config, membership = startup.effective.config, startup.membership
    guard = Guard()
    rates = Rates(
        upload_bytes_per_s=_bytes_per_s(config.upload_mbit_s),
        download_bytes_per_s=_bytes_per_s(config.download_mbit_s),
    )
    node = Node(
        config=config,
        paths=startup.effective.paths,
        signer=startup.identity,
        membership=membership,
        network=network,
        guard=guard,
        rates=rates,
        caller=Caller(
            network.host,
            hello=Hello(run=membership.run_id),
            run_key=membership.run_key,
            guard=guard,
            rates=rates,
        ),
        life=life,
        rng=rng,
        services=ServiceGroup(rng),
        checkpoints=Checkpoints(config, membership.folder, membership.run_id),
        pausing=PausingService(config, startup.effective.paths.state_dir, life),
        memory=MemoryLimit(memory_max_bytes(config)),
        descriptors_max=startup.descriptors_max,
        new_epoch=startup.new_epoch,
        started_unix_s=unix_s(),
        started_s=trio.current_time(),
    )
    if membership.spec is not None:
        node.run_known.set()
    return node


def _bytes_per_s(mbit_s: float | None) -> float | None:
    return None if mbit_s is None else mbit_s * 1e6 / 8


def _say_ready(node: Node, supervisor: Supervisor, *, aloud: bool) -> None:
    """Whoever waits for READY finds the invite printed already."""
    node.life.started()
    if aloud and node.membership.first and not node.membership.run_key:
        invite = node.membership.invite(node.host.addresses())
        # The one line of this command that is a result, so it goes to stdout. A private run's invite is a secret and
        # stdout may be a log: `murmura invite` prints that one.
        sys.stdout.write(f"murmura run --join {invite.to_text()}\n")
        sys.stdout.flush()
        if not invite.addresses:
            log.warning(
                "this invite names no address: without a network nobody can join through it"
            )
    log.info(
        "ready: peer_id=%s socket=%s after_s=%.2f descriptors_max=%d",
        node.peer_id,
        node.paths.socket,
        process_age_s(),
        node.descriptors_max,
    )
    supervisor.ready()


async def _work(node: Node, supervisor: Supervisor, build: BuildServices) -> None:
    """Run the services until the node is asked to leave, then let them drain."""
    async with trio.open_nursery() as services:
        for service in (*node.network.services, node.pausing, Joining(node), node.checkpoints):
            services.start_soon(node.services.keep_running, service)
        if (cloud := cloud_of(node.config)) is not None and not node.pausing.embedded:
            address = node.config.notices_address or ADDRESS
            services.start_soon(
                node.services.keep_running, Notices(cloud, node.life, address=address)
            )
        starter = TrainingStarter(node, services, build)
        services.start_soon(node.services.keep_running, starter)
        await node.life.drain_asked.wait()
        if not node.life.starts_again:
            supervisor.stopping(node.life.drain_s)
        began_s = trio.current_time()
        await node.services.drain(node.life.drain_s)
        log.info("drained: after_s=%.2f", trio.current_time() - began_s)
        services.cancel_scope.cancel()
    node.life.drained()


async def _watch_signals(life: NodeLife, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    """The first SIGTERM or SIGINT drains, the next one leaves at once.

    So does SIGHUP, of a terminal that is closed, unless nohup has us ignore it; it often comes twice, so it only drains.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with trio.open_signal_receiver(*numbers) as received:
        task_status.started()
        async for number in received:
            name = signal.Signals(number).name
            if not life.drain_asked.is_set() or life.starts_again:
                life.drain(name)
            elif number != signal.SIGHUP:
                life.leave(f"{name} again")


async def _cancel_when_leaving(life: NodeLife, scope: trio.CancelScope) -> None:
    await life.leave_asked.wait()
    scope.cancel()


def what_a_person_can_fix(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first NodeError inside, or the group when it is a bug that wants its whole traceback."""
    found = group.split(NodeError)[0]
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]  # type: ignore[assignment]
    return found if isinstance(found, NodeError) else group
