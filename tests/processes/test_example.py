"""The example of the tutorial, run as its reader would: three scripts, no daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.node.processes import REPOSITORY, environment

pytestmark = pytest.mark.process

EXAMPLES = REPOSITORY / "examples"
PATIENCE_S = 120.0


def start(home: Path, *arguments: str, example: str = "gossip.py") -> subprocess.Popen[str]:
    home.mkdir()
    command = [sys.executable, "-u", str(EXAMPLES / example), *arguments]
    with (home / "log").open("w") as log:
        return subprocess.Popen(
            [*command, "--listen", "/ip4/127.0.0.1/tcp/0", "--seconds", "25"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | environment(home) | {"OMP_NUM_THREADS": "1"},
        )


@pytest.mark.soak
def test_three_scripts_learn_all_digits_though_each_sees_a_third_of_the_labels(
    tmp_path: Path,
) -> None:
    first = start(tmp_path / "a")
    scripts = [first]
    try:
        assert first.stdout is not None
        found = re.search(r"murmura1\w+", first.stdout.readline())
        assert found is not None, (tmp_path / "a" / "log").read_text()
        scripts += [
            start(tmp_path / name, found.group(), "--part", part)
            for name, part in (("b", "1"), ("c", "2"))
        ]
        deadline_s = time.monotonic() + PATIENCE_S
        for script in scripts:
            out, _ = script.communicate(timeout=max(1.0, deadline_s - time.monotonic()))
            assert script.returncode == 0
            seen = [float(text) for text in re.findall(r"batch \d+: ([0-9.]+) %", out)]
            # Four labels of ten are all that one script sees: without the others it cannot pass 40 %.
            assert max(seen) > 50.0, seen
    finally:
        for script in scripts:
            with script:  # closes its pipe
                script.kill()


def test_a_script_that_raises_leaves_in_order_and_its_error_is_its_own(tmp_path: Path) -> None:
    code = (
        "import torch, murmura\n"
        "model = torch.nn.Linear(2, 1)\n"
        "sgd = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "with murmura.join(run=murmura.script_run('tiny', sgd), listen=('/ip4/127.0.0.1/tcp/0',)) as swarm:\n"
        "    optimizer = murmura.Optimizer(swarm, sgd)\n"
        "    raise KeyError('mine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'mine'")


def test_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    code = (
        "import torch, murmura\n"
        "sgd = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)\n"
        "other = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.1)\n"
        "with murmura.join(run=murmura.script_run('tiny', sgd), listen=('/ip4/127.0.0.1/tcp/0',)) as swarm:\n"
        "    try:\n"
        "        murmura.Optimizer(swarm, other)\n"
        "    except murmura.NodeError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is of another model: 3 parameters, this one has 4" in done.stdout


@pytest.mark.soak
def test_two_scripts_have_the_same_parameters_after_a_round(tmp_path: Path) -> None:
    first = start(tmp_path / "a", example="diloco.py")
    scripts = [first]
    try:
        assert first.stdout is not None
        found = re.search(r"murmura1\w+", first.stdout.readline())
        assert found is not None, (tmp_path / "a" / "log").read_text()
        scripts.append(start(tmp_path / "b", found.group(), "--part", "1", example="diloco.py"))
        seen = []
        for script in scripts:
            out, _ = script.communicate(timeout=PATIENCE_S)
            assert script.returncode == 0
            seen.append(dict(re.findall(r"^([0-9a-f]{8}) ([0-9.]+) %", out, re.MULTILINE)))
        common = seen[0].keys() & seen[1].keys()
        assert len(common) > 5, seen
        assert max(float(seen[0][digest]) for digest in common) > 80.0
    finally:
        for script in scripts:
            with script:  # closes its pipe
                script.kill()
