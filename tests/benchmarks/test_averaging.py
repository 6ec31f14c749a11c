"""The benchmark of averaging measures what it says: a wrong mean is a failed round."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks.averaging.cases import Case, error_of, vector_of
from benchmarks.averaging.sides import measure

PEERS, ELEMENTS = 3, 50_000


def test_the_error_of_a_mean_is_seen_at_both_ends() -> None:
    mean = torch.stack([vector_of(peer, 7, ELEMENTS) for peer in range(PEERS)]).mean(0)
    assert error_of(mean, PEERS, 7) < 1e-6
    assert error_of(mean, PEERS, 8) > 1
    for wrong in (5, ELEMENTS - 5):
        bad = mean.clone()
        bad[wrong] += 0.5
        assert error_of(bad, PEERS, 7) == pytest.approx(0.5, abs=1e-5)


class FakeWorker:
    """Answers as a peer whose round took `seconds`, and every third of whose rounds is not good."""

    pid = os.getpid()

    def __init__(self, seconds: float, bad: dict[str, Any]) -> None:
        self._seconds = seconds
        self._bad = bad

    def ask(self, **question: Any) -> dict[str, Any]:
        if question["do"] == "prepare":
            return {}
        good = {"seconds": self._seconds, "members": 2, "error": 0.0}
        return good | (self._bad if question["version"] % 3 == 0 else {})


@pytest.mark.parametrize("bad", [{"error": 0.1}, {"members": 1}, {"error": float("nan")}])
def test_a_round_that_is_wrong_at_one_peer_has_failed_and_the_slowest_peer_counts(
    bad: dict[str, Any],
) -> None:
    class Side:
        workers: Any = (FakeWorker(1.0, {}), FakeWorker(2.0, bad))

        def replace(self, index: int) -> None:
            raise NotImplementedError

    result = measure(Side(), Case(2, 1), 6, error_max=1e-3)
    assert result["seconds"] == 2.0
    assert result["rounds_failed"] == 2
