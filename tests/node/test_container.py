"""What a container leaves us, read from files laid out as the kernel does."""

from __future__ import annotations

import os
from pathlib import Path

from node.container import cores_available, memory_limit_bytes

CORES = len(os.sched_getaffinity(0))


def lay_out(folder: Path, ours: str, files: dict[str, str]) -> tuple[Path, Path]:
    groups = folder / "cgroup"
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "self").write_text(ours + "\n")
    return groups, folder / "self"


def test_a_containers_quota_is_rounded_up_and_never_nothing(tmp_path: Path) -> None:
    where = lay_out(tmp_path, "0::/", {"cpu.max": "50000 100000", "memory.max": "536870912"})
    assert cores_available(*where) == 1
    assert memory_limit_bytes(*where) == 512 << 20


def test_of_all_groups_above_ours_the_smallest_limit_holds(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000",
        "a/cpu.max": "100000 100000",
        "a/b/cpu.max": "900000 100000",
        "a/memory.max": "max",
        "a/b/memory.max": "1000000",
    }
    where = lay_out(tmp_path, "0::/a/b", files)
    assert cores_available(*where) == 1
    assert memory_limit_bytes(*where) == 1_000_000


def test_version_one_is_understood(tmp_path: Path) -> None:
    files = {
        "cpu/docker/x/cpu.cfs_quota_us": "100000",
        "cpu/docker/x/cpu.cfs_period_us": "100000",
        "memory/docker/x/memory.limit_in_bytes": "2000000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    ours = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x"
    where = lay_out(tmp_path, ours, files)
    assert cores_available(*where) == 1
    assert memory_limit_bytes(*where) == 2_000_000


def test_without_limits_the_machine_is_all_ours(tmp_path: Path) -> None:
    where = lay_out(tmp_path, "0::/", {"cpu.max": "max 100000", "memory.max": "max"})
    assert cores_available(*where) == CORES
    assert memory_limit_bytes(*where) is None
    assert cores_available(tmp_path / "none", tmp_path / "none") == CORES
    assert memory_limit_bytes(tmp_path / "none", tmp_path / "none") is None
