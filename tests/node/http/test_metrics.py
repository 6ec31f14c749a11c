"""The status as Prometheus reads it."""

from __future__ import annotations

import copy
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.http.metrics import Metrics, metric_names
from node.modes import MODES
from tests.node.cli.samples import STATUS


def samples(status: dict[str, Any], accept: str = "") -> dict[tuple[str, tuple[str, ...]], float]:
    body, _ = Metrics(lambda: status).text(accept)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def full_status(mode: str) -> dict[str, Any]:
    """Return a status in which everything that a mode may know is known."""
    status = copy.deepcopy(STATUS)
    status["run"]["mode"] = mode
    supervision = {"up": True, "restarts": 0, "last_error": None}
    section: dict[str, Any] = {metric.key: 2 for metric in MODES[mode].metrics} | supervision
    section |= {"in_run": True, "step": 1, "steps": 2, "loss": 0.5, "held_out_loss": 0.5}
    section |= {"samples_per_second": 1.0, "peers": 3, "resting": False, "waiting_for": None}
    status["services"] = {
        mode: section,
        "checkpoints": {"count": 1, "age_seconds": 2.0, "size_bytes": 3} | supervision,
    }
    return status


def test_figures_of_the_node_and_of_its_mode_are_read_from_the_status() -> None:
    found = samples(STATUS)
    assert found["murmura_healthy", ()] == 0
    assert found["murmura_state", ("isolated",)] == 1
    assert found["murmura_state", ("serving",)] == 0
    assert found["murmura_memory_bytes", ()] == 200 << 20
    assert found["murmura_cpu_seconds_total", ()] == 10.5
    assert found["murmura_service_up", ("pipeline",)] == 0
    assert found["murmura_service_restarts_total", ("pipeline",)] == 2
    assert found["murmura_step", ()] == 41
    assert found["murmura_loss", ()] == 2.34567891
    assert found["murmura_loop_lag_seconds", ("99",)] == 0.0032
    assert [found["murmura_pipeline_stage_members", (str(stage),)] for stage in range(3)] == [
        2,
        2,
        1,
    ]


def test_what_is_not_known_has_no_sample() -> None:
    found = samples(STATUS)
    assert ("murmura_held_out_loss", ()) not in found
    assert ("murmura_checkpoints", ()) not in found


@pytest.mark.parametrize("mode", sorted(MODES))
def test_all_names_of_a_mode_are_declared_and_come_out(mode: str) -> None:
    names = {name for name, _ in samples(full_status(mode))}
    others = {f"murmura_{other}_" for other in MODES if other != mode}
    assert names == {name for name in metric_names() if not name.startswith(tuple(others))}


@pytest.mark.process
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("mode", sorted(MODES))
def test_prometheus_finds_nothing_odd_about_them(mode: str) -> None:
    text, _ = Metrics(lambda: full_status(mode)).text("")
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_name_with_quotes_and_line_breaks_stays_a_label() -> None:
    status = copy.deepcopy(STATUS)
    name = 'x"} 1\nmurmura_evil{a="\\'
    status["run"]["name"] = name
    found = samples(status)
    assert not any("evil" in metric for metric, _ in found)
    assert any(name in labels for metric, labels in found if metric == "murmura_node_info")


def test_two_nodes_in_one_process_do_not_meet() -> None:
    other = copy.deepcopy(STATUS)
    other["resources"]["descriptors"] = 99
    first, second = Metrics(lambda: STATUS), Metrics(lambda: other)
    assert b"murmura_open_files 30.0" in first.text("")[0]
    assert b"murmura_open_files 99.0" in second.text("")[0]


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    body, content_type = Metrics(lambda: STATUS).text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
