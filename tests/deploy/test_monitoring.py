"""The dashboard and the alerts ask for metrics that a node has, with labels that it gives them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.http.metrics import Metrics, metric_names
from node.modes import MODES
from tests.node.http.test_metrics import full_status

yaml = pytest.importorskip("yaml")

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yaml"
_NAME: Final = re.compile(r"\b(murmura_\w+|up)\b(?=[\s{)\[]|$)")


def _alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def _expressions() -> Iterator[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "murmura.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    yield from (rule["expr"] for rule in _alerts())


def test_only_metrics_that_exist_are_asked_for() -> None:
    known = metric_names() | {"up"}
    for expression in _expressions():
        asked = set(_NAME.findall(expression))
        assert asked, f"asks for nothing: {expression}"
        assert asked <= known, f"{asked - known} in: {expression}"
        assert len(asked) == len(set(re.findall(r"murmura_\w+", expression)) | (asked & {"up"}))


def test_only_labels_that_a_node_gives_are_selected_or_grouped_by() -> None:
    given: set[str] = {"job", "instance"}
    for mode in MODES:
        text = Metrics(lambda mode=mode: full_status(mode)).text("")[0].decode()  # type: ignore[misc]
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                given |= sample.labels.keys()
    for expression in _expressions():
        selected = set(re.findall(r"(\w+)\s*=~?\s*\"", expression))
        grouped = {
            name.strip()
            for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
            for name in names.split(",")
        }
        assert selected | grouped <= given, expression


def test_every_alert_says_what_a_person_should_do() -> None:
    names = [rule["alert"] for rule in _alerts()]
    assert len(set(names)) == len(names)
    for rule in _alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


def test_panels_do_not_lie_over_one_another() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "murmura.json").read_text("utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.process
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_alerts_and_the_scrape_configuration(tmp_path: Path) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yaml").read_text("utf-8"))
    jobs = config["scrape_configs"]
    # Debian's promtool is built without Kubernetes.
    config["scrape_configs"] = [job for job in jobs if "kubernetes_sd_configs" not in job]
    assert len(jobs) == 2
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config | {"rule_files": [str(ALERTS)]}), "utf-8")
    checked = subprocess.run(
        ["promtool", "check", "config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
