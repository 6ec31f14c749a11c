"""What people argue about happens as it is written down. `python -m tests.sim.pipeline.scenarios --rewrite` accepts a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.pipeline.scenarios import __main__ as command
from tests.sim.pipeline.scenarios.play import Play, rewritten

pytestmark = pytest.mark.sim

SCENARIOS = sorted(command.FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_it_happens_as_written(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert rewritten(text).splitlines() == text.splitlines()


def test_a_changed_trace_is_shown_and_written_down_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    written = "swarm stages=1 peers=1 microbatches=1\n----\n  0.00  something else\n"
    path = tmp_path / "one.txt"
    path.write_text(written)
    assert command.main([]) == 1
    assert path.read_text() == written
    assert "-  0.00  something else" in capsys.readouterr().err
    assert command.main(["--rewrite", "one"]) == 0
    assert "record 0 step 0 lead p1 members p1@0" in path.read_text()
    assert command.main([]) == 0


@pytest.mark.parametrize(
    "commands", [["run 1"], ["swarm stages=1 peers=1 microbatches=1", "dance"]]
)
def test_what_cannot_be_played_is_refused(commands: list[str]) -> None:
    with pytest.raises(ValueError, match=r"swarm|dance"):
        Play().do(commands)


def test_a_command_without_its_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="run 1"):
        rewritten("swarm stages=1 peers=1 microbatches=1\n----\n\nrun 1\n")
