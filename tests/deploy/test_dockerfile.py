"""The Dockerfile, read and linted; building it takes a daemon, a network and minutes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from node.config import KEYS, env_name
from tests.test_rooms import ROOMS

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
IGNORED: Final = ROOT / "deploy" / "Dockerfile.dockerignore"
STATEFUL_SET: Final = ROOT / "deploy" / "kubernetes" / "base" / "statefulset.yaml"

HADOLINT: Final = shutil.which(
    "hadolint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
)


def _copied() -> set[str]:
    """What comes from the repository."""
    lines = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text("utf-8"))
    return {name for line in lines for name in line.split()}


def test_all_rooms_are_copied_and_all_that_is_copied_is_there() -> None:
    assert set(ROOMS) <= _copied()
    for name in _copied():
        assert (ROOT / name).exists(), name


def test_the_builder_is_sent_what_is_copied_and_no_more() -> None:
    lines = IGNORED.read_text("utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == _copied()


def test_the_user_is_that_of_the_manifests_and_not_root() -> None:
    (user, group) = re.findall(r"(?m)^USER (\d+):(\d+)$", DOCKERFILE.read_text("utf-8"))[-1]
    manifest = STATEFUL_SET.read_text("utf-8")
    assert user != "0"
    assert f"runAsUser: {user}\n" in manifest
    assert f"runAsGroup: {group}\n" in manifest
    assert f"fsGroup: {group}\n" in manifest


def test_variables_are_settings() -> None:
    names = set(re.findall(r"\b(MURMURA_\w+)=", DOCKERFILE.read_text("utf-8")))
    assert names
    assert names <= {env_name(key) for key in KEYS}


@pytest.mark.process
@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_linter_finds_nothing() -> None:
    assert HADOLINT is not None
    shown = subprocess.run(
        [HADOLINT, str(DOCKERFILE)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (shown.returncode, shown.stdout) == (0, "")
