"""The bounds of the gossip demo: each one is noticed when it is broken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.demo.scenarios.gossip.figures import Figures, broken_bounds

GOOD = Figures(
    peers=8,
    peers_killed=1,
    peers_joined_late=1,
    batches_per_peer=300,
    accuracy_mean=95.0,
    accuracy_min=94.0,
    accuracy_reference=96.0,
    accuracy_alone_mean=60.0,
    exchanges_to_target=100.0,
    plain_exchanges_to_target=400.0,
    plain_exchanges_cap=1000.0,
    plain_accuracy=93.0,
    models_refused=0,
    seconds=100.0,
    processor="any",
    cores=2,
    date="2026-11-28",
)


def test_a_good_run_breaks_no_bound() -> None:
    assert list(broken_bounds(GOOD, shortened=False)) == []
    assert GOOD.to_json()["plain_ratio"] == 4.0
    assert GOOD.to_json()["accuracy_gap_points"] == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peers_killed": 0}, "0 peers were killed"),
        ({"peers_joined_late": 0}, "no peer joined late"),
        ({"accuracy_reference": 97.5}, "2.5 points below"),
        ({"accuracy_alone_mean": 81.0}, "peers that never exchange"),
        ({"plain_exchanges_to_target": 250.0}, "2.50 times as many"),
        ({"exchanges_to_target": None}, "never was 90 %"),
        ({"seconds": 181.0}, "took 181 s"),
    ],
)
def test_each_broken_bound_has_its_sentence(change: dict[str, Any], says: str) -> None:
    (sentence,) = broken_bounds(dataclasses.replace(GOOD, **change), shortened=False)
    assert says in sentence


def test_plain_gossip_that_never_arrives_counts_as_its_cap() -> None:
    never = dataclasses.replace(GOOD, plain_exchanges_to_target=None)
    assert never.plain_ratio == 10.0


def test_not_a_number_breaks_the_bound() -> None:
    broken = dataclasses.replace(GOOD, accuracy_mean=float("nan"))
    assert len(list(broken_bounds(broken, shortened=False))) == 2
