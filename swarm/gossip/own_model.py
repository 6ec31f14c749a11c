"""A peer's own model on disk: what mode `gossip` trains, and the trunk of mode `moe`. No other node has the same."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgpack
from torch import Tensor

from protocols.frames import number_untrusted
from swarm.hosting.compute import ComputeThread
from swarm.learner.learner import Learner
from swarm.mode import Keeper
from swarm.state.part import Part, PartFacts
from swarm.state.snapshot import expected_specs

log = logging.getLogger(__name__)

_FUTURE: Final = "its version is beyond the end of the run"
_NUMBER_MAX: Final = (1 << 31) - 1


class OwnModel:
    """Of one node, for all of its lives.

    Args:
      part: its name.
      steps: batches that a peer trains in all.
    """

    def __init__(
        self, keeper: Keeper, part: str, *, steps: int, unix_s: Callable[[], float]
    ) -> None:
        self._keeper = keeper
        self._part = part
        self._steps = steps
        self._unix_s = unix_s
        self._epoch = 0
        self.averages = 0
        """With how many averages behind it the model that was loaded was written."""

    def new_epoch(self) -> int:
        """Begin a life; larger than in any earlier one, also when the clock was set back meanwhile."""
        self._epoch = max(int(self._unix_s() * 1000), self._epoch + 1)
        return self._epoch

    async def resume(self, learner: Learner, compute: ComputeThread) -> bool:
        """Load the newest checkpoint that can be used; return whether there is one."""
        here = [c for c in await self._keeper.scan() if c.manifest.part == self._part]
        found = [c for c in here if c.manifest.version <= self._steps]
        for checkpoint in here:
            if checkpoint not in found:
                log.error(
                    "checkpoint refused: path=%s reason=%s", checkpoint.manifest_file, _FUTURE
                )
        if not found:
            return False
        _, own = await compute.run_own(learner.snapshot)
        for checkpoint in found:
            manifest = checkpoint.manifest
            self._epoch = max(self._epoch, manifest.epoch)
            tensors = await self._keeper.load(checkpoint, expected_specs(own))
            if tensors is None:
                continue
            trained = manifest.data_position
            await compute.run_own(functools.partial(learner.load, tensors, trained=trained))
            self.averages = _averages_in(manifest.note_bytes)
            log.info("goes on from its checkpoint: batches=%d", trained)
            return True
        return False

    def part(self, learner: Learner, averages: int) -> Part:
        """Return the model as it is now.

        Args:
          averages: behind it.
        """

        def facts(version: int) -> PartFacts:
            note = bytes(msgpack.packb({"averages": averages}))
            return PartFacts(epoch=self._epoch, note=note)

        def load(tensors: Mapping[str, Tensor]) -> None:
            learner.load(tensors, trained=learner.trained)

        return Part(self._part, learner.trained, learner.snapshot, load, facts=facts)

    async def offer(self, learner: Learner, averages: int, compute: ComputeThread) -> None:
        """Say that a batch is trained."""
        last = learner.trained >= self._steps
        await self._keeper.offer(self.part(learner, averages), compute, last=last)


def _averages_in(note: bytes) -> int:
    """Read how often a model was averaged; 0 where the note does not say."""
    averages = number_untrusted(note, "averages")
    return averages if averages is not None and averages <= _NUMBER_MAX else 0
