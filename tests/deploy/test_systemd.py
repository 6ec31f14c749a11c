"""The units as systemd itself reads them: no line it does not know, and little that the service could reach."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from node import exit_codes
from node.config import NodeConfig
from node.heartbeat import MEASURE_EVERY_S

UNITS: Final = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
SYSTEM: Final = UNITS / "murmura.service"
USER: Final = UNITS / "user" / "murmura.service"
GPU: Final = UNITS / "gpu.conf"
EXPOSURE_MAX: Final = 2.5
SAVING_S: Final = 5.0
"""What a node may take after its drain."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def _installed(unit: Path, folder: Path, *drop_ins: Path) -> Path:
    """Copy a unit as an operator installs it, with a program that exists on this machine."""
    text, count = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text("utf-8"))
    assert count == 1
    placed = folder / unit.name
    placed.write_text(text, "utf-8")
    for drop_in in drop_ins:
        beside = folder / f"{unit.name}.d"
        beside.mkdir()
        shutil.copy(drop_in, beside)
    return placed


def _analyze(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder), "SYSTEMD_PAGER": "", "LC_ALL": "C"},
    )


def _exposure(unit: Path) -> float:
    shown = _analyze("security", "--offline=true", "--no-pager", str(unit), folder=unit.parent)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", shown.stdout)
    assert found, shown.stdout + shown.stderr
    return float(found[1])


def _values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", unit.read_text("utf-8"))


@needs_systemd
@pytest.mark.process
@pytest.mark.parametrize(
    ("unit", "drop_ins", "manager"),
    [(SYSTEM, (), "--system"), (SYSTEM, (GPU,), "--system"), (USER, (), "--user")],
    ids=["system", "system-gpu", "user"],
)
def test_systemd_finds_nothing_wrong(
    tmp_path: Path, unit: Path, drop_ins: tuple[Path, ...], manager: str
) -> None:
    placed = _installed(unit, tmp_path, *drop_ins)
    shown = _analyze("verify", manager, "--man=no", str(placed), folder=tmp_path)
    ours = [line for line in shown.stderr.splitlines() if "murmura" in line or "gpu.conf" in line]
    assert (shown.returncode, ours) == (0, []), shown.stderr


@needs_systemd
@pytest.mark.process
def test_a_wrong_line_is_found(tmp_path: Path) -> None:
    placed = _installed(SYSTEM, tmp_path)
    placed.write_text(placed.read_text("utf-8").replace("WatchdogSec=60", "WatchdogSec=soon"))
    shown = _analyze("verify", "--system", "--man=no", str(placed), folder=tmp_path)
    assert "Failed to parse sec value, ignoring: soon" in shown.stderr


@needs_systemd
@pytest.mark.process
def test_the_system_unit_exposes_little(tmp_path: Path) -> None:
    assert _exposure(_installed(SYSTEM, tmp_path)) <= EXPOSURE_MAX


@pytest.mark.parametrize("unit", [SYSTEM, USER], ids=["system", "user"])
def test_units_agree_with_the_daemon(unit: Path) -> None:
    assert _values(unit, "Type") == ["notify"]
    assert _values(unit, "NotifyAccess") == ["main"]
    assert _values(unit, "RestartPreventExitStatus") == [
        f"{exit_codes.NO_PERMISSION} {exit_codes.CONFIG}"
    ]
    (stop_s,) = map(float, _values(unit, "TimeoutStopSec"))
    assert stop_s >= NodeConfig().drain_s + SAVING_S
    (watchdog_s,) = map(float, _values(unit, "WatchdogSec"))
    # systemd asks to be told twice as often as it would kill; one beat that is late must not do it.
    assert watchdog_s >= 3 * MEASURE_EVERY_S
