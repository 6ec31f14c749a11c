"""The benchmark of convergence measures what it says: virtual time repeats, latency makes gradients stale, figures are paired."""

import random

import pytest
import torch

from benchmarks.dmoe.cases import MODELS, OTHERS, STILL, STORM, Job, swept_for
from benchmarks.dmoe.clock import Clock
from benchmarks.dmoe.network import EmulatedExperts, Weather
from benchmarks.dmoe.report import best_rates, clustered_error, figures
from benchmarks.dmoe.trainers import ADAM, Condition, Outcome, Run, Sizes, block
from moe.layer import RemoteMixtureOfExperts
from moe.server import build_expert
from protocols.experts.uid import Grid
from swarm.data.digits import read_digits
from swarm.data.samples import Split, standardised

FEW = Sizes(width=8, trainers=8, batch=4, samples=160, compute_s=0.5, looks=2)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Split:
    return standardised(read_digits(), held_out=0.2, seed=0)


def trained(
    digits: Split, experts: int, condition: Condition, *, seed: int = 1, sizes: Sizes = FEW
) -> Outcome:
    return Run(digits, sizes, condition, experts=experts, rate=3e-3, seed=seed).run()


def test_sleepers_wake_in_the_order_of_virtual_time() -> None:
    clock, woken = Clock(), []

    def trainer(name: str, seconds: float) -> None:
        for _ in range(2):
            clock.sleep(seconds)
            woken.append((name, clock.now_s))

    clock.later(2.5, lambda: woken.append(("later", clock.now_s)))
    clock.run([lambda: trainer("slow", 2.0), lambda: trainer("quick", 1.5)])
    assert woken == [("quick", 1.5), ("slow", 2.0), ("later", 2.5), ("quick", 3.0), ("slow", 4.0)]


def test_what_one_trainer_raises_ends_all() -> None:
    clock = Clock()

    def fails() -> None:
        clock.sleep(1.0)
        raise KeyError("wrong")

    with pytest.raises(KeyError):
        clock.run([lambda: clock.sleep(5.0), fails])


def test_what_fails_later_than_all_trainers_end_is_raised() -> None:
    clock = Clock()

    def wrong() -> None:
        raise KeyError("wrong")

    with pytest.raises(KeyError):
        clock.run([lambda: clock.later(1.0, wrong)])


@pytest.mark.parametrize("experts", [0, 16])
def test_a_seed_gives_one_result(digits: Split, experts: int) -> None:
    first, again = (trained(digits, experts, STORM) for _ in range(2))
    assert first == again
    assert first != trained(digits, experts, STORM, seed=2)


@pytest.mark.parametrize("experts", [0, 16])
def test_latency_makes_gradients_stale(digits: Split, experts: int) -> None:
    still = trained(digits, experts, STILL)
    near = trained(digits, experts, Condition(latency_ms=200))
    far = trained(digits, experts, Condition(latency_ms=2000))
    assert (still.staleness, still.staleness_trunk) == (0, 0)
    assert 0 < near.staleness < far.staleness
    assert 0 < near.staleness_trunk < far.staleness_trunk <= FEW.trainers


@pytest.mark.parametrize("experts", [0, 16])
def test_the_trunk_is_fresh_when_only_experts_are_late(digits: Split, experts: int) -> None:
    outcome = trained(digits, experts, Condition(latency_ms=2000, experts_only=True))
    assert outcome.staleness > 1
    assert outcome.staleness_trunk == 0


@pytest.mark.parametrize("experts", [0, 16])
def test_a_model_learns_without_latency(digits: Split, experts: int) -> None:
    sizes = Sizes(samples=1200, looks=1)
    assert trained(digits, experts, STILL, sizes=sizes).accuracy[-1] > 75


def test_a_batch_that_nobody_answers_is_lost_and_training_goes_on(digits: Split) -> None:
    outcome = trained(digits, 16, Condition(latency_ms=200, failures=0.7))
    assert 0 < outcome.batches_lost < FEW.samples / FEW.batch
    assert outcome.samples[-1] == FEW.samples


def test_choices_fail_as_often_as_said_and_the_layer_goes_on_without_them() -> None:
    grid = Grid("ffn0", (4, 4))
    experts = {u: build_expert(u, block(8), ADAM, row=(8,), epoch=1) for u in grid.uids()}
    weather = Weather(Clock(), random.Random(1), failures=0.1)
    network = EmulatedExperts(experts, lambda: 1e-3, weather)
    layer = RemoteMixtureOfExperts(network, grid, 8, k=4)
    for _ in range(50):
        layer(torch.randn(4, 8)).sum().backward()
    asked = layer.stats.experts_missing + network.seen.gradients
    assert layer.stats.experts_missing / asked == pytest.approx(0.1, abs=0.04)
    assert network.wrong_answers == 0
    assert sum(expert.hosted.version for expert in experts.values()) == network.seen.gradients


def test_the_error_of_dependent_values_is_larger() -> None:
    values = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    alone = clustered_error(values, range(8))
    assert alone == pytest.approx((2 / 7 / 8) ** 0.5)
    assert clustered_error(values, [0, 0, 1, 1, 2, 2, 3, 3]) > alone * 1.4


def runs_with(lost: dict[int, int], images: int, seeds: int) -> dict[Job, Outcome]:
    """Every model is always right at 0 ms, and wrong on its first images at the worst; the seeds agree."""
    made = {}
    for experts in MODELS:
        for condition in (STILL, STORM, *OTHERS):
            wrong = lost[experts] if condition == STORM else 0
            right = [image >= wrong for image in range(images)]
            accuracy = [10.0, 100 * sum(right) / images]
            for seed in range(1, seeds + 1):
                job = Job(experts=experts, condition=condition, rate=1e-3, seed=seed)
                made[job] = Outcome(right, [0, 8], accuracy)
    return made


def test_losses_are_paired_over_images_and_seeds() -> None:
    runs = runs_with({0: 30, 16: 20, 64: 30}, images=1000, seeds=3)
    result = figures(runs, lambda seed: range(1000))
    assert result["accuracy_lost_points"] == {"dense": 3.0, "experts_16": 2.0, "experts_64": 3.0}
    assert result["difference_of_losses"]["experts_16"]["difference_points"] == 1.0
    assert result["difference_of_losses"]["experts_64"]["standard_error"] == 0
    # Ten images of 1,000 differ; those that both models lose are no noise.
    assert result["standard_error_of_difference"] == pytest.approx(0.31, abs=0.01)
    assert result["bounds_broken"] == []


def test_a_difference_that_is_not_known_breaks_the_bound() -> None:
    runs = runs_with({0: 30, 16: 10, 64: 30}, images=100, seeds=3)
    broken = figures(runs, lambda seed: range(100))["bounds_broken"]
    assert [text.split(":")[0] for text in broken] == ["standard_error_of_difference"]


def test_the_best_rate_is_of_each_model_and_condition() -> None:
    swept = {
        Job(experts=0, condition=condition, rate=rate, seed=0): Outcome([], [0], [accuracy])
        for condition, rate, accuracy in (
            (STILL, 1e-3, 97.0), (STILL, 3e-3, 98.0), (STORM, 1e-3, 92.0), (STORM, 3e-3, 80.0),
        )
    }  # fmt: skip
    assert best_rates(swept) == {(0, STILL): 3e-3, (0, STORM): 1e-3}
    assert swept_for(Condition(latency_ms=100)) == STILL
    assert swept_for(Condition(latency_ms=1000, experts_only=True)) == STORM
