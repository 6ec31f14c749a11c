"""The benchmark of gossip measures what it says: its training is torch's, its peers are the product's cores."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gossip.cases import Job, accuracy_at, federated, population, rounds_until
from benchmarks.gossip.liars import LIES, place_liars
from benchmarks.gossip.population import Population, Training
from benchmarks.gossip.report import all_cases, with_liars
from benchmarks.gossip.swarm import Curve, Swarm, names
from protocols.gossip.settings import GossipSpec
from protocols.gossip.topology import Topology
from protocols.run import MlpSpec
from swarm.data.digits import read_digits
from swarm.data.partition import partition
from swarm.data.samples import Split, standardised
from swarm.models.classifier import SampleShape
from swarm.models.mlp import build

SPEC = MlpSpec(kind="mlp", layers=3, width=16)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Split:
    return standardised(read_digits(), held_out=0.2, seed=0)


def few(split: Split, peers: int = 6, *, training: Training | None = None) -> Population:
    parts = partition(split.train.y.tolist(), kind="iid", partitions=peers, seed=1)
    return Population(SPEC, split, parts, list(range(peers)), training or Training(), seed=1)


def test_models_trained_together_are_trained_as_torch_trains_them(digits: Split) -> None:
    training = Training(batch=len(digits.train) // 6, weight_decay=0.01)
    together = few(digits, training=training)
    module = build(SPEC, SampleShape(1, 8, 8, 10), 4)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=training.lr, momentum=0.9, weight_decay=0.01
    )
    parts = partition(digits.train.y.tolist(), kind="iid", partitions=6, seed=1)
    mine = digits.train.take(parts[4])
    together.train([1, 4])  # a batch is the whole part here, so that its order does not matter
    queue = together._queues[4]
    assert len(mine) - training.batch == len(queue), "all but what did not fit in the batch"
    seen = torch.ones(len(mine), dtype=torch.bool)
    seen[queue] = False
    for _ in range(1):
        optimizer.zero_grad()
        F.cross_entropy(module(mine.x[seen]), mine.y[seen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(together.weights[4], expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        right = (module(digits.test.x).argmax(1) == digits.test.y).float().mean()
    assert together.accuracy([4]) == pytest.approx(float(right) * 100, abs=0.3)


def test_peers_that_exchange_learn_more_than_peers_alone(digits: Split) -> None:
    swarm = Swarm(few(digits), GossipSpec(), seed=1)
    curve = swarm.run(rounds=40)
    alone = few(digits)
    for _ in range(40):
        alone.train(list(range(6)))
    assert curve.rounds == [float(r) for r in range(0, 41, 2)]
    assert swarm.averages > 6 * 20
    assert curve.accuracy[-1] > alone.accuracy(list(range(6))) + 2


def test_a_run_repeats_from_its_seed_and_pushes_parts_too(digits: Split) -> None:
    spec = GossipSpec(push_share=0.5)
    first, again = (Swarm(few(digits), spec, seed=3).run(rounds=10) for _ in range(2))
    other = Swarm(few(digits), spec, seed=4).run(rounds=10)
    assert first == again
    assert first.accuracy != other.accuracy


def test_federated_averaging_keeps_all_models_equal(digits: Split) -> None:
    job = Job(method="federated", depth=3, data="iid", seed=1)
    peers = population(job, digits, independent=False)
    curve = federated(peers, rounds=10)
    assert bool((peers.weights == peers.weights[0]).all())
    assert curve.accuracy[-1] > curve.accuracy[0] + 20


def test_liars_sit_where_at_most_three_are_anybodys_neighbours() -> None:
    spec = GossipSpec()
    liars = place_liars(50, 10, neighbours_max=3, spec=spec, seed=2)
    assert len(liars) == 10
    topology = Topology(spec.neighbours, degree=spec.degree, seed=2)
    peers = names(50)
    wrong = {peers[i] for i in liars}
    for i in set(range(50)) - liars:
        assert len(topology.neighbours(peers[i], peers) & wrong) <= 3


def test_a_liar_spoils_plain_averaging_and_not_ours(digits: Split) -> None:
    liars = frozenset({2})
    reached = {}
    for name, spec in {
        "ours": GossipSpec(),
        "plain": GossipSpec(correct=False, clip=False, variance_factor=0.0),
    }.items():
        lie = LIES["flip_times_1000"]
        swarm = Swarm(few(digits), spec, seed=1, liars=liars, lie=lie)
        reached[name] = swarm.run(rounds=60).accuracy[-1]
    assert reached["ours"] > 80
    assert reached["plain"] < 40


def curve(*accuracy: float) -> Curve:
    """A curve that goes on as it ends."""
    rounds = [float(r) for r in range(0, 301, 2)]
    values = [*accuracy, *[accuracy[-1]] * (len(rounds) - len(accuracy))]
    return Curve(rounds, values, [])


def test_figures_come_from_the_curves() -> None:
    assert rounds_until(curve(10, 50, 91, 95), 90) == 4
    assert rounds_until(curve(10, 50), 90) is None
    assert accuracy_at(curve(0, 60, 70, 80), 6) == 70
    base = Job(method="federated", depth=3, data="iid", seed=1)
    runs = {
        base: curve(10, 80, 95),  # there at 4
        replace(base, method="ours"): curve(10, 20, 30, 94),  # at 6
        replace(base, method="ours_mean_target"): curve(10, 20, 30, 94),
        replace(base, method="plain"): curve(10),  # never: the cap of 300
    }
    figures = all_cases(runs, own_target=False)
    assert figures["ratio_to_federated"] == 1.5
    assert figures["ratio_of_plain"] == 50
    assert figures["accuracy_gap_points"] == 1
    assert figures["bounds_broken"] == []
    slow = {**runs, replace(base, method="ours"): curve(*[10] * 5, 92.9)}
    broken = all_cases(slow, own_target=False)["bounds_broken"]
    assert [text.split()[0] for text in broken] == [
        "ratio_to_federated", "accuracy_gap_points", "mean_ratio_to_federated:",
    ]  # fmt: skip


def test_a_lie_that_costs_too_much_breaks_the_bound() -> None:
    honest = Job(method="ours", depth=3, data="dirichlet", seed=1, placed=True)
    runs = {}
    for lie, ours in ((None, 95.0), ("zero", 94.0), ("flip", 80.0)):
        runs[replace(honest, lie=lie)] = curve(ours)
        runs[replace(honest, lie=lie, method="plain")] = curve(30)
    figures = with_liars(runs, ["zero", "flip"])
    assert figures["accuracy_gap_points_with_liars"] == 15
    assert figures["bounds_broken"] == ["flip: 15.0"]
