"""Numbers in four bits, against an implementation that takes one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from swarm.hosting.errors import NonFiniteError
from swarm.tensors.e3m0 import BLOCK, VALUE_MAX, byte_count, decode_untrusted, encode

SMALLEST = 2.0**-100
"""Numbers of the tests are no smaller: float32 loses bits below 2**-126."""


def nearest(x: float, powers: list[float]) -> float:
    """Return the nearest of 0 and these powers; of two as near the one further from zero."""
    return max([0.0, *powers], key=lambda power: (-abs(abs(x) - power), power))


def plain(numbers: list[float]) -> list[float]:
    """Return what is left of numbers after packing and unpacking."""
    out: list[float] = []
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        largest = max(abs(x) for x in block)
        if largest == 0.0:
            out += [0.0] * len(block)
            continue
        power = 2.0 ** math.floor(math.log2(largest))
        top = 2 * power if largest >= 1.5 * power else power
        powers = [top / 2**i for i in range(7)]
        out += [math.copysign(nearest(x, powers), x) for x in block]
    return out


FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) >= SMALLEST else 0.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(FLOATS, max_size=3 * BLOCK + 5))
def test_every_number_becomes_the_nearest_of_its_blocks_powers(numbers: list[float]) -> None:
    packed = encode(torch.tensor(numbers, dtype=torch.float32))
    assert packed.dtype == torch.uint8
    assert packed.shape == (byte_count(len(numbers)),)
    assert decode_untrusted(packed, len(numbers)).tolist() == plain(numbers)


@settings(max_examples=40, deadline=None)
@given(st.lists(FLOATS, max_size=2 * BLOCK + 1))
def test_what_was_packed_once_is_packed_again_bit_by_bit(numbers: list[float]) -> None:
    packed = encode(torch.tensor(numbers, dtype=torch.float32))
    again = encode(decode_untrusted(packed, len(numbers)))
    assert torch.equal(again, packed)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_decode_to_finite_numbers_or_blame_the_sender(data: bytes, elements: int) -> None:
    packed = torch.tensor(list(data), dtype=torch.uint8)
    try:
        numbers = decode_untrusted(packed, elements)
    except RemoteProtocolError:
        return
    assert numbers.shape == (elements,)
    assert bool((numbers.abs() <= VALUE_MAX).all())


def test_a_number_takes_four_bits_and_a_sixteenth() -> None:
    assert byte_count(1_000_000) * 8 / 1_000_000 == pytest.approx(4.0625, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20])
def test_what_is_not_finite_is_not_packed(bad: float) -> None:
    numbers = torch.ones(300)
    numbers[200] = bad
    with pytest.raises(NonFiniteError):
        encode(numbers)


def test_tiny_numbers_become_zeros() -> None:
    numbers = torch.tensor([1e-45, -1e-40, 1e-38])
    assert decode_untrusted(encode(numbers), 3).abs().max() <= 2e-38


def test_the_wrong_dtype_or_length_is_the_senders_fault() -> None:
    packed = encode(torch.ones(10))
    for wrong in (packed[:-1], packed.view(torch.int8), packed[None]):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted(wrong, 10)
