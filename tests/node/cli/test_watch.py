"""The live screen: what it draws of each mode, narrow and wide, and what it does when the daemon dies."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from node.cli.watch import Watched, sparkline, watch
from node.errors import NotRunningError
from node.modes import MODES
from tests.node.cli.samples import PEER, STATUS

OTHER = f"12D3KooW{'A' * 44}"
EXPERT = {"epoch": 1, "rows": 3, "steps": 2, "staleness": 0.0, "age_seconds": 1.0, "here": True}
SECTIONS: dict[str, dict[str, Any]] = {
    "pipeline": {
        "members_by_stage": [1, 1, 0],
        "members": [{"peer_id": PEER, "stage": 0}, {"peer_id": OTHER, "stage": 1}],
    },
    "gossip": {
        "members": [
            {
                "peer_id": OTHER,
                "models": 7,
                "refused": 0,
                "pushes_taken": 2,
                "last_model_seconds": 1.2,
            }
        ]
    },
    "collective": {
        "fragments": [
            {
                "numbers": 1000,
                "averaged_at_step": 30,
                "line": "aa",
                "round": "averaging",
                "steps_not_averaged": 11,
            }
        ],
        "members": [{"peer_id": OTHER}],
    },
    "moe": {
        "experts": 2,
        "experts_alive": 1,
        "experts_hosted": 1,
        "grid": [2],
        "layers": ["ffn"],
        "table": [
            {"expert": "ffn.0", "hosts": [PEER]} | EXPERT,
            {"expert": "ffn.1", "hosts": []} | EXPERT,
        ],
    },
}
SEEN = {
    "pipeline": ("stage 0", f"{PEER[-8:]} (here)", "nobody"),
    "gossip": ("neighbour", OTHER[-8:]),
    "collective": ("outer/0", "averaging", OTHER[-8:]),
    "moe": ("1 of 2 alive, 1 here", "!"),
}


def report_of(mode: str, **more: Any) -> dict[str, Any]:
    report = copy.deepcopy(STATUS)
    report["run"]["mode"] = mode
    supervision = {"up": True, "restarts": 0, "last_error": None}
    training = {"step": 41, "steps": 120, "loss": 2.5, "samples_per_second": 9.0, "peers": 2}
    report["services"] = {mode: training | SECTIONS[mode] | supervision | more}
    return report


def drawn(watched: Watched, width: int = 100, now_s: float = 0.0) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(watched.screen(width, now_s))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_has_its_picture_in_wide_and_in_narrow_windows(mode: str) -> None:
    watched = Watched()
    watched.saw(report_of(mode))
    wide = drawn(watched)
    assert "41 of 120" in wide
    assert "isolated" in wide
    for text in SEEN[mode]:
        assert text in wide
    for width in (40, 20):
        lines = drawn(watched, width).splitlines()
        assert max(map(len, lines)) <= width


def test_a_daemon_that_dies_leaves_its_last_picture_and_is_taken_up_again() -> None:
    watched = Watched()
    watched.saw(report_of("pipeline"))
    watched.missed("no daemon answers", 100.0)
    watched.missed("no daemon answers", 160.0)
    gone = drawn(watched, now_s=165.0)
    assert "no answer for 1 min 5 s: no daemon answers" in gone
    assert "stage 0" in gone
    watched.saw(report_of("pipeline"))
    assert "no answer" not in drawn(watched)


def test_a_node_that_never_answered_is_waited_for() -> None:
    watched = Watched()
    watched.missed("no daemon answers", 0.0)
    assert "waiting for the node" in drawn(watched)


def test_names_are_text_and_never_markup_or_escapes() -> None:
    report = report_of("pipeline", role="[bold]x[/bold]\x1b[2J")
    report["run"]["name"] = "[red]evil[/red]\x1b]0;owned\x07"
    watched = Watched()
    watched.saw(report)
    screen = drawn(watched)
    assert "[red]evil[/red]\\x1b]0;owned\\x07" in screen
    assert "\x1b]" not in screen


def test_a_loss_that_is_no_number_is_not_drawn() -> None:
    watched = Watched()
    for loss in (3.0, float("nan"), None, 1.0):
        watched.saw(report_of("pipeline", loss=loss))
    assert "█▁" in drawn(watched)


def test_bars_are_scaled_to_what_is_shown() -> None:
    assert sparkline([1.0, 2.0, 3.0], 10) == "▁▅█"
    assert sparkline([9.0, 1.0, 2.0], 2) == "▁█"
    assert sparkline([5.0, 5.0], 10) == "▁▁"
    assert sparkline([], 10) == ""


def test_the_loop_goes_on_when_the_daemon_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0

    def ask() -> dict[str, Any]:
        nonlocal turns
        turns += 1
        if turns == 2:
            raise NotRunningError("no daemon answers")
        if turns == 4:
            raise KeyboardInterrupt
        return report_of("gossip")

    monkeypatch.setattr("node.cli.watch.TURN_S", 0.0)
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        watch(ask, console)
    assert turns == 4
