"""The whole model as one safetensors file, and text from it. Nothing in the file can run code.

The file holds the parameters of all stages under their names in the whole model, in C order, and the model's shape as
metadata, so that it can be used without the run: `load_model` needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from protocols.run import RunSpec
from protocols.run.model import LayeredModelSpec
from protocols.run.pipeline import pipeline_of
from protocols.schema import decode, encode
from swarm.data.text import END_OF_FILE
from swarm.models.contract import StageModule
from swarm.models.registry import build_stage
from swarm.state.files import replacing, write_all

_METADATA: Final = "murmura"


class ExportError(Exception):
    """The file is not a model we wrote, or the parameters are not those of a whole model."""


def export_model(
    path: Path, run: RunSpec, *, step: int, stages: Iterable[Mapping[str, Tensor]]
) -> int:
    """Write all stages' parameters to one file, atomically, and return its size in bytes.

    Args:
      step: optimizer steps applied.
      stages: `HostedStage.parameters()` of each stage, in any order.
    Raises:
      ExportError: a parameter is missing, unknown or has another shape.
    """
    parameters: dict[str, Tensor] = {}
    for stage in stages:
        parameters |= stage
    model = pipeline_of(run).model
    _check_parameters(build_stage(model, 1, 0, 0), parameters)
    about = {"model": encode(model), "run": run.name, "run_id": str(run.run_id), "step": step}
    return write_tensors(path, parameters, about)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Write one safetensors file, atomically, and return its size in bytes. Equal tensors give equal files."""
    # One entry, because safetensors writes several in random order.
    metadata = {_METADATA: json.dumps(about, sort_keys=True)}
    contents = save(
        {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, metadata
    )
    with replacing(path) as file:
        write_all(file, contents)
    return len(contents)


def read_parameters(path: Path) -> tuple[LayeredModelSpec, dict[str, Tensor]]:
    """Return an exported file's model and parameters, checked against each other. Raises ExportError."""
    try:
        with safe_open(path, framework="pt") as file:
            spec: LayeredModelSpec = decode(
                cast("Any", LayeredModelSpec),
                json.loads((file.metadata() or {})[_METADATA])["model"],
            )
            parameters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} is not a model exported by murmura: {error}") from error
    _check_parameters(build_stage(spec, 1, 0, 0), parameters)
    return spec, parameters


def load_model(path: Path) -> tuple[LayeredModelSpec, StageModule]:
    """Return the exported model as one module, ready to use. Raises ExportError, UnknownModelError."""
    spec, parameters = read_parameters(path)
    module = build_stage(spec, 1, 0, 0)
    module.load_state_dict(parameters, strict=True)
    return spec, module.eval()


def _check_parameters(module: StageModule, parameters: Mapping[str, Tensor]) -> None:
    needed = {
        name: (parameter.shape, parameter.dtype) for name, parameter in module.named_parameters()
    }
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in parameters.items()}
    wrong = sorted(
        name for name in needed.keys() | given.keys() if needed.get(name) != given.get(name)
    )
    if wrong:
        raise ExportError(
            f"these are not the parameters of the whole model: {len(wrong)} are missing, unknown or of another shape, "
            f"the first is {wrong[0][:80]!r}"
        )


@torch.no_grad()
def sample(
    module: StageModule,
    prompt: bytes,
    *,
    length: int,
    seed: int,
    context: int,
    temperature: float = 0.8,
) -> bytes:
    """Continue a prompt byte by byte and return prompt and continuation.

    Args:
      prompt: the model sees the last `context` bytes of it; an empty one is the start of a file.
      length: bytes to add.
      temperature: 0 always takes the likeliest byte.
    """
    generator = torch.Generator().manual_seed(seed)
    text = bytearray(prompt or END_OF_FILE)
    for _ in range(length):
        window = torch.frombuffer(text[-context:], dtype=torch.uint8)[None]  # (1, T)
        logits = module(window)[0, -1].double()  # (256,)
        if temperature > 0:
            likely = torch.softmax(logits / temperature, dim=0)
            text.append(int(torch.multinomial(likely, 1, generator=generator)))
        else:
            text.append(int(logits.argmax()))
    return bytes(text)
