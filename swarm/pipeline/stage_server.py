"""A hosted stage as trio sees it: calls wait in the compute thread's queue and those that fit are computed together.

A call says which step it is for; whether that is the stage's step is checked when the work begins, because an optimizer
step may have been queued before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import outcome
import torch
from torch import Tensor

from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import NonFiniteError, StepAheadError, StepPassedError
from swarm.pipeline.hosted_stage import HostedStage, LossResult
from swarm.pipeline.shapes import microbatches_of

Whole = TypeVar("Whole")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Call:
    tensors: tuple[Tensor, ...]
    """x, then grad_y or targets where the kind of call has them; (B, ...) each."""
    step: int | None
    microbatches: int


class StageServer:
    """One hosted stage on one compute thread.

    Every method raises BusyError and ClosedError; the calls also StepPassedError, StepAheadError and NonFiniteError.
    After any of these nothing was counted. Inputs must have been checked (`swarm.pipeline.shapes`, `tensor_untrusted`).
    """

    def __init__(self, stage: HostedStage, compute: ComputeThread) -> None:
        self.stage = stage
        self._compute = compute

    async def forward(self, x: Tensor, *, step: int) -> Tensor:
        """See HostedStage.forward."""
        call = self._prepare((x,), step)
        return await self._submit(("forward",), call, self.stage.forward, _split_rows)

    async def backward(
        self,
        x: Tensor,
        grad_y: Tensor,
        *,
        step: int,
        count: bool,
        on_counted: Callable[[], None] | None = None,
    ) -> Tensor | None:
        """See HostedStage.backward.

        Args:
          on_counted: called on trio's thread once this call's gradient is in the sum, before the result of any later
            work arrives. Must not raise.
        """
        compute = functools.partial(self.stage.backward, count=count)
        call = self._prepare((x, grad_y), step)
        return await self._submit(
            ("backward", count), call, compute, _split_optional_rows, on_counted
        )

    async def loss(
        self,
        x: Tensor,
        targets: Tensor,
        *,
        step: int,
        count: bool,
        on_counted: Callable[[], None] | None = None,
    ) -> LossResult:
        """See HostedStage.loss; `on_counted` as in `backward`."""
        compute = functools.partial(self.stage.loss, count=count)
        call = self._prepare((x, targets), step)
        return await self._submit(("loss", count), call, compute, _split_losses, on_counted)

    async def evaluate(
        self, x: Tensor, targets: Tensor, *, step: int | None = None
    ) -> tuple[float, ...]:
        """See HostedStage.evaluate. Without a step: with the parameters as they are when the work begins."""
        call = self._prepare((x, targets), step)
        return await self._submit(("evaluate",), call, self.stage.evaluate, _split_values)

    async def exclusive(self, fn: Callable[..., Result], *args: object) -> Result:
        """Run `fn` on the compute thread, ordered with the calls: to read the gradient, step, snapshot or load."""
        return await self._compute.run_own(fn, *args)

    def _prepare(self, tensors: tuple[Tensor, ...], step: int | None) -> _Call:
        return _Call(tensors, step, microbatches_of(self.stage.run, tensors[0].size(0)))

    async def _submit(
        self,
        kind: tuple[object, ...],
        call: _Call,
        compute: Callable[..., Whole],
        split: Callable[[Whole, Sequence[_Call]], Sequence[Result]],
        on_value: Callable[[], None] | None = None,
    ) -> Result:
        x = call.tensors[0]
        key = (self.stage.stage, *kind, call.step, x.dtype, tuple(x.shape[1:]))
        work = functools.partial(self._together, compute, split)
        return await self._compute.run_joined(
            work, call, key=key, size=call.microbatches, on_value=on_value
        )

    # --- in the compute thread ---------------------------------------------------------------------------------

    def _together(
        self,
        compute: Callable[..., Whole],
        split: Callable[[Whole, Sequence[_Call]], Sequence[Result]],
        calls: Sequence[_Call],
    ) -> Sequence[outcome.Outcome[Result]]:
        self._check_step(calls[0].step)
        columns = zip(*(call.tensors for call in calls), strict=True)
        inputs = [torch.cat(column) if len(column) > 1 else column[0] for column in columns]
        try:
            whole = compute(*inputs)
        except NonFiniteError as error:
            if len(calls) == 1:
                return [outcome.Error(error)]
            # Nothing was counted. One caller's numbers must not cost the others theirs, so each is computed alone.
            return [self._together(compute, split, [call])[0] for call in calls]
        return [outcome.Value(result) for result in split(whole, calls)]

    def _check_step(self, step: int | None) -> None:
        here = self.stage.version
        if step is not None and step != here:
            raise (StepPassedError if step < here else StepAheadError)(asked=step, here=here)


def _split_rows(whole: Tensor, calls: Sequence[_Call]) -> Sequence[Tensor]:
    return torch.split(whole, [call.tensors[0].size(0) for call in calls])


def _split_optional_rows(whole: Tensor | None, calls: Sequence[_Call]) -> Sequence[Tensor | None]:
    return [None] * len(calls) if whole is None else _split_rows(whole, calls)


def _split_values(whole: Sequence[float], calls: Sequence[_Call]) -> Sequence[tuple[float, ...]]:
    ends = list(accumulate(call.microbatches for call in calls))
    return [
        tuple(whole[end - call.microbatches : end]) for call, end in zip(calls, ends, strict=True)
    ]


def _split_losses(whole: LossResult, calls: Sequence[_Call]) -> Sequence[LossResult]:
    pairs = zip(
        _split_values(whole.losses, calls), _split_optional_rows(whole.grad_x, calls), strict=True
    )
    return [LossResult(losses, grad_x) for losses, grad_x in pairs]
