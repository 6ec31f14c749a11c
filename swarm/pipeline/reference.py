"""The same model trained in one process on the same batches: what the swarm is compared with.

An independent witness on purpose. It shares the model, the data and the schedule with the swarm, but none of the code
that stages, counts, averages, clips and steps: here torch's own AdamW and clipping do that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.run import AdamWSpec, RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.data.sequences import Dataset, TokenBatch
from swarm.models.contract import StageModule
from swarm.models.registry import build_stage
from swarm.schedule import is_decayed, learning_rate


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What one process made of the run."""

    losses: tuple[float, ...]
    """Mean training loss of each step, before it was applied, nats per token."""
    held_out: dict[int, float]
    """Optimizer steps applied -> held-out loss; always has 0 and the last one."""
    parameters: dict[str, Tensor]
    tokens_per_second: float
    """Of training alone, evaluations left out."""


def train_reference(
    run: RunSpec, dataset: Dataset, *, on_step: Callable[[int, float], None] | None = None
) -> ReferenceResult:
    """Train for `training.steps` steps.

    Args:
      on_step: called with the steps done and the last training loss.
    """
    pipeline = pipeline_of(run)
    model = build_stage(pipeline.model, 1, 0, run.seed)
    optimizer = _optimizer(model, pipeline.optimizer)
    losses: list[float] = []
    held_out = {0: held_out_loss(model, run, dataset)}
    train_s = 0.0
    for step in range(pipeline.steps):
        began_s = time.perf_counter()
        losses.append(_train_step(model, optimizer, run, dataset, step))
        train_s += time.perf_counter() - began_s
        every = pipeline.evaluate_every
        if step + 1 == pipeline.steps or (every and (step + 1) % every == 0):
            held_out[step + 1] = held_out_loss(model, run, dataset)
        if on_step is not None:
            on_step(step + 1, losses[-1])
    tokens = pipeline.steps * pipeline.microbatches * pipeline.sequences * pipeline.model.context
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return ReferenceResult(tuple(losses), held_out, parameters, tokens / train_s)


@torch.no_grad()
def held_out_loss(model: StageModule, run: RunSpec, dataset: Dataset) -> float:
    """Return the mean held-out loss in nats per token."""
    count = pipeline_of(run).evaluation_microbatches
    return sum(_loss(model, dataset.held_out_batch(index)).item() for index in range(count)) / count


def parameter_difference(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Return the largest, over the tensors, of the norm of the difference over the norm of the reference."""
    if found.keys() != reference.keys():
        raise ValueError("the two sets of parameters have different names")
    return max(_relative_difference(found[name], tensor) for name, tensor in reference.items())


def _relative_difference(found: Tensor, reference: Tensor) -> float:
    found, reference = found.double(), reference.double()
    return float(torch.linalg.vector_norm(found - reference) / torch.linalg.vector_norm(reference))


def _train_step(
    model: StageModule, optimizer: torch.optim.Optimizer, run: RunSpec, dataset: Dataset, step: int
) -> float:
    pipeline = pipeline_of(run)
    count = pipeline.microbatches
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(pipeline.optimizer, step=step, steps=pipeline.steps)
    optimizer.zero_grad()
    total = 0.0
    for index in range(count):
        loss = _loss(model, dataset.training_batch(step, index))
        (loss / count).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    _clip(model, pipeline.optimizer.clip_norm)
    optimizer.step()
    return total / count


@torch.no_grad()
def _clip(model: StageModule, clip_norm: float) -> None:
    """As torch.nn.utils.clip_grad_norm_, without the 1e-6 it adds to the norm: that alone would differ by 1e-6."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if 0.0 < clip_norm < norm:
        for gradient in gradients:
            gradient *= clip_norm / norm


def _loss(model: StageModule, batch: TokenBatch) -> Tensor:
    inputs = torch.frombuffer(batch.inputs, dtype=torch.uint8).view(batch.spec.shape)  # (B, T)
    targets = torch.frombuffer(batch.targets, dtype=torch.uint8).view(batch.spec.shape)
    return model.loss(inputs, targets).mean()


def _optimizer(model: StageModule, spec: AdamWSpec) -> torch.optim.AdamW:
    named = list(model.named_parameters())
    decayed = [parameter for name, parameter in named if is_decayed(name, parameter.shape)]
    others = [parameter for name, parameter in named if not is_decayed(name, parameter.shape)]
    groups = [
        {"params": decayed, "weight_decay": spec.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps)
