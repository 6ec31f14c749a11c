"""The records of the fake directory: what each host states under each prefix, as others see it some time later."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from protocols.experts.messages import Stated, statement_untrusted
from protocols.experts.uid import Prefix
from protocols.ids import PeerID

if TYPE_CHECKING:
    from tests.sim.moe.world import MoeWorld

_STALE_S: Final = 10.0
"""The longest that a record is on its way, in a run with a stale directory."""


@dataclass(frozen=True, slots=True)
class Record:
    peer: PeerID
    stated: tuple[Stated, ...]
    visible_s: float
    issued_s: float
    expires_s: float


class Records:
    """Under each prefix the records of each host: the one that is visible, and newer ones on their way."""

    def __init__(self, world: MoeWorld, *, lifetime_s: float, stale: bool) -> None:
        self.lifetime_s = lifetime_s
        self._world = world
        self._rng = random.Random(f"records/{world.seed}")
        self._stale = stale
        self._written: dict[Prefix, dict[PeerID, list[Record]]] = {}

    @property
    def lag_s(self) -> float:
        """The longest until a record is visible to all."""
        return _STALE_S if self._stale else 8 * self._world.network.weather.delay_s

    def write(self, peer: PeerID, prefix: Prefix, value: bytes | None) -> None:
        """Write or renew a record; None withdraws it."""
        stated = statement_untrusted(value) if value is not None else ()
        now_s = self._world.clock.now_s
        visible_s = now_s + self.lag_s * self._rng.random()
        expires_s = now_s + (self.lifetime_s if value is not None else 0.0)
        records = self._written.setdefault(prefix, {}).setdefault(peer, [])
        records.append(Record(peer, stated, visible_s, now_s, expires_s))

    def look(self, prefix: Prefix) -> list[Record]:
        """Return the live records as they are visible now."""
        now_s = self._world.clock.now_s
        found = []
        written = self._written.get(prefix, {})
        for peer, records in sorted(written.items()):
            visible = [index for index, record in enumerate(records) if record.visible_s <= now_s]
            if not visible:
                continue
            del records[: visible[-1]]
            if records[0].expires_s > now_s:
                found.append(records[0])
            elif len(records) == 1:
                del written[peer]
        return found

    def heal(self) -> None:
        self._stale = False
