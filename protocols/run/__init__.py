"""A run: everything peers must agree on to train one model. Its hash is the RunID.

A run has a mode, and one table of settings named like it. The tables of all modes are in `protocols.run.tables`; each
is defined beside the core that reads it. A volunteer's own wishes (threads, rates, paths) are not here but in
node.config; reading the TOML file, with its line numbers and hints, is node.runfile's.
"""

from protocols.run.data import DataSpec, DigitsSpec, ImagesSpec, ScriptDataSpec, TextSpec
from protocols.run.model import (
    ByteTransformerSpec,
    ConvnetSpec,
    InstalledModelSpec,
    MlpSpec,
    ModelSpec,
    ScriptExpertsSpec,
    ScriptModelSpec,
)
from protocols.run.optimizer import AdamWSpec, OptimizerSpec, SgdSpec
from protocols.run.spec import (
    RUN_BYTES_MAX,
    RunSpec,
    run_from_canonical_bytes_untrusted,
    run_from_plain,
)
from protocols.run.start import StartSpec, start_digest
from protocols.run.training import DeadlineSpec, TrainingSpec

__all__ = [
    "RUN_BYTES_MAX",
    "AdamWSpec",
    "ByteTransformerSpec",
    "ConvnetSpec",
    "DataSpec",
    "DeadlineSpec",
    "DigitsSpec",
    "ImagesSpec",
    "InstalledModelSpec",
    "MlpSpec",
    "ModelSpec",
    "OptimizerSpec",
    "RunSpec",
    "ScriptDataSpec",
    "ScriptExpertsSpec",
    "ScriptModelSpec",
    "SgdSpec",
    "StartSpec",
    "TextSpec",
    "TrainingSpec",
    "run_from_canonical_bytes_untrusted",
    "run_from_plain",
    "start_digest",
]
