"""Progress: lines in a log, a table on a terminal."""

from __future__ import annotations

import io
import time

import pytest

from node.demo import screen
from node.demo.scenarios.pipeline.sights import PipelineScene, PipelineSight, PipelineView
from node.demo.screen import LiveScreen, PlainScreen, headline, open_screen

VIEW = PipelineView(120)
SCENE = PipelineScene(
    (
        PipelineSight(
            name="n1", role="hosts, trains", fate="up", state="serving", stage=0, step=41, leading=True,
            loss=2.345, held_out_loss=2.5, tokens_per_second=5310.4, members_by_stage=(2, 2, 1),
        ),
        PipelineSight(name="n2", role="hosts, trains", fate="killed", state="killed", step=40),
    )
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_headline_says_step_losses_speed_and_peers() -> None:
    assert headline(SCENE, VIEW) == (
        "step 41/120, loss 2.345, held-out 2.500, 5,310 tokens/s, peers per stage 2 2 1, 1 nodes up"
    )


def test_before_anybody_answers_the_headline_says_how_many_start() -> None:
    assert (
        headline(PipelineScene((PipelineSight(name="n1", role="r", fate="up"),)), VIEW)
        == "starting 1 nodes"
    )


def test_when_nobody_is_up_any_more_the_headline_says_so() -> None:
    assert headline(PipelineScene((PipelineSight(name="n1", role="r", fate="drained"),)), VIEW) == (
        "all nodes have left"
    )


def test_a_log_gets_one_line_for_many_looks_and_every_event() -> None:
    out = io.StringIO()
    plain = PlainScreen(time.monotonic(), out)
    for _ in range(100):
        plain.show(SCENE, VIEW)
    plain.say("SIGKILL: node n2")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("* SIGKILL: node n2")


def test_a_terminal_gets_a_table_with_a_row_for_every_node() -> None:
    out = Terminal()
    live = open_screen(began_s=time.monotonic(), stream=out)
    assert isinstance(live, LiveScreen)
    live.show(SCENE, VIEW)
    live.say("SIGKILL: node n2")
    live.close()
    picture = out.getvalue()
    assert "41 (leads)" in picture
    assert "killed" in picture
    assert "SIGKILL: node n2" in picture


def test_anything_else_gets_lines() -> None:
    assert isinstance(open_screen(began_s=0.0, stream=io.StringIO()), PlainScreen)


def test_lines_come_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    plain = PlainScreen(0.0, out)
    plain.show(SCENE, VIEW)
    monkeypatch.setattr(screen, "LINE_EVERY_S", 0.0)
    plain.show(SCENE, VIEW)
    assert len(out.getvalue().splitlines()) == 2
