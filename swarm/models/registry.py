"""Which network a run's `model.kind` names: a built-in one, or one installed locally as an entry point.

Code never comes from the network: a run only names a kind, and what that name means is decided by what its
volunteer has installed under the entry-point group `murmura.models`. Such an entry point is a
`swarm.models.contract.BuildStage`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final, TypeAlias, cast

from torch import nn

from protocols.run.model import (
    ConvnetSpec,
    InstalledModelSpec,
    LayeredModelSpec,
    MlpSpec,
    ModelSpec,
)
from swarm.models import byte_transformer, convnet, mlp
from swarm.models.classifier import SampleShape
from swarm.models.contract import BuildStage, StageModule
from swarm.models.cut import cut_of

ENTRY_POINT_GROUP: Final = "murmura.models"

BuildInstalled: TypeAlias = Callable[[InstalledModelSpec, SampleShape, int], nn.Module]

_BUILT_IN: Final[dict[str, BuildStage]] = {"byte-transformer": byte_transformer.build}


def build_whole(spec: ModelSpec, shape: SampleShape, seed: int) -> nn.Module:
    """Build a whole model that classifies samples, with initial weights from the seed. Raises UnknownModelError.

    An installed model of this use is a function (InstalledModelSpec, SampleShape, seed) -> nn.Module.
    """
    if isinstance(spec, MlpSpec):
        return mlp.build(spec, shape, seed)
    if isinstance(spec, ConvnetSpec):
        return convnet.build(spec, shape, seed)
    if isinstance(spec, InstalledModelSpec):
        builder = cast("BuildInstalled", _builder(spec.kind))
        return builder(spec, shape, seed)
    raise UnknownModelError(f"a model of kind {spec.kind!r} does not classify samples")


class UnknownModelError(Exception):
    """The run names a kind of model that is not installed here."""


def build_stage(spec: LayeredModelSpec, stages: int, stage: int, seed: int) -> StageModule:
    """Build one stage with its initial weights. Raises UnknownModelError."""
    cut = cut_of(layers=spec.layers, stages=stages, stage=stage)
    return _builder(spec.kind)(spec, cut, seed)


def _builder(kind: str) -> BuildStage:
    if kind in _BUILT_IN:
        return _BUILT_IN[kind]
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=kind):
        return cast("BuildStage", entry_point.load())
    raise UnknownModelError(
        f"the run needs the model {kind!r}, which is not installed here; "
        f"built in are {', '.join(_BUILT_IN)}; install the package that offers it, then start again"
    )
