"""How a vector is cut: a part for each member to reduce, and each part in chunks that are sent one by one."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.averaging.butterfly import part_slices


def part_spans(elements: int, bandwidths: Sequence[float]) -> tuple[slice, ...]:
    """Cut a vector so that all members are done at the same time; a slow one gets a small part, or an empty one.

    With a share f of the vector a member of n receives, and sends, (1 - f) + (n - 1) f of it: its own numbers of the others'
    parts, and the others' of its own. So at bandwidth b it takes (1 + (n - 2) f) / b, and the shares are those for which
    this is the same for all whose share is not 0.

    Args:
      bandwidths: bytes per second, by member; equal parts when one of them is 0, which means not known.
    """
    count = len(bandwidths)
    if count <= 2 or min(bandwidths) <= 0 or min(bandwidths) == max(bandwidths):
        return part_slices(elements, count)
    # Take the slowest out until the rest share everything: then (1 + (n - 2) f) = t b with the f adding up to 1.
    order = sorted(range(count), key=lambda index: -bandwidths[index])
    time = 0.0
    while order:
        time = (len(order) + count - 2) / sum(bandwidths[index] for index in order)
        if time * bandwidths[order[-1]] >= 1:
            break
        order.pop()
    shares = [max(0.0, (time * bandwidth - 1) / (count - 2)) for bandwidth in bandwidths]
    ends = []
    total = 0.0
    for share in shares:
        total += share
        ends.append(min(elements, round(total * elements)))
    ends[-1] = elements
    return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))


def chunk_spans(span: slice, chunk_elements: int) -> tuple[slice, ...]:
    """Cut a part in chunks; all but the last are of this size."""
    starts = range(span.start, span.stop, chunk_elements)
    return tuple(slice(start, min(start + chunk_elements, span.stop)) for start in starts)
