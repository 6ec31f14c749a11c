"""`python -m node.demo.scenarios.pipeline.reference_process RUN MODEL`: train the run in one process and compare MODEL with the outcome.

One JSON object per line on stdout: {"step", "loss"} while it trains, then the comparison.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import torch

from node.runfile import read_run_file
from protocols.run.pipeline import pipeline_of
from swarm.data.sequences import Dataset, TokenBatch
from swarm.data.text import read_run_text
from swarm.pipeline.data import dataset_of
from swarm.pipeline.reference import held_out_loss, parameter_difference, train_reference
from swarm.state.export import load_model, sample

_PROMPT: Final = b"def "
_SAMPLE_BYTES: Final = 400
_TEMPERATURE: Final = 0.7
"""A little low: of a model that has read 400,000 bytes the likelier ones are more interesting."""


class WitnessedDataset(Dataset):
    """Notes which microbatches are drawn: what the swarm must have counted."""

    def __init__(self, text: bytes, **numbers: Any) -> None:
        super().__init__(text, **numbers)
        self.drawn: dict[int, list[int]] = {}

    def training_batch(self, step: int, index: int) -> TokenBatch:
        self.drawn.setdefault(step + 1, []).append(index)
        return super().training_batch(step, index)


def main(run_file: Path, model_file: Path) -> None:
    """Print progress and the comparison."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = read_run_file(run_file)
    dataset = dataset_of(read_run_text(pipeline_of(run).data).data, run, WitnessedDataset)
    reference = train_reference(
        run, dataset, on_step=lambda step, loss: _print({"step": step, "loss": loss})
    )
    _, module = load_model(model_file)
    found = dict(module.named_parameters())
    text = sample(
        module,
        _PROMPT,
        length=_SAMPLE_BYTES,
        seed=run.seed,
        context=pipeline_of(run).model.context,
        temperature=_TEMPERATURE,
    )
    _print(
        {
            "initial_loss": reference.held_out[0],
            "final_loss": held_out_loss(module, run, dataset),
            "reference_loss": reference.held_out[pipeline_of(run).steps],
            "parameter_difference": parameter_difference(found, reference.parameters),
            "reference_tokens_per_second": reference.tokens_per_second,
            "parameters": sum(tensor.numel() for tensor in reference.parameters.values()),
            "trained_on": dataset.drawn,
            "sample": text.decode("utf-8", "replace"),
        }
    )


def _print(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
