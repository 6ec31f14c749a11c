"""What a person reads."""

from __future__ import annotations

import copy

import pytest

from node.cli.render import duration, status_lines
from tests.node.cli.samples import PEER, STATUS


def test_one_screen_says_what_is_wrong_and_where() -> None:
    assert list(status_lines(STATUS)) == [
        f"node       {PEER}",
        "state      isolated for 1 min 2 s: no peer for 31 s",
        "run        try abababab pipeline",
        "peers      0, clock off by -0.7 s",
        "problem    isolated: no peer for 31 s; see services.joining.dialled",
        "joining    members known 3",
        f"           /ip4/198.51.100.9/tcp/4001/p2p/{PEER}: connection refused",
        "pipeline   down, restarted 2 times, stage 1, step 41, steps 120, loss 2.346, "
        "tokens per second 15,080, members by stage 2/2/1",
        "resources  memory 200 MB of 512 MB, 3 threads, nice 5, 30 of 20000 files, "
        "loop lag p99 3.2 ms",
        f"address    /ip4/203.0.113.7/tcp/4001/p2p/{PEER}",
        "version    0.1.0, up 15 min 2 s, process 4711",
    ]


def test_a_node_without_its_run_file_yet_says_so() -> None:
    report = copy.deepcopy(STATUS)
    report["run"] |= {"name": None, "mode": None}
    assert "run        (not fetched yet) abababab" in list(status_lines(report))


def test_a_problem_is_one_line() -> None:
    report = {
        **STATUS,
        "unhealthy_reasons": ["service pipeline is down: no stage 7\n  try another"],
    }
    assert "problem    service pipeline is down: no stage 7 try another" in list(
        status_lines(report)
    )


def test_keys_of_a_later_daemon_do_not_disturb() -> None:
    report = copy.deepcopy(STATUS)
    report["surprise"] = {"x": 1}
    report["services"]["new"] = {"up": True, "restarts": 0, "odd": [1, 2], "even": {"a": 1}}
    assert "new        odd 1/2" in list(status_lines(report))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (200, "3 min 20 s"), (18720, "5 h 12 min"), (273600, "3 d 4 h")],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_node_that_has_a_page_says_where() -> None:
    report = copy.deepcopy(STATUS)
    report["network"]["http"] = {"address": "127.0.0.1:4002", "connections": 0}
    assert "page       http://127.0.0.1:4002/" in list(status_lines(report))
