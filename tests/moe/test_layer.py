"""The whole way: layer in a thread, beam search, calls over a network in memory, experts on other nodes."""

from __future__ import annotations

import pytest
import torch
import trio
from torch import Tensor

from moe.errors import BridgeClosedError, TooFewExpertsError
from moe.gate import expert_scores
from moe.layer import RemoteMixtureOfExperts
from protocols.experts.messages import Output, encode_message
from protocols.experts.uid import ExpertUID, Grid
from swarm.calls import Answer, Incoming
from swarm.tensors.wire import from_wire, to_wire
from tests.moe.nodes import (
    GRID,
    WIDTH,
    Node,
    expert_of,
    in_thread,
    local_mixture,
    nodes,
    until_known,
)

pytestmark = pytest.mark.trio
UIDS = list(GRID.uids())


def layer_of(node: Node, **options: object) -> RemoteMixtureOfExperts:
    torch.manual_seed(3)
    return RemoteMixtureOfExperts(node.peer.network, GRID, WIDTH, **{"k": 2, **options})  # type: ignore[arg-type]


def rows(count: int = 12) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(5))


async def spread(made: list[Node] | tuple[Node, ...]) -> None:
    """Put two experts on each of the second and the third node, and wait until the first knows all."""
    for index, uid in enumerate(UIDS):
        await made[1 + index // 2].serve(uid)
    await until_known(made[0], len(UIDS))


def gradients(layer: RemoteMixtureOfExperts, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    y = layer(x)
    return (y.detach(), *torch.autograd.grad((y * weight).sum(), [x, layer.gate.keys.weight]))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_outputs_and_gradients_are_those_of_the_same_mixture_in_one_process(k: int) -> None:
    async def main() -> None:
        async with nodes(3) as (_, made):
            await spread(list(made))
            layer, x, weight = layer_of(made[0], k=k), rows().requires_grad_(), rows(12) * 0.5
            y, grad_x, grad_keys = await in_thread(gradients, layer, x, weight)
            modules = [expert_of(uid) for uid in UIDS]
            places = torch.tensor([uid.place for uid in UIDS])
            scores = expert_scores(layer.gate(x), places)
            expected = local_mixture(x, scores, modules, k)
            loss = (expected * weight).sum()
            wanted = torch.autograd.grad(loss, [x, layer.gate.keys.weight], retain_graph=True)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(grad_x, wanted[0])
            torch.testing.assert_close(grad_keys, wanted[1])
            # Each expert stepped once, by the gradient of its own rows.
            for uid, module in zip(UIDS, modules, strict=True):
                host = made[1 + UIDS.index(uid) // 2].peer.server.experts[uid].hosted
                grads = torch.autograd.grad(
                    loss, list(module.parameters()), retain_graph=True, allow_unused=True
                )
                for parameter, grad, own in zip(
                    module.parameters(), grads, host.module.parameters(), strict=True
                ):
                    moved = parameter - (0.1 * grad if grad is not None else 0.0)
                    torch.testing.assert_close(own.detach(), moved.detach())

    trio.run(main)


def test_a_whole_sample_goes_to_the_experts_of_its_mean() -> None:
    async def main() -> None:
        async with nodes(3) as (_, made):
            await spread(list(made))
            layer, x = layer_of(made[0], route="sample", k=1), rows().view(3, 4, WIDTH)
            y = await in_thread(layer, x)
            scores = expert_scores(layer.gate(x.mean(dim=1)), torch.tensor([u.place for u in UIDS]))
            best = scores.argmax(dim=1)
            for sample in range(3):
                module = expert_of(UIDS[int(best[sample])])
                torch.testing.assert_close(y[sample], module(x[sample]))

    trio.run(main)


def test_rows_that_need_no_gradient_still_train_the_experts() -> None:
    async def main() -> None:
        async with nodes(3) as (_, made):
            await spread(list(made))
            layer = layer_of(made[0])
            await in_thread(lambda: layer(rows()).sum().backward())
            assert sum(e.stats.steps for n in made[1:] for e in n.peer.server.experts.values()) == 4

    trio.run(main)


def test_without_gradients_nothing_is_sent_back() -> None:
    async def main() -> None:
        async with nodes(3) as (_, made):
            await spread(list(made))
            layer = layer_of(made[0])

            def look() -> None:
                with torch.no_grad():
                    layer(rows())

            await in_thread(look)
            assert not any(e.stats.steps for n in made[1:] for e in n.peer.server.experts.values())

    trio.run(main)


def test_a_dead_host_is_left_out_and_reported() -> None:
    async def main() -> None:
        async with nodes(3) as (network, made):
            await spread(list(made))
            network.crash(made[2].me)
            layer, x = layer_of(made[0], k=3), rows().requires_grad_()
            y, grad_x, _ = await in_thread(gradients, layer, x, torch.ones(12, WIDTH))
            assert layer.stats.experts_missing == 2
            assert made[2].me in made[0].failed
            places = torch.tensor([uid.place for uid in UIDS])
            scores = expert_scores(layer.gate(x), places)
            third = scores.topk(
                3, dim=1
            ).indices  # of three chosen at least one is on the live node
            mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, third, True)
            mask[:, 2:] = False
            weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
            outputs = torch.stack([expert_of(uid)(x) for uid in UIDS], dim=1)
            torch.testing.assert_close(y, (weights[:, :, None] * outputs).sum(1).detach())
            assert torch.isfinite(grad_x).all()

    trio.run(main)


def test_rows_whose_experts_all_failed_are_sent_to_others() -> None:
    async def main() -> None:
        async with nodes(3) as (network, made):
            await spread(list(made))
            network.crash(made[2].me)
            layer = layer_of(made[0], k=1)
            y = await in_thread(layer, rows())
            assert layer.stats.rerouted_groups > 0
            assert torch.isfinite(y).all()
            assert (y.abs().sum(dim=1) > 0).all()

    trio.run(main)


def test_too_few_answers_are_an_error_that_names_who_was_tried() -> None:
    async def main() -> None:
        async with nodes(3) as (network, made):
            await spread(list(made))
            network.crash(made[2].me)
            layer = layer_of(made[0], k=3, k_min=3)
            with pytest.raises(TooFewExpertsError) as caught:
                await in_thread(layer, rows())
            assert set(caught.value.tried) == set(UIDS)
            assert "ffn.1.0" in str(caught.value)

    trio.run(main)


def test_no_expert_at_all_is_an_error_too() -> None:
    async def main() -> None:
        async with nodes(1) as (_, made):
            with pytest.raises(TooFewExpertsError, match="none is known to be alive"):
                await in_thread(layer_of(made[0]), rows())

    trio.run(main)


@pytest.mark.parametrize("lie", ["nan", "shape", "dtype", "huge", "message"])
def test_an_answer_that_cannot_be_used_is_left_out_counted_and_lowers_the_standing(
    lie: str,
) -> None:
    async def answer(incoming: Incoming) -> Answer:
        x = from_wire(incoming.tensors[0])
        made_up = {
            "nan": torch.full_like(x, torch.nan),
            "shape": x[:, :-1].contiguous(),
            "dtype": x.double(),
            "huge": torch.full_like(x, 1e9),
            "message": x,
        }[lie]
        message = {"tag": "alive", "body": {}} if lie == "message" else encode_message(Output(1, 0))
        return Answer(message, [to_wire(made_up)])

    async def main() -> None:
        async with nodes(3) as (_, made):
            await spread(list(made))
            await made[2].lie(answer)
            layer = layer_of(made[0], k=4)
            y = await in_thread(layer, rows())
            scores = expert_scores(layer.gate(rows()), torch.tensor([u.place for u in UIDS[:2]]))
            expected = local_mixture(rows(), scores, [expert_of(uid) for uid in UIDS[:2]], 2)
            torch.testing.assert_close(y, expected)
            assert made[0].guard.faults()[made[2].me] >= 1
            now_s = trio.current_time()
            standing = made[0].peer.dispatch.standings(now_s)[made[2].me]
            assert standing.wrong >= 1
            assert standing.avoided
            found = await made[0].peer.network._find(GRID, [[0.0, 0.0]] * 2, 16)
            assert set(found) == set(UIDS[:2]), "it is not chosen for a while"

    trio.run(main)


def test_a_host_that_hangs_costs_its_deadline_and_no_more() -> None:
    async def main() -> None:
        async with nodes(3) as (network, made):
            await spread(list(made))
            layer = layer_of(made[0], k=4)
            await in_thread(layer, rows())  # its latency is known now
            network.link(made[0].me, made[2].me).cut = True
            began_s = trio.current_time()
            await in_thread(layer, rows())
            assert 0.4 < trio.current_time() - began_s < 1.5
            began_s = trio.current_time()
            await in_thread(layer, rows())
            assert trio.current_time() - began_s < 0.4, "it is left alone now"

    trio.run(main)


def test_an_expert_that_does_not_answer_the_backward_pass_gives_no_gradient() -> None:
    async def main() -> None:
        async with nodes(3) as (network, made):
            await spread(list(made))
            layer, x = layer_of(made[0], k=4), rows().requires_grad_()
            y = await in_thread(layer, x)
            network.crash(made[2].me)
            (grad_x,) = await in_thread(torch.autograd.grad, y.sum(), x)
            assert layer.stats.gradients_missing == 2
            assert torch.isfinite(grad_x).all()
            assert grad_x.abs().sum() > 0

    trio.run(main)


def test_a_second_host_of_an_expert_is_asked_when_the_first_is_late() -> None:
    async def main() -> None:
        grid = Grid("one", (1, 1))
        uid = ExpertUID("one", (0, 0))
        async with nodes(3) as (network, made):
            first, second = sorted(made[1:], key=lambda node: node.me)
            await first.serve(uid)
            await until_known(made[0], 1, grid)
            layer = RemoteMixtureOfExperts(made[0].peer.network, grid, WIDTH, k=1)
            for _ in range(3):
                await in_thread(layer, rows())
            await second.serve(uid)
            with trio.fail_after(5):
                while len(made[0].peer.view.hosts(uid, trio.current_time())) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            network.link(made[0].me, first.me).delay_s = 0.4
            for _ in range(50):  # whom it asks first is drawn
                began_s = trio.current_time()
                await in_thread(layer, rows())
                assert trio.current_time() - began_s < 0.4
                if made[0].peer.network.hedged:
                    break
            assert made[0].peer.network.hedged == 1

    trio.run(main)


def test_a_thread_that_waits_is_sent_back_when_the_node_ends() -> None:
    async def main() -> None:
        async with nodes(3) as (network, made):
            await spread(list(made))
            network.link(made[0].me, made[1].me).delay_s = 30.0
            network.link(made[0].me, made[2].me).delay_s = 30.0
            layer = layer_of(made[0])
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(BridgeClosedError):
                        await in_thread(layer, rows())

                nursery.start_soon(wait)
                await trio.sleep(0.1)
                made[0].peer.bridge.close()
            with pytest.raises(BridgeClosedError):
                await in_thread(layer, rows())

    trio.run(main)
