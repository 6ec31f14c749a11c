"""How the demo waits: it looks until it sees, and says whose log to read when there is nothing more to see."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.demo import watching
from node.demo.scenarios.pipeline import faults, scenario
from node.demo.scenarios.pipeline.sights import PipelineScene, PipelineView
from node.demo.watching import Watch
from node.errors import NodeError, NotRunningError


def status(*, state: str = "serving", **pipeline: Any) -> dict[str, Any]:
    """A node's status with what the demo reads of it."""
    return {
        "life": {"state": state},
        "node": {"peer_id": "12D3KooWTest"},
        "run": {"mode": "pipeline"},
        "services": {"pipeline": pipeline},
    }


class FakeNode:
    """Answers with one status after the other and stays at the last."""

    scripts: dict[str, list[Any]]

    def __init__(self, folder: Path, *flags: str, command: Any = ()) -> None:
        self.name = folder.name
        self.process = SimpleNamespace(poll=lambda: self.code)
        self.code: int | None = None
        self._answers = list(self.scripts[self.name])

    def ask(self, method: str, **params: Any) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def family(self) -> set[int]:
        return set()

    def tail(self) -> str:
        return f"the last line of {self.name}"

    def left_behind(self) -> set[int]:
        return set()

    def kill(self) -> None:
        self.code = -9

    def close(self) -> None:
        pass


class Notes:
    """A screen that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, scene: Any, view: Any) -> None:
        pass

    def progress(self, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Name -> what that node answers."""
    scripts: dict[str, list[Any]] = {}
    monkeypatch.setattr(FakeNode, "scripts", scripts, raising=False)
    monkeypatch.setattr(watching, "LocalNode", FakeNode)
    return scripts


def watch_of(nodes: dict[str, list[Any]]) -> Watch[PipelineScene]:
    watch = Watch(Path("unused"), Notes(), PipelineView(120))
    for name in nodes:
        watch.start(name, role="hosts, trains")
    return watch


def test_waiting_ends_with_the_scene_that_was_waited_for(nodes: dict[str, list[Any]]) -> None:
    nodes["n1"] = [status(step=step, stage=0) for step in range(5)]
    scene = watch_of(nodes).until(lambda scene: scene.step >= 3, what="step 3", every_s=0.0)
    assert scene.step == 3


def test_a_node_whose_socket_is_not_there_yet_is_starting(nodes: dict[str, list[Any]]) -> None:
    nodes["n1"] = [NotRunningError("nobody answers"), status(step=1)]
    watch = watch_of(nodes)
    assert watch.look().find("n1").state == "starting"
    assert watch.look().find("n1").state == "serving"


def test_when_nothing_happens_the_log_of_a_node_that_does_not_serve_is_shown(
    nodes: dict[str, list[Any]],
) -> None:
    nodes["n1"] = [status(step=4, stage=0, waiting_for="8 microbatches")]
    nodes["n2"] = [status(state="syncing", step=2)]
    with pytest.raises(NodeError) as raised:
        watch_of(nodes).until(lambda scene: False, what="step 5", every_s=0.0, still_s=0.0)
    assert "at step 4 while waiting for step 5" in raised.value.reason
    assert raised.value.hint == "the last line of n2"


def test_when_all_serve_and_nothing_happens_the_lead_is_asked_what_it_waits_for(
    nodes: dict[str, list[Any]],
) -> None:
    nodes["n1"] = [status(step=4, stage=0)]
    nodes["n2"] = [status(step=4, stage=1, leading=True, waiting_for="8 microbatches")]
    with pytest.raises(NodeError, match="waits for 8 microbatches") as raised:
        watch_of(nodes).until(lambda scene: False, what="step 5", every_s=0.0, still_s=0.0)
    assert raised.value.hint == "the last line of n2"


def test_a_node_that_ends_by_itself_ends_the_demo_with_its_log(nodes: dict[str, list[Any]]) -> None:
    nodes["n1"] = [status(step=4)]
    watch = watch_of(nodes)
    watch._watched["n1"].node.code = 78  # type: ignore[attr-defined]
    with pytest.raises(NodeError, match="exit code 78") as raised:
        watch.look()
    assert raised.value.hint == "the last line of n1"


def test_a_node_without_the_text_ends_the_demo(nodes: dict[str, list[Any]]) -> None:
    nodes["n1"] = [status(data_problem="the text is another one")]
    with pytest.raises(NodeError, match="the text is another one"):
        watch_of(nodes).until(lambda scene: False, what="training", every_s=0.0)


def test_a_killed_node_is_not_asked_any_more_and_counts_for_nothing(
    nodes: dict[str, list[Any]],
) -> None:
    nodes["n1"] = [status(step=9, stage=0)]
    nodes["n2"] = [status(step=4, stage=1)]
    watch = watch_of(nodes)
    watch.look()
    watch.kill("n1")
    scene = watch.look()
    assert scene.find("n1").state == "killed"
    assert scene.step == 4
    assert [sight.name for sight in scene.hosting] == ["n2"]


def test_leaving_is_said_and_the_last_picture_shows_nodes_that_have_drained(
    nodes: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes["n1"] = [status(step=9, stage=0), {"step": 9, "bytes": 7}]
    monkeypatch.setattr(watching, "stop_all", lambda nodes: dict.fromkeys(nodes, 0))
    watch = watch_of(nodes)
    shown: list[PipelineScene] = []
    monkeypatch.setattr(watch.screen, "show", lambda scene, view: shown.append(scene))
    assert scenario._leave(watch, Path("model")) == []
    assert [what.split()[0].strip(":") for what in watch.screen.said] == [  # type: ignore[attr-defined]
        "exported",
        "draining",
        "drained",
    ]
    assert [sight.state for sight in shown[-1].sights] == ["drained"]


def member(*, stage: int, counted: int, step: int = 7, leading: bool = False) -> dict[str, Any]:
    return status(
        stage=stage,
        step=step,
        counting_step=step + 1,
        microbatches_counted_in_step=counted,
        leading=leading,
    )


def test_the_lead_is_killed_with_work_in_a_step_that_its_stage_has_not_finished(
    nodes: dict[str, list[Any]],
) -> None:
    """First n1 has nothing, then its stage is almost done; in the next step both are right."""
    nodes["n1"] = [
        member(stage=0, counted=0, leading=True),
        member(stage=0, counted=4, leading=True),
        member(stage=0, counted=3, leading=True, step=8),
    ]
    nodes["n2"] = [
        member(stage=0, counted=3),
        member(stage=0, counted=3),
        *2 * [member(stage=0, counted=2, step=8)],
        member(stage=0, counted=0, step=9),
    ]
    killed = faults.kill_lead_with_work(watch_of(nodes), microbatches=8)
    assert (killed.name, killed.step) == ("n1", 9)
    assert killed.held == "3 microbatches counted"


def test_a_lead_without_a_replica_is_not_killed(
    nodes: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes["n1"] = [member(stage=0, counted=3, leading=True)]
    monkeypatch.setattr(Watch, "until", functools.partialmethod(Watch.until, still_s=0.0))
    with pytest.raises(NodeError, match="the lead to have work"):
        faults.kill_lead_with_work(watch_of(nodes), microbatches=8)
