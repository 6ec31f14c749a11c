"""Averaging with variance correction: the formula, and each trap of it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocols.errors import LocalProtocolError
from protocols.gossip.settings import GossipSpec
from swarm.gossip.arithmetic import (
    Averaging,
    average_,
    clip_weights,
    moments,
    refused_rows,
    scale_of,
    target_variances,
)
from swarm.gossip.table import Table

TABLE = Table.of_shapes([("a.weight", (40, 50)), ("a.bias", (40,)), ("b.weight", (300, 300))])
PLAIN = GossipSpec(clip=False, correct=False)


def models(
    count: int, *, deviation: float = 0.02, table: Table = TABLE, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(table.elements, generator=generator) * deviation for _ in range(count)]


def average(
    own: Tensor, received: list[Tensor], spec: GossipSpec, table: Table = TABLE
) -> tuple[Tensor, Averaging]:
    result = own.clone()
    done = average_(result, received, [moments(row, table) for row in received], table, spec)
    return result, done


def by_the_formula(own: Tensor, received: list[Tensor], c: float, table: Table) -> Tensor:
    """The paper's, in double precision and as it is written, with the mean as the target and no eps."""
    mixed = c * own.double() + (1 - c) * torch.stack(received).double().mean(0)
    for start, end in table.bounds:
        target = torch.stack([row[start:end].double().var() for row in received]).mean()
        part = mixed[start:end]
        mixed[start:end] = (part - part.mean()) * (target / part.var()).sqrt() + part.mean()
    return mixed


@pytest.mark.parametrize("c", [0.0, 0.3, 0.5])
def test_it_is_the_papers_formula(c: float) -> None:
    own, *received = models(9)
    result, done = average(own, received, GossipSpec(target="mean", own_share=c, clip=False))
    expected = by_the_formula(own, received, c, TABLE)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-7)
    assert done.refused == ()
    assert done.finite


def test_plain_averaging_makes_the_variance_vanish_and_the_correction_restores_it() -> None:
    own, *received = models(9)
    plain, _ = average(own, received, dataclasses.replace(PLAIN, own_share=0.5))
    ours, done = average(own, received, GossipSpec(own_share=0.5))
    before, vanished, after = (moments(x, TABLE).variances[2] for x in (own, plain, ours))
    assert vanished / before == pytest.approx(0.25 + 0.25 / 8, rel=0.03)
    assert after / before == pytest.approx(1, rel=0.01)
    assert done.scales[2] == pytest.approx(1 / math.sqrt(0.28125), rel=0.03)


def test_small_variances_are_corrected_in_full() -> None:
    # A layer of 4,096 has a Xavier variance of 2.4e-4; with the authors' eps of 1e-4 the scale would be 1.43, not 1.89.
    table = Table.of_shapes([("wide", (256, 4096))])
    own, *received = models(9, deviation=math.sqrt(2.44e-4), table=table)
    _, done = average(own, received, GossipSpec(own_share=0.5), table)
    assert done.scales[0] == pytest.approx(1.886, rel=0.01)


def test_the_mean_of_each_tensor_is_kept() -> None:
    own, *received = [row + 0.3 for row in models(5)]
    plain, _ = average(own, received, PLAIN)
    ours, _ = average(own, received, GossipSpec(clip=False))
    torch.testing.assert_close(
        torch.tensor(moments(ours, TABLE).means), torch.tensor(moments(plain, TABLE).means)
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e-20, 12345.678])
def test_a_tensor_without_spread_stays_as_it_is(value: float) -> None:
    table = Table.of_shapes([("norm", (1000,)), ("weight", (100, 10))])
    own, *received = models(4, table=table)
    for row in (own, *received):
        row[:1000] = value
    result, done = average(own, received, GossipSpec(), table)
    assert done.scales[0] == 1.0
    torch.testing.assert_close(result[:1000], torch.full((1000,), value), rtol=1e-6, atol=0)
    assert result.isfinite().all()


def test_a_bias_that_neighbours_have_not_trained_is_averaged_not_flattened() -> None:
    own, *received = models(4)
    for row in received:
        row[2000:2040] = 0.0
    result, done = average(own, received, GossipSpec(own_share=0.5, clip=False))
    assert done.scales[1] == 1.0
    torch.testing.assert_close(result[2000:2040], own[2000:2040] / 2)


def test_a_single_number_is_averaged_and_never_scaled() -> None:
    table = Table.of_shapes([("temperature", ()), ("weight", (20, 20))])
    own, *received = models(4, table=table)
    result, done = average(own, received, GossipSpec(own_share=0.25, clip=False), table)
    assert done.scales[0] == 1.0
    assert float(result[0]) == pytest.approx(float(torch.stack([own, *received])[:, 0].mean()))


def test_models_that_agree_are_left_alone() -> None:
    (own,) = models(1)
    result, done = average(own, [own.clone() for _ in range(8)], GossipSpec())
    assert done.scales == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)
    torch.testing.assert_close(result, own)


