"""Why a mixture could not be computed."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.experts.uid import ExpertUID

_NAMED_MAX = 8


class TooFewExpertsError(Exception):
    """Some rows got fewer than `k_min` answers, though other experts were tried. Worth a retry: hosts come back."""

    def __init__(self, layer: str, *, rows: int, k_min: int, tried: Sequence[ExpertUID]) -> None:
        names = ", ".join(map(str, tried[:_NAMED_MAX])) or "none, for none is known to be alive"
        more = f" and {len(tried) - _NAMED_MAX} more" if len(tried) > _NAMED_MAX else ""
        super().__init__(
            f"layer {layer}: {rows} rows have fewer than {k_min} answers; tried {names}{more}"
        )
        self.layer = layer
        self.tried = tuple(tried)


class BridgeClosedError(Exception):
    """The event loop behind this layer has ended."""
