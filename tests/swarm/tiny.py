"""A run small enough that a step takes milliseconds, and its text."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from protocols.run import DataSpec, ModelSpec, OptimizerSpec, PipelineSpec, RunSpec
from swarm.pipeline.data import Dataset, TokenBatch

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
        data=DataSpec(pattern="tiny.txt", sha256="0" * 64),
        model=ModelSpec(
            layers=3,
            width=16,
            heads=2,
            context=16,
            dtype="float64" if dtype == "float64" else "float32",
        ),
        optimizer=OptimizerSpec(warmup_steps=2),
        pipeline=PipelineSpec(
            stages=stages,
            steps=steps,
            microbatches=microbatches,
            sequences=2,
            evaluation_microbatches=2,
        ),
    )


def tiny_dataset(run: RunSpec) -> Dataset:
    return Dataset(tiny_text(), run)


def tensors_of(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, (sequences, context) uint8."""
    inputs = torch.frombuffer(batch.inputs, dtype=torch.uint8).view(batch.spec.shape)
    targets = torch.frombuffer(batch.targets, dtype=torch.uint8).view(batch.spec.shape)
    return inputs, targets
