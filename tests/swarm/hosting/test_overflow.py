"""A step that cannot be is undone."""

from __future__ import annotations

import pytest
import torch

from protocols.run import AdamWSpec
from swarm.hosting.errors import NonFiniteError
from swarm.hosting.module import HostedModule


@pytest.mark.parametrize("rate", [1e38, 1e300])
def test_a_step_that_overflows_is_undone_as_a_whole(rate: float) -> None:
    hosted = HostedModule(torch.nn.Linear(4, 3), AdamWSpec())
    hosted.apply(torch.ones_like(hosted.flat), rate=1e-3)
    before = hosted.snapshot()
    with torch.no_grad():
        hosted.flat.mul_(1e30)
    huge = hosted.snapshot()
    with pytest.raises(NonFiniteError, match="overflows"):
        hosted.apply(torch.ones_like(hosted.flat), rate=rate)
    after = hosted.snapshot()
    assert all(torch.equal(after[name], tensor) for name, tensor in huge.items())
    hosted.load(before)
    hosted.apply(torch.ones_like(hosted.flat), rate=1e-3)
    assert hosted.version == 2
