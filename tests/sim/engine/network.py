"""The fake network: messages may be lost, repeated, late or cut. Down peers and cut links lose everything."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from protocols.ids import PeerID
from tests.sim.engine.clock import Clock

Link: TypeAlias = tuple[PeerID, PeerID]


@dataclass(slots=True)
class Weather:
    """What happens to single messages, and how often. All zero: a perfect network with `delay_s`."""

    delay_s: float = 0.01
    loss: float = 0.0
    repeat: float = 0.0
    jitter: float = 0.0
    """A delay is up to this many times longer: neighbours in a stream overtake each other."""
    tail: float = 0.0
    """Share of messages that take up to a hundred times longer."""


class Network:
    """Delivers after a delay drawn from the seed."""

    def __init__(self, clock: Clock, rng: random.Random, weather: Weather) -> None:
        self.clock = clock
        self.weather = weather
        self.down: set[PeerID] = set()
        self.slow: dict[PeerID, float] = {}
        """Peers on a bad line: their messages take this many times longer, both ways."""
        self.cuts: Counter[Link] = Counter()
        """Links that lose everything, and how often each was cut."""
        self._random = rng.random

    def cut(self, links: Iterable[Link]) -> None:
        """Lose everything on these links, until each cut is joined."""
        self.cuts.update(links)

    def join(self, links: Iterable[Link]) -> None:
        """Undo one `cut` of these links; another one may still hold."""
        self.cuts.subtract(links)
        self.cuts = +self.cuts

    def heal(self) -> None:
        """End all faults of the network."""
        self.cuts.clear()
        self.slow.clear()
        self.weather = Weather(self.weather.delay_s)

    def reaches(self, source: PeerID, target: PeerID) -> bool:
        if source in self.down or target in self.down:
            return False
        return not self.cuts or (source, target) not in self.cuts

    def delay_s(self) -> float:
        weather = self.weather
        delay_s = weather.delay_s * (0.5 + self._random() * (1 + weather.jitter))
        if weather.tail and self._random() < weather.tail:
            delay_s *= 1 + 99 * self._random()
        return delay_s

    def cast(
        self, source: PeerID, target: PeerID, deliver: Callable[..., None], *args: Any
    ) -> None:
        """Deliver once, never, or twice."""
        if source == target:
            self.clock.after(0.0, deliver, *args)
            return
        weather = self.weather
        if weather.loss and self._random() < weather.loss:
            return
        slowness = 1.0
        if self.slow:
            slowness = self.slow.get(source, 1.0) * self.slow.get(target, 1.0)
        after, arrive = self.clock.after, self._arrive
        after(self.delay_s() * slowness, arrive, source, target, deliver, args)
        if weather.repeat and self._random() < weather.repeat:
            after(self.delay_s() * slowness, arrive, source, target, deliver, args)

    def _arrive(
        self,
        source: PeerID,
        target: PeerID,
        deliver: Callable[..., None],
        args: tuple[Any, ...],
    ) -> None:
        if not (self.down or self.cuts) or self.reaches(source, target):
            deliver(*args)