def test_our_own_variance_is_read_before_the_model_is_mixed() -> None:
    # The authors' code mixes in place first and would find the shrunken variance.
    own, *received = models(9)
    result, _ = average(own, received, GossipSpec(target="own", own_share=0.5, clip=False))
    torch.testing.assert_close(
        torch.tensor(moments(result, TABLE).variances), torch.tensor(moments(own, TABLE).variances)
    )


@pytest.mark.parametrize(
    ("target", "expected"), [("median", 3.0), ("mean", 35.0), ("own", 10.0), ("mix", 27.5)]
)
def test_each_target(target: str, expected: float) -> None:
    received = [(1.0,), (3.0,), (101.0,)]
    spec = GossipSpec(target=target, own_share=0.3)  # type: ignore[arg-type]
    assert target_variances((10.0,), received, spec) == pytest.approx([expected])


def test_without_spread_there_is_no_scale() -> None:
    assert scale_of(1e-3, 0.0) == 1.0
    assert scale_of(0.0, 1e-3) == 1.0
    assert scale_of(4e-30, 1e-30) == pytest.approx(2.0)


# --- what was trained since the last push ---


def test_what_was_trained_since_the_push_is_added_in_full_once_models_agree() -> None:
    base, update = models(1)[0], models(1, deviation=1e-3, seed=5)[0]
    received = [base + noise for noise in models(4, deviation=1e-4, seed=9)]
    own, pushed = base + update, base.clone()
    average_(
        own, received, [moments(row, TABLE) for row in received], TABLE, GossipSpec(), base=pushed
    )
    expected, _ = average(base, received, GossipSpec())
    assert torch.equal(pushed, expected), "the average is of what was pushed"
    torch.testing.assert_close(own, expected + update, atol=1e-6, rtol=1e-4)


def test_what_was_trained_counts_less_while_models_have_nothing_in_common() -> None:
    base, *received = models(9)
    update = torch.full_like(base, 1e-3)
    own = base + update
    done = average_(
        own, received, [moments(row, TABLE) for row in received], TABLE, GossipSpec(), base=base
    )
    moved = (own - base)[2040:]
    torch.testing.assert_close(moved, update[2040:] / done.scales[2], atol=1e-7, rtol=1e-3)
    assert done.scales[2] > 2


def test_a_second_average_before_the_next_push_does_not_count_the_first_twice() -> None:
    (start,) = models(1)
    target = start + 1.0
    own, base = start.clone(), start.clone()
    spec = GossipSpec(own_share=0.5, clip=False, correct=False)
    for part_left in (0.5, 0.25, 0.125):
        average_(own, [target], [moments(target, TABLE)], TABLE, spec, base=base)
        torch.testing.assert_close(target - own, torch.full_like(own, part_left))


def test_when_all_are_refused_nothing_changes() -> None:
    base, other = models(2)
    own, pushed = base + 0.001, base.clone()
    kept = own.clone()
    liar = other * 100
    done = average_(own, [liar], [moments(liar, TABLE)], TABLE, GossipSpec(), base=pushed)
    assert done.refused == (0,)
    assert torch.equal(own, kept)
    assert torch.equal(pushed, base)


# --- liars ---


@pytest.mark.parametrize("scale", [100.0, 1000.0, 0.0, 1e-3, -1000.0, 1e15])
def test_a_scaled_model_is_refused_whole(scale: float) -> None:
    own, *received = models(9)
    received[3] = received[3] * scale
    result, done = average(own, received, GossipSpec())
    without, _ = average(own, received[:3] + received[4:], GossipSpec())
    assert done.refused == (3,)
    assert torch.equal(result, without)


def test_one_tensor_out_of_bounds_is_enough() -> None:
    own, *received = models(4)
    received[0][:2000] *= 3
    assert average(own, received, GossipSpec())[1].refused == (0,)


def test_small_tensors_and_untrained_ones_are_not_judged() -> None:
    own, *received = models(4)
    received[0][2000:2040] *= 50  # 40 numbers
    for row in (own, *received):
        row[2040:] *= 1e-3  # variance 4e-10
    received[1][2040:] *= 50
    assert average(own, received, GossipSpec())[1].refused == ()


def test_honest_differences_of_up_to_the_factor_are_not_refused() -> None:
    own, *received = models(4)
    received[0] *= 1.9  # variance 3.6 times as large
    received[1] /= 1.9
    assert average(own, received, GossipSpec())[1].refused == ()


def test_of_two_models_ours_counts() -> None:
    own, other = models(2)
    assert average(own, [other * 3.9], GossipSpec())[1].refused == ()
    result, done = average(own, [other * 4.1], GossipSpec())
    assert done.refused == (0,)
    assert torch.equal(result, own)


