from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from swarm.averaging.butterfly import clip_scale, part_hash, part_slices, reduce_part, squared_norm


@given(elements=st.integers(0, 1000), members=st.integers(1, 40))
def test_parts_cover_the_vector_once_and_are_even(elements: int, members: int) -> None:
    slices = part_slices(elements, members)
    assert [index for part in slices for index in range(elements)[part]] == list(range(elements))
    sizes = [part.stop - part.start for part in slices]
    assert len(sizes) == members
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_members_assemble_the_same_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(1001, dtype=dtype, generator=generator) for _ in range(3)]
    slices = part_slices(1001, 3)
    assembled = torch.cat([reduce_part([vector[part] for vector in vectors]) for part in slices])
    assert torch.equal(assembled, reduce_part(vectors))
    assert assembled.dtype == dtype
    assert torch.allclose(assembled, torch.stack(vectors).sum(dim=0))


def test_contributions_are_not_changed() -> None:
    one, two = torch.ones(4), torch.ones(4)
    total = reduce_part([one, two])
    assert torch.equal(one, torch.ones(4))
    assert total.data_ptr() != one.data_ptr()


def test_contributions_of_different_sizes_are_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        reduce_part([torch.ones(4), torch.ones(5)])


@pytest.mark.parametrize("elements", [0, 1, 1023, 1024, 300_001])
def test_the_squared_norm_is_the_same_for_any_number_of_threads(elements: int) -> None:
    vector = torch.randn(elements, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    try:
        norms = set()
        for count in (1, 2):
            torch.set_num_threads(count)
            norms.add(squared_norm(vector))
    finally:
        torch.set_num_threads(threads)
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(vector.double().square().sum().item())


def test_squared_norms_do_not_overflow_float32() -> None:
    assert squared_norm(torch.full((2,), 1e30)) == pytest.approx(2e60)


def test_equal_hashes_mean_equal_bits() -> None:
    assert part_hash(torch.tensor([0.0])) != part_hash(torch.tensor([-0.0]))
    assert part_hash(torch.arange(8.0)[2:4]) == part_hash(torch.tensor([2.0, 3.0]))


def test_clipping_bounds_the_norm_over_all_stages() -> None:
    scale = clip_scale([9.0, 16.0], clip_norm=1.0)
    assert math.sqrt(9.0 + 16.0) * scale == pytest.approx(1.0)


@pytest.mark.parametrize("clip_norm", [0.0, 5.0, 6.0])
def test_a_small_gradient_and_clipping_turned_off_leave_the_gradient_as_it_is(
    clip_norm: float,
) -> None:
    assert clip_scale([9.0, 16.0], clip_norm=clip_norm) == 1.0
