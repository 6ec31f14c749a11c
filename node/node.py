"""The bag of a node's subsystems. Only the composition root fills it; services take from it what they need."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from node.checkpoints import Checkpoints
from node.clock import ClockSkew
from node.config import NodeConfig
from node.errors import NodeError
from node.lag import LagMeter
from node.life import NodeLife
from node.limits import MemoryLimit, Usage
from node.membership import Membership
from node.network import Network
from node.paths import Paths
from node.pausing import PausingService
from node.services import ServiceGroup, Trains
from node.twin import TwinWatch
from protocols.health import Health
from protocols.ids import PeerID
from protocols.ports import Directory, Host, Signer
from protocols.run import RunSpec
from protocols.twin import Start
from swarm.mode import Progress

if TYPE_CHECKING:
    from node.http.server import HttpServer
    from swarm.calls import Caller, Guard, Rates


@dataclass(slots=True, kw_only=True)
class Dialled:
    """How the last attempt to reach one bootstrap address went."""

    address: str
    ok: bool
    reason: str
    """Why it failed, for people; empty when it did not."""
    at_s: float
    """trio's clock."""


@dataclass(slots=True, kw_only=True)
class Node:
    """One running node. One fact, one owner: nothing in here is kept twice."""

    config: NodeConfig
    paths: Paths
    signer: Signer
    membership: Membership
    network: Network
    caller: Caller
    guard: Guard
    """One for all services, so that its bounds hold over them together."""
    rates: Rates
    """The volunteer's bounds on traffic; every Caller and Service of this node gets it."""
    life: NodeLife
    rng: random.Random
    services: ServiceGroup
    checkpoints: Checkpoints
    pausing: PausingService
    memory: MemoryLimit
    descriptors_max: int
    started_unix_s: float
    started_s: float
    """trio's clock, for durations."""
    lag: LagMeter = field(default_factory=LagMeter)
    skew: ClockSkew = field(default_factory=ClockSkew)
    usage: Usage | None = None
    """The last measurement; the heartbeat takes it."""
    dialled: dict[str, Dialled] = field(default_factory=dict)
    """By address; bounded by the invite, the settings and what is remembered."""
    run_known: trio.Event = field(default_factory=trio.Event)
    """Set once `membership.spec` is there; services of training are built then."""

    incarnation: int = field(default_factory=lambda: secrets.randbits(62))
    """Of this life of the node: another process with our identity has another one."""
    health: Health = field(default_factory=Health)
    twin: TwinWatch = field(default_factory=TwinWatch)
    http: HttpServer | None = None
    """Metrics, health and the page, where the settings want them."""
    new_epoch: bool = False
    """Of this start: an operator lets the run go on without a majority."""
    fatal: NodeError | None = None
    """Why this node has to leave, when it is for a person to do something about it."""
    founding_known: trio.Event = field(default_factory=trio.Event)
    """Set once it is known whether this node begins the run (`membership.first`) or joins it."""

    @property
    def start(self) -> Start:
        return Start(self.started_unix_s, self.incarnation)

    @property
    def peer_id(self) -> PeerID:
        return self.signer.peer_id

    @property
    def host(self) -> Host:
        return self.network.host

    @property
    def directory(self) -> Directory:
        return self.network.directory

    @property
    def run(self) -> RunSpec:
        """The run. Raises NodeError before it is known: wait for `run_known`."""
        if self.membership.spec is None:
            raise NodeError("the run file has not been fetched from a peer yet")
        return self.membership.spec

    def progress(self) -> Progress:
        """How training goes; an empty one before it has begun."""
        for member in self.services.members:
            if isinstance(member.service, Trains):
                return member.service.progress()
        return Progress()

    @property
    def task_seconds(self) -> float:
        """How long the threads that compute have been at one task, 0 when at none."""
        for member in self.services.members:
            if isinstance(member.service, Trains):
                return member.service.task_seconds
        return 0.0

    @property
    def trains(self) -> bool:
        """Training has begun: a mode is there, up or being started again."""
        return any(isinstance(member.service, Trains) for member in self.services.members)

    def refuses_work(self) -> str | None:
        """Why this node takes no new work just now, or None. Services answer "busy" or "draining" with it."""
        if not self.life.takes_work:
            return "this node is leaving"
        return self.memory.reason
