"""Peers of a collective run in one process, step by step: the product's learner, schedule, outer optimizer and codec.

What the network would do is done here at once: groups are complete, and a mean comes after exactly `overlap_steps`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from protocols.collective.fragments import Schedule, cut
from protocols.collective.settings import CollectiveSpec
from protocols.run import RunSpec
from swarm.averaging.butterfly import part_slices
from swarm.averaging.codecs import CODECS, Codec, codec_of_means
from swarm.collective.outer import Fragments, Outer
from swarm.learner.learner import Learner
from swarm.learner.task import Task


@dataclass(slots=True)
class Traffic:
    """What one peer sends, in bytes; it receives as many."""

    total: int = 0
    peak: int = 0
    """In one round: what has to be through before the mean is due."""


@dataclass(slots=True)
class Replica:
    """One peer: its own model, and what each fragment has been through since its last average."""

    learner: Learner
    begun: int
    """Step at which it came in."""
    in_flight: dict[int, Tensor] = field(default_factory=dict)
    """Outer gradients on their way to be averaged, by fragment."""


class Population:
    """Replicas that train in step.

    Args:
      task: the run's; every replica draws its own samples from all of its data.
    """

    def __init__(self, run: RunSpec, task: Task, *, peers: int) -> None:
        self._run = run
        self._task = task
        self.spec = run.settings(CollectiveSpec)
        self._codec = CODECS[self.spec.codec]
        self._joined = 0
        self.step = 0
        self.traffic = Traffic()
        first = self._learner()
        named = [(n, p.numel()) for n, p in first.hosted.module.named_parameters()]
        names = cut(named, count=self.spec.fragments, order=self.spec.order)
        self.fragments = Fragments(first.hosted.layout, names)
        self.outer = Outer(self.spec, self.fragments, first.flat)
        """One for all: peers that take the same means have the same."""
        self.schedule = Schedule(
            fragments=len(names), local_steps=self.spec.local_steps, steps=run.training.steps
        )
        self.replicas = [
            Replica(first if index == 0 else self._learner(), 0) for index in range(peers)
        ]

    def advance(self) -> None:
        """Train one step everywhere, and average what is due."""
        for replica in self.replicas:
            replica.learner.train_batch()
        self.step += 1
        last = self.step == self.schedule.steps
        for fragment in range(len(self.fragments)):
            if self.step - self.spec.overlap_steps in self._begun(fragment) or last:
                self._finish(fragment, overlapped=self.spec.overlap_steps > 0, last=False)
        for fragment in self.schedule.due(self.step):
            self._begin(fragment)
            if self.spec.overlap_steps == 0 or last:
                self._finish(fragment, overlapped=False, last=last)

    def replace_one(self, rng: random.Random) -> None:
        """Kill a replica, with all that it has not handed in, and let another one join, from the outer parameters."""
        self.replicas.pop(rng.randrange(len(self.replicas)))
        learner = self._learner()
        learner.flat.copy_(self.outer.parameters)
        learner.trained = self.step
        self.replicas.append(Replica(learner, self.step))

    def _learner(self) -> Learner:
        """Return a learner with the run's initial weights and samples of its own."""
        self._joined += 1
        batches = self._task.batches(0, salt=self._joined.to_bytes(8, "little"))
        return Learner(self._run, self._task, batches, seed=self._run.seed)

    def _begun(self, fragment: int) -> range:
        """Return the steps after which a fragment is regularly averaged."""
        return range(self.schedule.offset(fragment), self.schedule.steps, self.spec.local_steps)

    # --- one round ---

    def _begin(self, fragment: int) -> None:
        for replica in self.replicas:
            if replica.begun < self.step:
                replica.in_flight[fragment] = self.outer.difference(replica.learner.flat, fragment)

    def _finish(self, fragment: int, *, overlapped: bool, last: bool) -> None:
        group = [replica for replica in self.replicas if fragment in replica.in_flight]
        if not group:
            return
        vectors = [replica.in_flight.pop(fragment) for replica in group]
        self.outer.step(fragment, self._mean(vectors), last=last)
        kept = self.spec.kept_share(overlapped=overlapped)
        for replica in self.replicas:
            self.outer.mix_into(replica.learner.flat, fragment, kept=kept)

    def _mean(self, vectors: Sequence[Tensor]) -> Tensor:
        """Average as a butterfly does: each member adds up one part, float32, and gives its mean to the others."""
        elements, members = vectors[0].numel(), len(vectors)
        mean, sent = torch.empty(elements), 0
        for owner, part in enumerate(part_slices(elements, members)):
            total = vectors[owner][part].clone()
            for member, vector in enumerate(vectors):
                if member != owner:
                    arrived, size = _through_the_wire(self._codec, vector[part])
                    total += arrived
                    sent += size
            mean[part], size = _through_the_wire(codec_of_means(self._codec), total / members)
            sent += size * (members - 1)
        self.traffic.total += sent // members
        self.traffic.peak = max(self.traffic.peak, sent // members)
        return mean


def _through_the_wire(codec: Codec, part: Tensor) -> tuple[Tensor, int]:
    """Return what arrives, and the bytes that it took."""
    tensors = codec.encode(part)
    return codec.decode(tensors, part.numel()), sum(tensor.data.nbytes for tensor in tensors)
