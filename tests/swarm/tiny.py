"""A run small enough that a step takes milliseconds, and its text."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from protocols.run import AdamWSpec, ByteTransformerSpec, RunSpec, TextSpec, TrainingSpec
from protocols.run.pipeline import PipelineSpec
from swarm.data.sequences import Dataset, TokenBatch
from swarm.pipeline.data import dataset_of

# Tiny tensors gain nothing from a second core, and torch's threads stall when another program keeps it busy.
torch.set_num_threads(1)

WORDS = ("stage", "peer", "swarm", "expert", "gate", "round", "part", "chunk")


def tiny_text(words: int = 4000) -> bytes:
    chooser = random.Random(7)
    return " ".join(chooser.choice(WORDS) for _ in range(words)).encode()


def tiny_run(
    *, dtype: str = "float64", stages: int = 3, steps: int = 5, microbatches: int = 4, seed: int = 1
) -> RunSpec:
    return RunSpec(
        name="tiny",
        seed=seed,
        data=TextSpec(pattern="tiny.txt", sha256="0" * 64),
        model=ByteTransformerSpec(
            layers=3,
            width=16,
            heads=2,
            context=16,
            dtype="float64" if dtype == "float64" else "float32",
        ),
        optimizer=AdamWSpec(warmup_steps=2),
        training=TrainingSpec(batch=2 * microbatches, steps=steps, evaluation_samples=4),
        table=PipelineSpec(stages=stages, microbatches=microbatches),
    )


def tiny_dataset(run: RunSpec) -> Dataset:
    return dataset_of(tiny_text(), run, Dataset)


def tensors_of(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, (sequences, context) uint8."""
    inputs = torch.frombuffer(batch.inputs, dtype=torch.uint8).view(batch.spec.shape)
    targets = torch.frombuffer(batch.targets, dtype=torch.uint8).view(batch.spec.shape)
    return inputs, targets
