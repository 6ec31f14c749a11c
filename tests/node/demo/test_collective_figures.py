"""The bounds of the demo of outer steps: each one is noticed when it is broken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.demo.scenarios.collective.figures import Figures, broken_bounds
from node.demo.scenarios.collective.plan import make_plan
from node.demo.scenarios.collective.sights import CollectiveSight, CollectiveView
from node.demo.scene import Sight

GOOD = Figures(
    peers=4,
    peers_killed=1,
    peers_joined_late=1,
    steps=1000,
    loss_before=5.5,
    loss=1.8,
    loss_one_process=1.78,
    outer_parameters_differ=0.0,
    rounds=99,
    rounds_missed=2,
    bytes_per_step=10_000.0,
    bytes_per_step_data_parallel=1_500_000.0,
    seconds=100.0,
    processor="any",
    cores=2,
    date="2026-11-28",
)


def test_a_good_run_breaks_no_bound() -> None:
    assert list(broken_bounds(GOOD, shortened=False)) == []
    assert GOOD.to_json()["bytes_ratio"] == 150.0
    assert GOOD.to_json()["loss_ratio"] == pytest.approx(1.0112, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peers_killed": 0}, "0 peers were killed"),
        ({"peers_joined_late": 0}, "no peer joined late"),
        ({"outer_parameters_differ": 0.1}, "differ by 0.1"),
        ({"loss": 2.0}, "1.124 times that of one process"),
        ({"bytes_per_step": 20_000.0}, "75 times the bytes"),
        ({"seconds": 1000.0}, "took 1000 s"),
    ],
)
def test_each_broken_bound_has_its_sentence(change: dict[str, Any], says: str) -> None:
    (sentence,) = broken_bounds(dataclasses.replace(GOOD, **change), shortened=False)
    assert says in sentence


def test_a_look_takes_what_it_shows_from_the_status() -> None:
    section = {"step": 40, "held_out_loss": 2.0, "rounds": 3, "group": 4, "finished": True}
    status = {
        "life": {"state": "serving"},
        "node": {"peer_id": "x"},
        "run": {"mode": "collective"},
        "services": {"collective": section},
    }
    view = CollectiveView(1000)
    sight = view.sight(Sight(name="n1", role="trains", fate="up"), status)
    assert isinstance(sight, CollectiveSight)
    assert view.scene([sight]).finished
    assert list(view.cells(sight)) == ["40", "2.000", "3", "0", "4", "0"]
    assert "held-out loss 2.000" in view.headline(view.scene([sight]))


def test_the_run_file_is_one(tmp_path: Any) -> None:
    plan = make_plan(tmp_path / "run.toml", data="", steps=100)
    assert (plan.run.mode, plan.kill_at, plan.join_at) == ("collective", 40, 50)
