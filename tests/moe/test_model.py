"""The transformer with all experts in one process is the one that nodes train together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trio

from moe.model import build_feed_forward, build_local, build_remote, mixtures
from protocols.experts.spec import MoeSpec
from protocols.run import ByteTransformerSpec
from tests.moe.nodes import SGD, in_thread, nodes, until_known

pytestmark = pytest.mark.trio
MODEL = ByteTransformerSpec(layers=2, width=8, heads=2, context=8)


@pytest.mark.parametrize("scores", ["product", "cosine"])
def test_remote_and_local_transformers_have_equal_losses_and_gradients(scores: str) -> None:
    spec = MoeSpec(grid=(2, 2), hidden=8, noise=0.0, scores=scores)  # type: ignore[arg-type]

    async def main() -> None:
        async with nodes(3) as (_, made):
            for grid in spec.grids(MODEL.layers):
                for index, uid in enumerate(grid.uids()):
                    host = made[1 + index % 2].peer
                    await host.host(
                        uid,
                        lambda uid=uid: build_feed_forward(MODEL, spec, uid, 1),  # type: ignore[misc]
                        SGD,
                        row=(MODEL.width,),
                    )
                await until_known(made[0], 4, grid)
            remote = build_remote(MODEL, spec, 1, made[0].peer.network)
            local = build_local(MODEL, spec, 1)
            x = torch.randint(0, 256, (3, 8), generator=torch.Generator().manual_seed(1))
            names = [name for name, _ in remote.named_parameters()]
            wanted = dict(local.named_parameters())
            assert set(names) == {name for name in wanted if ".experts." not in name}

            def look(module: Any) -> tuple[torch.Tensor, ...]:
                loss = module.loss(x, x).mean() + sum(m.balance for m in mixtures(module))
                own = dict(module.named_parameters())
                return (loss.detach(), *torch.autograd.grad(loss, [own[name] for name in names]))

            found = await in_thread(look, remote)
            for name, ours, theirs in zip(["loss", *names], found, look(local), strict=True):
                torch.testing.assert_close(ours, theirs, msg=name)

    trio.run(main)


def test_an_expert_that_no_row_chose_has_a_gradient_of_zero() -> None:
    spec = MoeSpec(grid=(4, 4), k=1, hidden=8)
    module = build_local(MODEL, spec, 1)
    x = torch.zeros(1, 2, dtype=torch.uint8)
    grads = torch.autograd.grad(
        module.loss(x, x).mean(), [p for n, p in module.named_parameters() if ".experts." in n]
    )
    assert sum(bool((grad == 0).all()) for grad in grads) > len(grads) // 2
