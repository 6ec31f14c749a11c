"""Why a mixture could not be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        self.rows = rows
        self.k_min = k_min
        self.tried = tuple(tried)

    def __reduce__(self) -> tuple[Callable[..., TooFewExpertsError], tuple[object, ...]]:
        """Let it be pickled and copied: `Exception` would call the constructor with the message alone."""
        return _too_few, (self.layer, self.rows, self.k_min, self.tried)


def _too_few(layer: str, rows: int, k_min: int, tried: tuple[ExpertUID, ...]) -> TooFewExpertsError:
    return TooFewExpertsError(layer, rows=rows, k_min=k_min, tried=tried)


class BridgeClosedError(Exception):
    """The event loop behind this layer has ended."""
