"""The `[collective]` table."""

from __future__ import annotations

import pytest

from protocols.collective.settings import CollectiveSpec
from protocols.run import (
    ByteTransformerSpec,
    ConvnetSpec,
    DigitsSpec,
    MlpSpec,
    RunSpec,
    TextSpec,
    run_from_plain,
)
from protocols.schema import SchemaError, decode


def test_the_defaults_are_a_valid_table() -> None:
    assert decode(CollectiveSpec, {}) == CollectiveSpec()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"local_steps": 0}, "local_steps"),
        ({"outer_rate": -0.1}, "outer_rate"),
        ({"outer_momentum": 1.0}, "outer_momentum"),
        ({"fragments": 31}, "fragments"),
        ({"fragments": 300, "local_steps": 1000}, "fragments"),
        ({"overlap_steps": 30}, "overlap_steps"),
        ({"overlap_steps_max": 30}, "overlap_steps_max"),
        ({"overlap_steps": 4, "overlap_steps_max": 3}, "overlap_steps_max"),
        ({"mixing": 1.1}, "mixing"),
        ({"order": "random"}, "order"),
        ({"codec": "int2"}, "codec"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_path(
    changes: dict[str, object], path: str
) -> None:
    with pytest.raises(SchemaError) as raised:
        decode(CollectiveSpec, changes)
    assert raised.value.path == path


def test_models_that_it_cannot_train_are_refused() -> None:
    digits, table = DigitsSpec(kind="digits"), CollectiveSpec()
    text = TextSpec(pattern="x", sha256="0" * 64)
    mlp = MlpSpec(kind="mlp")
    RunSpec(name="a", mode="collective", data=digits, model=mlp, table=table)
    RunSpec(name="a", mode="collective", data=text, table=table)
    for data, model, path in (
        (text, mlp, "model.kind"),
        (digits, ByteTransformerSpec(), "model.kind"),
        (text, ByteTransformerSpec(dtype="float64"), "model.dtype"),
        (digits, ConvnetSpec(kind="convnet", norm=True), "model.norm"),
    ):
        with pytest.raises(SchemaError) as raised:
            RunSpec(name="a", mode="collective", data=data, model=model, table=table)
        assert raised.value.path == path


def test_a_run_file_has_it_under_the_modes_name() -> None:
    run = run_from_plain(
        {
            "name": "a",
            "mode": "collective",
            "data": {"kind": "text", "pattern": "x", "sha256": "0" * 64},
            "collective": {"local_steps": 100, "fragments": 3, "codec": "e3m0"},
        }
    )
    assert run.settings(CollectiveSpec).local_steps == 100
