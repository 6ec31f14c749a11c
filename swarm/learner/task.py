"""What a whole model is trained to do: the run's data and model brought together, whatever their kinds.

| data | model | loss | accuracy |
|---|---|---|---|
| images, digits | mlp, convnet, installed | cross entropy in nats per sample | share of samples |
| text | byte-transformer, installed | cross entropy in nats per byte | none |
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protocols.run import DigitsSpec, ImagesSpec, RunSpec, TextSpec
from protocols.run.model import LayeredModelSpec
from swarm.data.digits import read_digits
from swarm.data.errors import DataError
from swarm.data.images import read_images
from swarm.data.partition import partition
from swarm.data.samples import Samples, Split, standardised
from swarm.data.sequences import Dataset
from swarm.data.text import read_run_text
from swarm.models.classifier import SampleShape
from swarm.models.contract import StageModule
from swarm.models.registry import build_stage, build_whole

_EVALUATED_AT_ONCE: Final = 1024
_COUNTER: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples with what is to be learned of them; the first dimension of both is the sample."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Over the held-out samples."""

    loss: float
    accuracy: float | None
    """Percent; None where the model does not classify."""


class Batches(Protocol):
    """What one peer trains on. Batch i is a pure function of the run and i, so there is no position but i to keep."""

    def __call__(self, index: int) -> Batch: ...


class Task(Protocol):
    """The run's learning task on this machine."""

    @property
    def partitions(self) -> int:
        """In how many parts the data is cut; peers share them out."""
        ...

    def build(self, seed: int) -> nn.Module:
        """Return the run's model with initial weights that depend on the seed alone."""
        ...

    def batches(self, part: int, *, salt: bytes) -> Batches:
        """Return the batches of one partition; peers that share one draw in another order for another salt."""
        ...

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over a batch, ()."""
        ...

    def evaluate(self, module: nn.Module) -> Evaluation:
        """Look at held-out samples."""
        ...


def open_task(run: RunSpec, *, path: str = "") -> Task:
    """Read the run's data, from `path` where the volunteer keeps it elsewhere. Raises DataError."""
    data = run.data
    if isinstance(data, TextSpec):
        return TextTask(run, read_run_text(data, path=path).data)
    if isinstance(data, DigitsSpec):
        images = read_digits()
    elif isinstance(data, ImagesSpec):
        images = read_images(Path(path or data.pattern).expanduser(), sha256=data.sha256)
    else:
        raise DataError("this run's data is a script's own: join it from that script")
    return ClassificationTask(run, standardised(images, held_out=data.held_out, seed=run.seed))


class ClassificationTask:
    """Labelled samples."""

    def __init__(self, run: RunSpec, split: Split) -> None:
        assert isinstance(run.data, DigitsSpec | ImagesSpec)
        self._run = run
        self._split = split
        _, channels, height, width = split.train.x.shape
        self._shape = SampleShape(channels, height, width, split.classes)
        self._parts = partition(
            split.train.y.tolist(),
            kind=run.data.partition,
            partitions=run.data.partitions,
            seed=run.seed,
            alpha=run.data.alpha,
        )

    @property
    def partitions(self) -> int:
        return len(self._parts)

    @property
    def split(self) -> Split:
        """All samples, for those who compare with training on everything."""
        return self._split

    def build(self, seed: int) -> nn.Module:
        return build_whole(self._run.model, self._shape, seed)

    def batches(self, part: int, *, salt: bytes) -> Batches:
        return ShuffledBatches(
            self._split.train.take(self._parts[part % len(self._parts)]),
            self._run.training.batch,
            seed=f"{self._run.seed}:{part}:{salt.hex()}",
        )

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(module(batch.x), batch.y)

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> Evaluation:
        test = self._split.test
        loss = right = 0.0
        module.eval()
        try:
            for start in range(0, len(test), _EVALUATED_AT_ONCE):
                y = test.y[start : start + _EVALUATED_AT_ONCE]
                logits = module(test.x[start : start + _EVALUATED_AT_ONCE])
                loss += float(F.cross_entropy(logits, y, reduction="sum"))
                right += float((logits.argmax(1) == y).sum())
        finally:
            module.train()
        return Evaluation(loss / len(test), 100.0 * right / len(test))


class ShuffledBatches:
    """Every sample once per pass, in another order each time."""

    def __init__(self, samples: Samples, size: int, *, seed: str) -> None:
        self._samples = samples
        self._size = size
        self._seed = seed
        self._orders: dict[int, list[int]] = {}
        """Of the passes that the last batch touched."""

    def __call__(self, index: int) -> Batch:
        count = len(self._samples)
        chosen = [
            self._order(place // count)[place % count]
            for place in range(index * self._size, (index + 1) * self._size)
        ]
        taken = self._samples.take(chosen)
        return Batch(taken.x, taken.y)

    def _order(self, lap: int) -> list[int]:
        if lap not in self._orders:
            order = list(range(len(self._samples)))
            random.Random(f"murmura pass:{self._seed}:{lap}").shuffle(order)
            self._orders = {known: o for known, o in self._orders.items() if known >= lap - 1}
            self._orders[lap] = order
        return self._orders[lap]


class TextTask:
    """Text as bytes. It is not cut in partitions: each peer draws its own sequences from all of it."""

    partitions = 1

    def __init__(self, run: RunSpec, text: bytes) -> None:
        assert isinstance(run.data, TextSpec)
        if not isinstance(run.model, LayeredModelSpec):
            raise DataError(f"a model of kind {run.model.kind!r} cannot read text")
        self._run = run
        self._spec = run.model
        self._text = text
        self._dataset = self._drawn_by(b"")

    def _drawn_by(self, salt: bytes) -> Dataset:
        digest = hashlib.sha256(_COUNTER.pack(self._run.seed, len(salt)) + salt).digest()
        assert isinstance(self._run.data, TextSpec)
        return Dataset(
            self._text,
            seed=int.from_bytes(digest[:8], "little") if salt else self._run.seed,
            sequences=self._run.training.batch,
            context=self._spec.context,
            held_out=self._run.data.held_out,
        )

    def build(self, seed: int) -> nn.Module:
        return build_stage(self._spec, 1, 0, seed)

    def batches(self, part: int, *, salt: bytes) -> Batches:
        dataset = self._drawn_by(salt)

        def batch(index: int) -> Batch:
            drawn = dataset.training_batch(index, 0)
            shape = drawn.spec.shape
            inputs = torch.frombuffer(drawn.inputs, dtype=torch.uint8).view(shape)
            return Batch(inputs, torch.frombuffer(drawn.targets, dtype=torch.uint8).view(shape))

        return batch

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return cast("StageModule", module).loss(batch.x, batch.y).mean()

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> Evaluation:
        module.eval()
        try:
            losses = [float(self.loss(module, batch)) for batch in self._held_out()]
        finally:
            module.train()
        return Evaluation(sum(losses) / len(losses), None)

    def _held_out(self) -> Iterator[Batch]:
        """The same sequences at every evaluation and on every peer."""
        count = -(-self._run.training.evaluation_samples // self._run.training.batch)
        for index in range(count):
            drawn = self._dataset.held_out_batch(index)
            shape = drawn.spec.shape
            inputs = torch.frombuffer(drawn.inputs, dtype=torch.uint8).view(shape)
            yield Batch(inputs, torch.frombuffer(drawn.targets, dtype=torch.uint8).view(shape))
