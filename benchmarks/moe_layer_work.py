"""What both sides of benchmarks.moe_layer do: the experts, the batches, and the timing of steps. Knows neither library."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import torch
from torch import nn

WIDTH: Final = 128
HIDDEN: Final = 512
GRID: Final = (8, 8)
BATCH: Final = 64
K: Final = 4
RATE: Final = 1e-3
LATE_S: Final = 0.5
"""Our side goes on without an expert that has not answered by then, or later where it was slow before."""


def names(server: int, prefix: str) -> list[str]:
    """Return the 16 experts of one server: two rows of the grid."""
    return [
        f"{prefix}.{row}.{column}"
        for row in (2 * server, 2 * server + 1)
        for column in range(GRID[1])
    ]


def make_expert() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


class Steps:
    """Forward, backward, and a step of the gate, over a new batch each time."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
        self._generator = torch.Generator().manual_seed(0)
        self.failed = 0

    def step(self) -> None:
        x = torch.randn(BATCH, WIDTH, generator=self._generator, requires_grad=True)
        self._optimizer.zero_grad()
        try:
            self._layer(x).square().mean().backward()
        except Exception as error:  # noqa: BLE001 - either library's: a step that could not be made
            self.failed += 1
            print(f"a step failed: {error!r:.200}", file=sys.stderr)
            return
        self._optimizer.step()

    def run(self, seconds: float) -> dict[str, Any]:
        each_s: list[float] = []
        began_s = time.monotonic()
        while time.monotonic() - began_s < seconds:
            at_s, failed = time.monotonic(), self.failed
            self.step()
            if self.failed == failed:
                each_s.append(time.monotonic() - at_s)
        return {"seconds": time.monotonic() - began_s, "each_s": each_s}


def answer(question: dict[str, Any], steps: Steps) -> dict[str, Any]:
    if question["do"] == "steps":
        return steps.run(question["seconds"])
    return {"steps_failed": steps.failed}
