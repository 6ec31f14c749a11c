"""Group averaging over the network in memory: who finishes, with what, and who is blamed."""

from __future__ import annotations

import pytest
import torch

from tests.swarm.averaging.group import Group, done, play, vectors_for

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("count", [2, 3, 8])
def test_all_peers_get_the_same_bits_and_they_are_the_mean(count: int) -> None:
    vectors = vectors_for(count)

    async def script(group: Group) -> None:
        results = done(await group.average(vectors))
        expected = torch.stack(vectors).double().mean(0)
        for result in results:
            assert torch.equal(result.mean, results[0].mean)
            assert torch.allclose(result.mean.double(), expected, atol=1e-6)
            assert result.group == tuple(sorted(node.peer_id for node in group.nodes))
            assert result.attempts == 1
        assert not any(node.guard.faults() for node in group.nodes)

    play(count, script)
