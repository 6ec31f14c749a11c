"""Plays one scenario: a world without faults but those it orders, told in few lines.

The network is perfect and all messages take equally long, all peers compute equally fast; the seed is fixed. Every promise is
watched as in any other run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocols.core import Blame
from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.messages import Message
from protocols.ledger.trainer import AskClaim, AskSettle, AskStage
from protocols.ledger.view import Record, ids_of
from tests.sim.engine.checker import on
from tests.sim.engine.network import Network, Weather
from tests.sim.pipeline.checkers import ALL, Checker
from tests.sim.pipeline.faults import PipelineFaults
from tests.sim.pipeline.notes import CallEnded, Counted, Decided, StateReached
from tests.sim.pipeline.peer import PipelinePeer
from tests.sim.pipeline.world import PipelineWorld

_SEED: Final = 0
_NAMES: Final = tuple(f"p{number}" for number in range(1, 10))
_LINES_MAX: Final = 60
"""Per command: nobody reads more."""
_COMPUTE_S: Final = 0.2
_LONGEST_S: Final = 60.0
"""What a scenario waits for comes within this time, or not at all."""


@dataclass(frozen=True, slots=True)
class _Fate:
    """What happens to some messages."""

    held: bool
    """Kept until they are released; else lost."""
    kind: str
    sources: frozenset[str]
    targets: frozenset[str]
    """Empty: all."""

    def is_of(self, kind: str, source: str, target: str) -> bool:
        from_there = not self.sources or source in self.sources
        to_there = not self.targets or target in self.targets
        return kind == self.kind and from_there and to_there


class _Wires(Network):
    """Loses or holds what a scenario says; delivers everything else after the same time."""

    fates: list[_Fate]
    held: dict[object, tuple[PeerID, PeerID, Callable[..., None], tuple[Any, ...]]]
    tell: Callable[[PeerID, PeerID, str, object], None]

    def delay_s(self) -> float:
        return self.weather.delay_s

    def cast(
        self, source: PeerID, target: PeerID, deliver: Callable[..., None], *args: Any
    ) -> None:
        kind, what = _kind_of(deliver, args)
        for fate in self.fates:
            if fate.is_of(kind, source.decode(), target.decode()):
                self.tell(source, target, "held" if fate.held else "lost", what)
                if fate.held:  # one copy of each
                    key = (source, target, repr(what))
                    self.held.setdefault(key, (source, target, deliver, args))
                return
        super().cast(source, target, deliver, *args)

    def deliver_all(self) -> None:
        """Let what was held arrive, and hold nothing any more."""
        held, self.held = self.held, {}
        self.fates = [fate for fate in self.fates if not fate.held]
        for way in held.values():
            self._arrive(*way)


def _kind_of(deliver: Callable[..., None], args: tuple[Any, ...]) -> tuple[str, object]:
    """Name what is cast: a message by its class, a trainer's question by what it asks, an answer to it as "answer"."""
    if deliver.__name__ == "receive":
        return type(args[-1]).__name__, args[-1]
    ask = deliver.__self__.ask  # type: ignore[attr-defined]  # of a Call
    if args:
        return "answer", ask
    return ask.kind if isinstance(ask, AskStage) else type(ask).__name__[3:].lower(), ask


class _Narrator(Checker):
    """Says in the trace what a record does, and what else decides a case."""

    world: ScenarioWorld

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record, before = what.record, what.before
        for text in _changes(record, before):
            self.world.log(f"    {text}")

    @on(StateReached)
    def state_reached(self, peer: PipelinePeer, what: StateReached) -> None:
        stage, step = what.stage, what.step
        fetch = peer.stage._fetch
        if fetch is not None and fetch.asked.record.step == step:
            self.world.log(f"{peer.name} has loaded the state of stage {stage} at step {step}")

    @on(Blame)
    def blamed(self, by: PipelinePeer, blame: Blame) -> None:
        peer, reason = blame.peer, blame.reason
        self.world.log(f"{by.name} blames {peer.decode()}: {reason}")

    @on(Counted)
    def counted(self, peer: PipelinePeer, what: Counted) -> None:
        ask = what.ask
        if "count" in self.world.shown:
            self.world.log(f"{peer.name} counts microbatch {ask.microbatch} at stage {ask.stage}")

    @on(CallEnded)
    def call_ended(self, trainer: PipelinePeer, what: CallEnded) -> None:
        ask, event = what.ask, what.event
        if "answer" in self.world.shown:
            self.world.log(f"{ask.peer.decode()} > {trainer.name} {_brief(event)} ({_brief(ask)})")


