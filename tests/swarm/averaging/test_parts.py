"""How a vector is cut, and what the codecs keep of it."""

from __future__ import annotations

import itertools

import pytest
import torch

from swarm.averaging.codecs import BLOCK, CODECS, decode_untrusted
from swarm.averaging.parts import chunk_spans, part_spans


@pytest.mark.parametrize("bandwidths", [[1.0, 1.0, 1.0], [0.0, 5.0, 9.0], [1.0, 9.0]])
def test_equal_or_unknown_members_get_equal_parts(bandwidths: list[float]) -> None:
    sizes = [span.stop - span.start for span in part_spans(1000, bandwidths)]
    assert sum(sizes) == 1000
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "bandwidths",
    [[1.0, 2.0, 3.0], [1.0, 100.0, 100.0, 100.0], [5.0, 5.0, 5.0, 4.0, 1.0], [7.0, 1.0, 1.0]],
)
def test_all_that_have_a_part_are_done_together_and_nobody_else_takes_longer(
    bandwidths: list[float],
) -> None:
    elements, count = 10**6, len(bandwidths)
    spans = part_spans(elements, bandwidths)
    assert (spans[0].start, spans[-1].stop) == (0, elements)
    assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
    shares = [(span.stop - span.start) / elements for span in spans]
    seconds = [(1 + (count - 2) * f) / b for f, b in zip(shares, bandwidths, strict=True)]
    busy = [s for s, f in zip(seconds, shares, strict=True) if f > 0]
    assert max(busy) == pytest.approx(min(busy), rel=1e-4)
    # Who has no part is too slow for one: it sends its own numbers, and that takes as long as it takes.
    idle = [s for s, f in zip(seconds, shares, strict=True) if f == 0]
    assert all(s >= max(busy) * 0.999 for s in idle)


def test_chunks_cover_a_part() -> None:
    spans = chunk_spans(slice(10, 35), 10)
    assert [(span.start, span.stop) for span in spans] == [(10, 20), (20, 30), (30, 35)]
    assert chunk_spans(slice(5, 5), 10) == ()


@pytest.mark.parametrize("elements", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int8"])
def test_what_a_codec_sends_it_understands(name: str, elements: int) -> None:
    codec = CODECS[name]
    values = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    encoded = codec.encode(values)
    assert tuple(tensor.spec for tensor in encoded) == codec.specs(elements)
    decoded = decode_untrusted(codec, encoded, elements)
    assert torch.allclose(decoded, values, atol=0.03)


def test_eight_bits_are_off_by_half_a_step_of_their_block_at_most() -> None:
    values = torch.randn(10 * BLOCK, generator=torch.Generator().manual_seed(0))
    values[BLOCK : 2 * BLOCK] *= 1e6  # of no concern to the other blocks
    values[3 * BLOCK : 4 * BLOCK] = 0.0
    codec = CODECS["int8"]
    decoded = codec.decode(codec.encode(values), values.numel())
    error = (decoded - values).abs().view(10, BLOCK).amax(1)
    largest = values.abs().view(10, BLOCK).amax(1)
    assert (error <= largest / 254 * 1.0001).all()


@pytest.mark.parametrize("name", ["float16", "int8", "e3m0"])
def test_the_largest_numbers_stay_finite(name: str) -> None:
    codec = CODECS[name]
    values = torch.tensor([3e38, -3e38, 1e-45, 0.0])
    assert torch.isfinite(codec.decode(codec.encode(values), 4)).all()
