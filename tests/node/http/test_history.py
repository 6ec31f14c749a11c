"""Curves in bounded memory."""

from __future__ import annotations

from node.http.history import History, Point


def point(at_s: float, step: int = 0, loss: float | None = 1.23456789) -> Point:
    return Point(at_s, step, loss, None, None, 3)


def test_points_thin_out_and_the_newest_is_always_there() -> None:
    history = History(2.0, points_max=100)
    for second in range(0, 20_000, 2):
        history.add(point(float(second), step=second))
        assert len(history.points) <= 100
        assert history.points[-1].at_s == second
        assert history.points[0].at_s == 0
    gaps = {
        after.at_s - before.at_s
        for before, after in zip(history.points, history.points[1:-1], strict=False)
    }
    assert max(gaps) <= 2 * min(gaps)
    assert len(history.points) > 40


def test_columns_are_short_and_keep_what_is_not_known() -> None:
    history = History(1.0)
    history.add(point(0.0))
    history.add(point(1.0, loss=None))
    assert history.columns() == {
        "at_s": [0.0, 1.0],
        "step": [0, 0],
        "loss": [1.2346, None],
        "held_out_loss": [None, None],
        "samples_per_second": [None, None],
        "peers": [3, 3],
    }