def _changes(record: Record, before: Record | None) -> Iterator[str]:
    """Say who came, went or begins anew, and what a step counts."""
    was = {m.peer: m for m in before.members} if before is not None else {}
    now = {m.peer: m for m in record.members}
    came, fenced, moved = [], [], []
    for peer, member in now.items():
        former = was.get(peer)
        if former is None or former.incarnation != member.incarnation:
            came.append(peer)
        elif former.stage != member.stage:
            moved.append(peer)
        elif former.since != member.since:
            fenced.append(peer)
    went = [peer for peer in was if peer not in now and peer not in record.let_go]
    for text, peers in (
        ("admitted", came), ("moved", moved), ("begin anew", fenced), ("removed", went), ("let go", record.let_go),
    ):  # fmt: skip
        if peers:
            yield f"{text}: {_join(peers)}"
    if record.commits_step and before is not None:
        for stage in sorted({member.stage for member in before.members}):
            parts = [
                f"{member.peer.decode()} {_ranges(ids_of(record.counted[member.peer]))}"
                for member in before.members
                if member.stage == stage and record.counted.get(member.peer)
            ]
            yield f"stage {stage} counts: {', '.join(parts)}"


def _join(peers: Iterable[PeerID]) -> str:
    return " ".join(peer.decode() for peer in peers)


