from __future__ import annotations

import itertools

import pytest
import torch

from moe.gate import CosineGate, ProductKeyGate, balance_loss, expert_scores


@pytest.mark.parametrize("kind", [ProductKeyGate, CosineGate])
def test_an_experts_score_is_the_sum_of_its_coordinates_scores(kind: type[ProductKeyGate]) -> None:
    gate, x = kind(6, (3, 4, 2)), torch.randn(5, 6)
    places = list(itertools.product(range(3), range(4), range(2)))
    scores = expert_scores(gate(x), torch.tensor(places))
    assert scores.shape == (5, 24)
    first, second, third = gate(x)
    for column, (a, b, c) in enumerate(places):
        torch.testing.assert_close(scores[:, column], first[:, a] + second[:, b] + third[:, c])


def test_cosine_scores_do_not_depend_on_the_size_of_the_input() -> None:
    gate, x = CosineGate(6, (3,)), torch.randn(5, 6)
    torch.testing.assert_close(gate(x)[0], gate(100 * x)[0])
    assert gate(x)[0].abs().max() <= 1 / 0.3 + 1e-4


def test_noise_is_added_in_training_only() -> None:
    gate, x = ProductKeyGate(6, (3,), noise=1.0, generator=torch.Generator()), torch.randn(5, 6)
    gate.eval()
    still = gate(x)[0]
    torch.testing.assert_close(still, gate(x)[0])
    gate.train()
    assert (gate(x)[0] - still).abs().max() > 0.1


def test_the_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_gets_everything() -> (
    None
):
    even = torch.zeros(8, 4)
    chosen = torch.arange(8)[:, None] % 4
    torch.testing.assert_close(balance_loss(even, chosen), torch.tensor(1.0))
    skewed = torch.full((8, 4), -50.0)
    skewed[:, 2] = 50.0
    torch.testing.assert_close(balance_loss(skewed, torch.full((8, 1), 2)), torch.tensor(4.0))


def test_following_the_balance_loss_evens_out_the_choices() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator) + 1.0
    torch.manual_seed(0)
    gate = ProductKeyGate(8, (2, 2))
    with torch.no_grad():
        gate.keys.weight[0] += 1.0
    places = torch.tensor(list(itertools.product(range(2), range(2))))
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.05)

    def busiest() -> float:
        chosen = expert_scores(gate(x), places).argmax(dim=1)
        return float(torch.bincount(chosen, minlength=4).max() / 256)

    before = busiest()
    for _ in range(200):
        scores = expert_scores(gate(x), places)
        optimizer.zero_grad()
        balance_loss(scores, scores.argmax(dim=1, keepdim=True)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert before > 0.7
    assert busiest() < 0.75 * before
