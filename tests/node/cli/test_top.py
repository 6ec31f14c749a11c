"""The table of many nodes: what they say of themselves is text, and who does not answer has a row too."""

from __future__ import annotations

from typing import Any

from node.cli.commands.top import Speed, table_lines

ALICE = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWAliceAlice"
BOB = "/ip4/192.0.2.2/tcp/4001/p2p/12D3KooWBobBobBob"


def row(address: str, **facts: Any) -> dict[str, Any]:
    status = {
        "state": "serving",
        "state_seconds": 65.0,
        "run_name": "try",
        "mode": "pipeline",
        "role": "stage 1",
        "step": 41,
        "peers": 3,
    }
    return {"address": address, "status": status | facts, "problem": None}


def test_each_node_has_a_line_whether_it_answers_or_not() -> None:
    gone = {"address": BOB, "status": None, "problem": "nobody answers at 192.0.2.2 port 4001"}
    assert table_lines([row(ALICE), gone], {ALICE: 12.0}) == [
        "node      state                                  for        run  mode      role     step  steps/min  peers",
        "iceAlice  serving                                1 min 5 s  try  pipeline  stage 1  41    12.0       3",
        "BobBobBob"[-8:] + "  nobody answers at 192.0.2.2 port 4001",
    ]


def test_a_private_run_shows_that_the_node_is_up() -> None:
    facts = dict.fromkeys(
        ("state", "state_seconds", "run_name", "mode", "role", "step", "peers"), None
    )
    assert "its run is private" in table_lines([row(ALICE, **facts)], {})[1]


def test_what_a_node_says_of_itself_cannot_move_the_cursor() -> None:
    lines = table_lines([row(ALICE, run_name="\x1b[2Jx\nmurmura", role="\u202e")], {})
    assert len(lines) == 2
    assert "\\x1b[2Jx\\nmurmura" in lines[1]
    assert "\x1b" not in lines[1]


def test_speed_is_since_first_seen_and_begins_anew_when_a_step_goes_back() -> None:
    speed = Speed()
    assert speed.saw([row(ALICE, step=10)], 0.0) == {}
    assert speed.saw([row(ALICE, step=20)], 60.0) == {ALICE: 10.0}
    assert speed.saw([row(ALICE, step=5)], 120.0) == {}
    assert speed.saw([row(ALICE, step=6)], 180.0) == {ALICE: 1.0}
