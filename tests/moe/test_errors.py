from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from moe.errors import TooFewExpertsError
from protocols.experts.uid import ExpertUID


@pytest.mark.parametrize("passed_on", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_too_few_experts_can_be_copied_and_sent_to_another_process(
    passed_on: Callable[[TooFewExpertsError], TooFewExpertsError],
) -> None:
    tried = [ExpertUID("ffn", (place,)) for place in range(10)]
    error = TooFewExpertsError("ffn", rows=3, k_min=2, tried=tried)
    other = passed_on(error)
    assert type(other) is TooFewExpertsError
    assert str(other) == str(error)
    assert (other.layer, other.rows, other.k_min, other.tried) == ("ffn", 3, 2, tuple(tried))
