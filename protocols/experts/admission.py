"""Which calls a host takes for its expert, by epoch and version."""

from __future__ import annotations

from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["taken", "not-here", "adopted", "draining", "overtaken"]
"""`adopted`: the caller knows a newer host. `draining`: the expert is being handed over. `overtaken`: the gradient is of
another host's epoch, too old, or for a version that this expert never had."""


def judge_call(epoch: int | None, asked: int, *, frozen: bool) -> Verdict:
    """Judge a call of either kind.

    Args:
      epoch: of the expert here; None when it is not here.
      asked: the newest that the caller knows.
    """
    if epoch is None:
        return "not-here"
    if asked > epoch:
        return "adopted"
    return "draining" if frozen else "taken"


def judge_gradient(
    epoch: int, version: int, *, asked_epoch: int, asked_version: int, staleness_max: int
) -> Verdict:
    """Judge a gradient for an output of (asked_epoch, asked_version). The expert may step only for "taken"."""
    if asked_epoch != epoch or not 0 <= version - asked_version <= staleness_max:
        return "overtaken"
    return "taken"