def _ranges(numbers: Sequence[int]) -> str:
    """Spell ascending numbers briefly: 0-2 5."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return " ".join(str(row[0]) if len(row) == 1 else f"{row[0]}-{row[-1]}" for row in rows)


def _brief(what: object) -> str:
    """Spell a message, a question or an answer in a few words."""
    words = [type(what).__name__]
    for name in (
        "kind", "index", "ballot", "promised", "accepted_at", "step", "microbatch", "stage", "attempt",
        "generation", "code", "settled", "reason",
    ):  # fmt: skip
        value = getattr(what, name, None)
        if value is None:
            continue
        if hasattr(value, "round"):
            value = f"{value.round}/{value.peer.decode()}"
        elif name in ("attempt", "generation"):
            continue  # large numbers that say little
        words.append(f"{name} {getattr(value, 'value', value)}")
    for name in ("ids", "counted"):
        value = getattr(what, name, None)
        if isinstance(value, bytes):
            words.append(f"{name} {_ranges(ids_of(int.from_bytes(value, 'little')))}")
        elif isinstance(value, int):
            words.append(
                name
                if value is True
                else f"{name} {_ranges(ids_of(value))}"
                if value
                else f"not {name}"
            )
    return " ".join(words)


class ScenarioWorld(PipelineWorld):
    """Peers p1, p2, p3 ..., of which p1 founds the run."""

    network: _Wires

    def __init__(
        self, settings: LedgerSettings, names: Iterable[str], *, fetch_s: float, reduce_s: float
    ) -> None:
        checkers = (*ALL, _Narrator)
        super().__init__(
            _SEED,
            settings,
            0,
            PipelineFaults(),
            reduce_s=reduce_s,
            compute_s=_COMPUTE_S,
            checkers=checkers,
        )
        self.fetch_s = fetch_s
        self.network = _Wires(self.clock, random.Random(_SEED), Weather(0.01))
        self.network.fates, self.network.held, self.network.tell = [], {}, self._not_delivered
        self.shown: set[str] = set()
        self.damaged: set[str] = set()
        """Whose reductions end with other bytes than they should."""
        self.told: set[str] = set()
        self.wanted = ""
        """A text that stops the clock when it is logged."""
        for name in names:
            self.add(name)

    def add(self, name: str, *, stage: int | None = None) -> PipelinePeer:
        """Add a peer that asks for a stage, or takes what it is given."""
        peer_id = PeerID(name.encode())
        peer = self.peers[peer_id] = PipelinePeer(self, peer_id, founder=not self.peers)
        peer.wanted_stage = stage
        peer.slowness = 1.0
        return peer

    def log(self, text: str) -> None:
        told_s = "" if text.startswith(" ") else f"{self.clock.now_s:.2f}"
        self.trace.append(f"{told_s:>6}  {text}")
        if self.wanted and self.wanted in text:
            self.clock.stopped = True

    def received(self, peer: PipelinePeer, source: PeerID, message: Message) -> None:
        self._show(source, peer.peer_id, message)

    def call(self, trainer: PipelinePeer, ask: AskStage | AskSettle | AskClaim) -> None:
        kind = ask.kind if isinstance(ask, AskStage) else type(ask).__name__[3:].lower()
        if kind in self.shown:
            self.log(f"{trainer.name} > {ask.peer.decode()} {_brief(ask)}")
        super().call(trainer, ask)

    def damages(self, peer: PipelinePeer) -> bool:
        return peer.name in self.damaged

    def _show(self, source: PeerID, target: PeerID, message: Message) -> None:
        if type(message).__name__ in self.shown:
            self.log(f"{source.decode()} > {target.decode()} {_brief(message)}")

    def _not_delivered(self, source: PeerID, target: PeerID, fate: str, what: object) -> None:
        text = f"{source.decode()} > {target.decode()} {fate}: {_brief(what)}"
        if text not in self.told:  # what is repeated is told once per command
            self.told.add(text)
            self.log(text)


class Play:
    """One scenario, command by command."""

    def __init__(self) -> None:
        self._world: ScenarioWorld | None = None
        self._trains: set[str] | None = None

    @property
    def world(self) -> ScenarioWorld:
        if self._world is None:
            raise ValueError("a scenario begins with `swarm`")
        return self._world

    def do(self, commands: Iterable[str]) -> list[str]:
        """Do these, one after the other; return what was told meanwhile. Raises ValueError for a command there is not."""
        told = len(self._world.trace) if self._world is not None else 0
        for command in commands:
            self._do(command)
            self.world.told.clear()
        lines = self.world.trace[told:]
        more = len(lines) - _LINES_MAX
        return lines if more <= 0 else [*lines[:_LINES_MAX], f"        ... and {more} lines more"]

    def _do(self, command: str) -> None:
        match command.split():
            case ["swarm", *options]:
                self._swarm(dict(option.split("=") for option in options))
            case ["run", "until", *words]:
                self._run_until(" ".join(words))
            case ["run", seconds]:
                self._run(float(seconds))
            case ["show", *kinds]:
                self.world.shown = set(kinds)
            case ["lose" | "hold" as fate, kind, *where]:
                self.world.network.fates.append(_fate(fate, kind, where))
            case ["deliver"]:
                self.world.network.deliver_all()
            case ["crash", *names]:
                for peer in self._peers(names):
                    peer.crash()
            case ["restart", name]:
                self._peer(name).restart(keeps_state=False)
            case ["restart", name, "with", "its", "state"]:
                self._peer(name).restart(keeps_state=True)
            case ["stop", *names]:
                for peer in self._peers(names):
                    peer.stop()
            case ["continue", *names]:
                for peer in self._peers(names):
                    peer.go_on()
            case ["drain", *names]:
                for peer in self._peers(names):
                    peer.drain()
            case ["join", name]:
                self.world.add(name).start()
            case ["join", name, "stage", stage]:
                self.world.add(name, stage=int(stage)).start()
            case ["cut", *sides]:
                self.world.network.cut(_links(sides))
            case ["heal"]:
                self.world.network.heal()
                self.world.network.fates.clear()
            case ["damage", *names]:
                self.world.damaged = set(names)
            case ["say", *names]:
                for peer in self._peers(names):
                    self.world.log(_status(peer))
            case _:
                raise ValueError(f"there is no command {command!r}")
        self._train_only()

    def _peer(self, name: str) -> PipelinePeer:
        return self.world.peers[PeerID(name.encode())]

    def _peers(self, names: Iterable[str]) -> list[PipelinePeer]:
        return [self._peer(name) for name in names]

    def _swarm(self, options: dict[str, str]) -> None:
        """Found a run, and wait until all are members."""
        names = _NAMES[: int(options.pop("peers"))]
        self._trains = set(options.pop("trainers").split(",")) if "trainers" in options else None
        fetch_s, reduce_s = (
            float(options.pop("fetch_s", "0.5")),
            float(options.pop("reduce_s", "0")),
        )
        settings = LedgerSettings(
            steps=1000, **{name: int(value) for name, value in options.items()}
        )
        self._world = ScenarioWorld(settings, names, fetch_s=fetch_s, reduce_s=reduce_s)
        self._world.begin()
        for peer in self._world.peers.values():
            peer.trainer.paused = True
        while any(peer.ledger.member is None for peer in self._world.peers.values()):
            self._run(0.01)

    def _train_only(self) -> None:
        """Those that do not train ask for no work; a restarted one has forgotten that."""
        for peer in self.world.peers.values():
            peer.trainer.paused = peer.draining or not self._trains_here(peer)

    def _trains_here(self, peer: PipelinePeer) -> bool:
        return self._trains is None or peer.name in self._trains

    def _run(self, seconds: float) -> None:
        self.world.clock.run_until(self.world.clock.now_s + seconds)

    def _run_until(self, text: str) -> None:
        world = self.world
        world.wanted = text
        self._run(_LONGEST_S)
        world.wanted = ""
        if not world.clock.stopped:
            world.log(f"not within {_LONGEST_S:.0f} s: {text}")


def _fate(fate: str, kind: str, where: list[str]) -> _Fate:
    """Read `lose Accept from p1 p2 to p3`."""
    ends: dict[str, set[str]] = {"from": set(), "to": set()}
    end = ends["from"]
    for word in where:
        if word in ends:
            end = ends[word]
        else:
            end.add(word)
    return _Fate(fate == "hold", kind, frozenset(ends["from"]), frozenset(ends["to"]))


def _links(sides: list[str]) -> list[tuple[PeerID, PeerID]]:
    """Read `p1 p2 | p3` (cut both ways) or `p1 p2 > p3` (what they send to p3 is lost)."""
    sign = "|" if "|" in sides else ">"
    at = sides.index(sign)
    here, there = ([PeerID(n.encode()) for n in names] for names in (sides[:at], sides[at + 1 :]))
    links = [(a, b) for a in here for b in there]
    return links if sign == ">" else links + [(b, a) for a, b in links]


def _status(peer: PipelinePeer) -> str:
    """Say what a peer would say of itself."""
    ledger = peer.ledger
    if not peer.up:
        return f"{peer.name} is gone" if peer.left else f"{peer.name} is down"
    words = ["is an outsider" if ledger.member is None else f"hosts stage {ledger.member.stage}"]
    if ledger.record is not None:
        words.append(f"knows record {ledger.record.index}")
    if ledger.lead is not None:
        words.append("leads")
    if ledger.leaving:
        words.append("was asked to stay" if ledger.asked_to_stay else "leaves")
    if ledger.member is not None and not ledger.synced:
        words.append("fetches its state")
    waits = ledger.waiting_because or (ledger.lead.waiting_for() if ledger.lead is not None else "")
    if waits:
        words.append(f"waits: {waits}")
    return f"{peer.name} {', '.join(words)}"


def rewritten(text: str) -> str:
    """Play a scenario, and return it with what happens now beneath each command. Raises ValueError when it cannot be played."""
    play, lines, commands = Play(), list[str](), list[str]()
    expected = False
    for line in text.splitlines():
        if expected and line:
            continue  # what happened when this was written
        expected = line == "----"
        lines.append(line)
        if expected:
            lines += play.do(commands)
            commands.clear()
        elif line and not line.startswith("#"):
            commands.append(line)
    if commands:
        raise ValueError(f"no ---- beneath {commands[-1]!r}")
    return "\n".join(lines) + "\n"
