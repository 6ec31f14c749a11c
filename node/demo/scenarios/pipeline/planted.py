"""`python -m node.demo.scenarios.pipeline.planted run ...`: a node with a bug, so that everybody can see that the demo would notice one.

An ordinary node in which one microbatch's gradient is added twice: what would happen if a repeated request were
computed again. Its books stay in order, so only the outcome can give it away. The daemon itself has no such switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from node.cli import main
from swarm.pipeline.hosted_stage import HostedStage

_AFTER_VERSION: Final = 2
"""Not in the first steps, where the optimizer knows no scale yet and everything looks large."""


def double_count() -> None:
    """Make one call of this process's hosted stage count twice."""
    planted = False

    def twice(method: Callable[..., Any]) -> Callable[..., Any]:
        def compute(stage: HostedStage, *tensors: Any, count: bool) -> Any:
            nonlocal planted
            before = stage.counted
            result = method(stage, *tensors, count=count)
            one = stage.counted == before + 1
            if one and not planted and stage.version >= _AFTER_VERSION:
                planted = True
                method(stage, *tensors, count=True)
                stage.counted = before + 1
            return result

        return compute

    for name in ("backward", "loss"):
        setattr(HostedStage, name, twice(getattr(HostedStage, name)))


if __name__ == "__main__":
    double_count()
    main()
