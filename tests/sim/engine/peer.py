"""One simulated node, as far as all modes are alike: a process that lives, dies and comes back, and drives its cores.

A mode derives from `SimPeer`, makes its cores in `boot`, and says in `do` what becomes of the effects that are its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from protocols.core import Blame, Publish, Send, Tick
from protocols.ids import PeerID

if TYPE_CHECKING:
    from tests.sim.engine.world import World

_LATE_S = 1.0
_STOPPED_POLL_S = 0.1
_NOTICED_S = 0.05
_AFTER_S = 1e-6
"""A wish to be woken is granted a moment later: two clocks never agree to the last digit."""


class SimPeer:
    """A node: its life, its clock, its messages, its cores."""

    def __init__(self, world: World[Any], peer_id: PeerID) -> None:
        self.world = world
        self.peer_id = peer_id
        self.name = peer_id.decode()
        self.rng = random.Random(f"{world.seed}/{self.name}")
        self.up = False
        self.stopped = False
        self.left = False
        self.draining = False
        self.comes_back = False
        """It has gone, or leaves, and will be started again."""
        self.life = 0
        """Raised by each crash: what was planned before then does not happen, what was known is lost."""
        self.state_life = 0
        """Raised when what was on its disk is lost, too."""
        self._lateness = random.Random(f"lateness/{world.seed}/{self.name}")
        skewed = world.faults.clock_skew
        self._clock_zero_s = self.rng.uniform(-1e4, 1e4) if skewed else 0.0
        self._clock_rate = self.rng.uniform(0.98, 1.02) if skewed else 1.0
        self.slowness = 0.5 + self.rng.random()
        """What it computes takes so many times longer than on an average peer."""
        self._wakes_s: dict[int, float] = {}
        """By a core's `id`: when it is looked at next, by our own clock."""

    @property
    def now_s(self) -> float:
        """What this peer's own clock says: its zero and its pace are its own."""
        return self._clock_zero_s + self.world.clock.now_s * self._clock_rate

    # --- what a mode says ---

    def boot(self, saved: Any) -> None:
        """Make the cores of a fresh process, which finds this on its disk; None: nothing."""
        raise NotImplementedError

    def saved(self) -> Any:
        """Return what a restart would find on its disk now; None: nothing of use."""
        return None

    @property
    def announces(self) -> bool:
        """Whether it says in the directory now that it takes part."""
        return True

    def take(self, source: PeerID, message: Any) -> None:
        """Give a message that arrived to the cores it is for."""
        raise NotImplementedError

    def hear(self, author: PeerID, hint: Any) -> None:
        """Give the cores what somebody published on the topic."""

    def lose(self, peer: PeerID) -> None:
        """Tell the cores that the transport cannot reach a peer any more."""

    def do(self, effect: Any) -> None:
        """Do what a core says. A mode does its own effects and leaves these to us."""
        match effect:
            case Send():
                self.world.cast(self, effect.peer, effect.message)
            case Publish():
                self.world.topic.publish(self.peer_id, effect.message)
            case Blame():
                pass  # the checkers have seen it
            case _:
                raise TypeError(f"{self.name} cannot do {effect!r}")

    def leave_in_order(self) -> None:
        """Begin to leave; `gone` ends it."""
        raise NotImplementedError

    # --- the cores ---

    def drive(self, core: Any, event: Any) -> None:
        """Let a core take an event, and do what it says."""
        world = self.world
        world.handled += 1
        world.watch.see(self, event)
        self.perform(core.handle(event))
        self.drove(core)

    def begin(self, core: Any) -> None:
        """Start a core, and do what it says."""
        self.perform(core.start(self.now_s))
        self.drove(core)

    def perform(self, effects: Iterable[Any]) -> None:
        """Do what a core says, in this order, as long as we live."""
        see = self.world.watch.see
        for effect in effects:
            if self.up:
                see(self, effect)
                self.do(effect)

    def drove(self, core: Any) -> None:
        """Plan when this core is to be woken, as it wishes now."""
        at_s = core.wake_at_s
        if at_s < self._wakes_s.get(id(core), float("inf")):
            self._wakes_s[id(core)] = at_s
            wait_s = (at_s - self.now_s) / self._clock_rate
            self.later(max(0.0, wait_s) + _AFTER_S, self._wake, core, at_s)

    def _wake(self, core: Any, at_s: float) -> None:
        if self._wakes_s.get(id(core)) == at_s:  # else it wished to be woken before, and was
            del self._wakes_s[id(core)]
            self.drive(core, Tick(self.now_s))

    def receive(self, source: PeerID, message: Any) -> None:
        """Take a message from the network."""
        if not self.up:
            return
        if self.stopped:
            self.later(_STOPPED_POLL_S, self.receive, source, message)
            return
        self.world.received(self, source, message)
        self.take(source, message)

    def report(self, tell: Callable[..., None], *args: object) -> None:
        """Pass on what came of something; a busy shell does so a little later, when it may be news of the past."""
        rate = self.world.faults.late_reports
        if rate and self._lateness.random() < rate:
            self.later(self.world.scaled(_LATE_S) * self._lateness.random(), tell, *args)
        elif self.stopped:
            self.later(0.0, tell, *args)
        else:
            tell(*args)

    def later(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        """Do something later unless we have died by then; a stopped process does it when it goes on."""
        self.world.clock.after(delay_s, self._act, self.life, action, args)

    def _act(self, life: int, action: Callable[..., None], args: tuple[object, ...]) -> None:
        if not self.up or life != self.life:
            return
        if self.stopped:
            self.world.clock.after(_STOPPED_POLL_S, self._act, life, action, args)
        else:
            action(*args)

    # --- life ---

    def start(self, saved: Any = None) -> None:
        """Boot a fresh process, that finds this on its disk."""
        self.life += 1
        self.up = True
        self.stopped = self.draining = self.comes_back = False
        self._wakes_s.clear()
        self.boot(saved)
        self._announce(self.life)

    def _announce(self, life: int) -> None:
        """Tell the directory that we take part, again and again."""
        if not self.up or life != self.life:
            return
        directory = self.world.directory
        if not self.stopped and self.announces:
            directory.announce(self.peer_id)
        self.world.clock.after(directory.announce_s, self._announce, life)

    def crash(self) -> None:
        """Die without a word. Those who talk to us find that the connection is gone."""
        self.up = False
        self.life += 1
        self.world.network.down.add(self.peer_id)
        self.world.changed(self)
        for other in self.world.connected_to(self):
            other.later(_NOTICED_S, other.notice_down, self.peer_id)

    def restart(self, *, keeps_state: bool) -> None:
        """Come back with the same identity, without memory; with what was on its disk, if that is left."""
        saved = self.saved() if keeps_state else None
        if saved is None:
            self.state_life += 1
        self.world.network.down.discard(self.peer_id)
        self.start(saved)

    def stop(self) -> None:
        """Stand still, as a suspended process does."""
        self.stopped = True
        self.world.changed(self)

    def go_on(self) -> None:
        """End of a stop."""
        self.stopped = False
        self.world.changed(self)

    def notice_down(self, peer: PeerID) -> None:
        """The transport could not reach a peer, and a second try fails as well."""
        if not self.world.network.reaches(self.peer_id, peer):
            self.lose(peer)

    def drain(self) -> None:
        """Leave in good order; a stopped process does so when it goes on."""
        if self.stopped:
            self.later(0.0, self.drain)
            return
        self.draining = True
        self.leave_in_order()

    def gone(self) -> None:
        """Exit; whoever is not started again never comes back."""
        self.left = not self.comes_back
        self.state_life += 1
        self.crash()
