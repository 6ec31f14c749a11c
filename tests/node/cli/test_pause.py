"""How long a pause is."""

from __future__ import annotations

import pytest

from node.cli.commands.pause import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600)],
)
def test_a_time_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-2h", "2hx", "0s", "two hours"])
def test_what_is_no_time_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        seconds_of(text)