def test_our_own_wild_model_is_drawn_back_by_the_others() -> None:
    own, *received = models(9)
    wild = own * 100
    result, done = average(wild, received, GossipSpec())
    assert done.refused == ()
    assert moments(result, TABLE).variances[2] == pytest.approx(4e-4, rel=0.05)


def test_refusals_need_a_median_of_three() -> None:
    table = Table.of_shapes([("w", (64,))])
    assert refused_rows((1.0,), [(5.0,), (5.0,)], table, factor=4) == ()
    assert refused_rows((1.0,), [(1.0,), (5.0,)], table, factor=4) == (1,)
    assert refused_rows((1.0,), [(1.0,), (math.nan,)], table, factor=4) == (1,)


def test_no_model_moves_ours_by_more_than_the_median_distance() -> None:
    own, *received = models(6)
    received[0] = own + 1000 * (received[0] - own)
    weights = clip_weights(own, received)
    lengths = sorted(float((row - own).norm()) for row in received)
    moved = [w * float((row - own).norm()) for w, row in zip(weights, received, strict=True)]
    assert max(moved) == pytest.approx(lengths[2], rel=1e-5)
    assert weights[0] == pytest.approx(lengths[2] / lengths[-1], rel=1e-4)


def test_clipping_never_divides_by_zero() -> None:
    (own,) = models(1)
    assert clip_weights(own, [own.clone(), own.clone()]) == [1.0, 1.0]
    assert clip_weights(own, [own.clone(), own.clone(), own + 1]) == [1.0, 1.0, 0.0]


# --- moments, and what is not finite ---


@given(st.integers(2, 300), st.floats(-100, 100), st.floats(1e-3, 100))
@settings(max_examples=50, deadline=None)
def test_moments_are_torchs(size: int, mean: float, deviation: float) -> None:
    table = Table.of_shapes([("x", (size,))])
    vector = torch.randn(size, dtype=torch.float64) * deviation + mean
    found = moments(vector, table)
    assert found.means[0] == pytest.approx(float(vector.mean()), rel=1e-9, abs=1e-9)
    assert found.variances[0] == pytest.approx(float(vector.var()), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_or_enormous_shows_in_the_moments(bad: float) -> None:
    (own,) = models(1)
    for place in (0, 2010, TABLE.elements - 1):
        spoiled = own.clone()
        spoiled[place] = bad
        assert not moments(spoiled, TABLE).finite
    assert moments(own, TABLE).finite


def test_infinities_of_both_signs_do_not_hide_each_other() -> None:
    (own,) = models(1)
    own[0], own[1] = math.inf, -math.inf
    assert not moments(own, TABLE).finite


def test_large_tensors_are_summed_precisely() -> None:
    table = Table.of_shapes([("x", (3_000_000,))])
    vector = torch.randn(3_000_000, generator=torch.Generator().manual_seed(1)) * 0.02 + 5
    assert moments(vector, table).variances[0] == pytest.approx(
        float(vector.double().var()), rel=1e-4
    )


def test_averaging_nothing_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        average_(models(1)[0], [], [], TABLE, GossipSpec())


def test_received_models_are_not_changed() -> None:
    own, *received = models(4)
    copies = [row.clone() for row in received]
    average(own, received, GossipSpec())
    assert all(torch.equal(a, b) for a, b in zip(received, copies, strict=True))


# --- parts ---


def test_a_part_is_averaged_without_touching_the_others() -> None:
    own, *received = models(4)
    _, part = TABLE.parts(2) if len(TABLE.parts(2)) == 2 else (None, TABLE)
    result = own.clone()
    rows = [row[part.start : part.end] for row in received]
    average_(
        result[part.start : part.end],
        rows,
        [moments(row, part) for row in rows],
        part,
        GossipSpec(),
    )
    assert torch.equal(result[: part.start], own[: part.start])
    assert not torch.equal(result[part.start :], own[part.start :])


def test_parts_cover_the_model_once_and_are_of_about_one_size() -> None:
    table = Table.of_shapes([(f"layer.{i}", (50, 50)) for i in range(9)])
    parts = table.parts(4)
    assert [slot for part in parts for slot in part.slots] == list(table.slots)
    assert max(part.elements for part in parts) <= 3 * 2500


def test_a_model_of_one_tensor_has_one_part() -> None:
    assert len(Table.of_shapes([("w", (10, 10))]).parts(4)) == 1


def test_models_of_another_shape_name_dtype_or_cut_have_another_layout() -> None:
    base = Table.of_shapes([("a", (2, 3)), ("b", (6,))])
    others = [
        Table.of_shapes([("a", (3, 2)), ("b", (6,))]).layout(dtype="float32", parts=1),
        Table.of_shapes([("a", (2, 3)), ("c", (6,))]).layout(dtype="float32", parts=1),
        base.layout(dtype="float64", parts=1),
        base.layout(dtype="float32", parts=2),
    ]
    digests = {base.layout(dtype="float32", parts=1).digest, *(other.digest for other in others)}
    assert len(digests) == 5
