"""The share of a run's data that one peer trains on: a partition, claimed in the directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import msgpack

from protocols.claims import choose_partition
from protocols.frames import number_untrusted
from protocols.ids import PeerID
from protocols.ports import DirectoryRecord
from swarm.learner.learner import Learner
from swarm.learner.task import Batches, Task
from swarm.presence import Presence

log = logging.getLogger(__name__)

_NUMBER_MAX: Final = (1 << 31) - 1


def claim_of(record: DirectoryRecord) -> int | None:
    """Return the partition that a peer says it trains on; None when it says none that could be."""
    claim = number_untrusted(record.value, "partition")
    return claim if claim is not None and claim <= _NUMBER_MAX else None


class DataShare:
    """Of one peer, once the data is open."""

    def __init__(self, me: PeerID, presence: Presence, task: Task) -> None:
        self._me = me
        self._presence = presence
        self._task = task
        self.partition: int | None = None

    def claim(self, claims: Mapping[PeerID, int], learner: Learner | None) -> None:
        """Claim a partition, or another one when a peer with a better right has claimed ours; `learner` goes on with it."""
        chosen = choose_partition(self._me, claims, self._task.partitions, held=self.partition)
        if chosen != self.partition:
            log.info("partition: %d of %d", chosen, self._task.partitions)
            self.partition = chosen
            if learner is not None:
                learner.batches = self.batches()
        self._presence.announce(bytes(msgpack.packb({"partition": chosen})))

    def batches(self) -> Batches:
        """Return the batches of what is claimed, in an order of our own."""
        assert self.partition is not None
        return self._task.batches(self.partition, salt=bytes(self._me))
