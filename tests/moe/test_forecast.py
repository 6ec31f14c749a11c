"""What a moe run is said to take is what it has."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import pytest

from moe.forecast import forecast
from moe.model import build_feed_forward, build_remote
from tests.moe.keepers import MODEL, SPEC, SPEC_OF_RUN, UIDS


@pytest.mark.parametrize("scores", ["product", "cosine"])
def test_parameters_are_counted_without_torch(scores: Literal["product", "cosine"]) -> None:
    spec = dataclasses.replace(SPEC, scores=scores)
    trunk, expert = forecast(dataclasses.replace(SPEC_OF_RUN, table=spec))
    built = build_remote(MODEL, spec, 1, cast("Any", None))
    assert trunk.parameters == sum(p.numel() for p in built.parameters())
    one = build_feed_forward(MODEL, spec, UIDS[0], 1)
    assert expert.parameters == sum(p.numel() for p in one.parameters())
    assert expert.name == "each of 4 experts"
