"""What the soak calls flat: noise is, a leak is not."""

from __future__ import annotations

import os
import random

from tests.soak.flat import Held


def held(*, leak_bytes: int = 0, leak_descriptors: float = 0.0) -> Held:
    rng = random.Random(0)
    found = Held()
    for k in range(360):  # half an hour
        warming = min(k, 30) << 20
        found.memory_bytes.append((300 << 20) + warming + rng.randrange(4 << 20) + k * leak_bytes)
        found.descriptors.append(60 + rng.randrange(8) + int(k * leak_descriptors))
    return found


def test_noise_and_warming_up_are_flat() -> None:
    assert held().problem() is None


def test_a_leak_of_memory_is_seen() -> None:
    assert "memory grew" in str(held(leak_bytes=256 << 10).problem())


def test_a_leak_of_descriptors_is_seen() -> None:
    assert "descriptors grew" in str(held(leak_descriptors=0.1).problem())


def test_a_sample_is_of_the_process() -> None:
    found = Held()
    found.look(os.getpid())
    assert found.memory_bytes[0] > 1 << 20
    assert found.descriptors[0] >= 3
