"""What can be said of deploy/ without running it: how exposed the unit is, whether Kubernetes would take the manifests."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
OVERLAYS: Final = ("cpu", "gpu", "spot", "first")
_CHECK_S: Final = 60.0


def exposure_cpu_unit() -> float | None:
    """Return systemd's number for the unit, 0 to 10; None where systemd-analyze is not installed or says none."""
    if shutil.which("systemd-analyze") is None:
        return None
    unit = DEPLOY / "systemd" / "murmura.service"
    said = _output("systemd-analyze", "security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    return float(found.group(1)) if found else None


def manifests_valid() -> bool | None:
    """Render every overlay and hold it against Kubernetes' schemas; None where a checker is not installed."""
    if shutil.which("kubectl") is None or importlib.util.find_spec("kubernetes_validate") is None:
        return None
    validator: Any = importlib.import_module("kubernetes_validate")
    yaml: Any = importlib.import_module("yaml")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copytree(DEPLOY / "kubernetes", Path(name) / "kubernetes"))
        (copy / "join" / "invite.txt").write_text("murmura1test\n", "utf-8")
        (copy / "overlays" / "first" / "run.toml").write_text('name = "test"\n', "utf-8")
        for overlay in OVERLAYS:
            rendered = _output("kubectl", "kustomize", str(copy / "overlays" / overlay))
            resources = list(yaml.safe_load_all(rendered))
            if not resources:
                return False
            for resource in resources:
                try:
                    validator.validate(resource, validator.latest_version(), strict=True)
                except validator.ValidationError:
                    return False
    return True


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_S, check=False)
    return done.stdout
