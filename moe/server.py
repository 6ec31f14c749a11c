"""Experts hosted on this node: answers the service `expert`, on one compute thread.

Rules:
- Requests of many peers for one expert that wait together are computed together, oldest first (`swarm.hosting.compute`).
- Forward keeps nothing. Backward computes the forward again on the inputs that come with it, and the optimizer steps at once
  after each backward batch: gradients are stale by the steps since the forward pass, which is measured, and bounded.
- What one peer sends cannot spoil another's answer: a batch that is not finite is computed again, each request alone.
- A request that knows a newer epoch of an expert makes its host look whether it has been replaced (`protocols.experts.placement`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import outcome
import torch
from torch import Tensor, nn

from protocols.errors import RemoteProtocolError
from protocols.experts.admission import judge_call, judge_gradient
from protocols.experts.messages import (
    EXPERT_SERVICE,
    Average,
    Backward,
    Forward,
    Output,
    Stepped,
    decode_message_untrusted,
    encode_message,
    uid_untrusted,
)
from protocols.experts.uid import ExpertUID
from protocols.frames import Limits, TensorSpec
from protocols.run import OptimizerSpec
from swarm.calls import Answer, Incoming, Refusal, WireTensor
from swarm.endpoints import Endpoint
from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import BusyError, ClosedError, NonFiniteError
from swarm.hosting.module import HostedModule, require_finite
from swarm.hosting.optimizers import MakeOptimizer
from swarm.tensors.wire import from_wire, spec_of, to_wire

ROWS_MAX: Final = 1 << 16
"""In one request."""
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
_HEADER_BYTES: Final = 4096
_BUSY_S: Final = 0.2
_SMOOTHED: Final = 0.05


@dataclass(slots=True)
class ExpertStats:
    """What one expert has done on this node. Written on the compute thread, read anywhere."""

    backward_rows: int = 0
    steps: int = 0
    joined: int = 0
    """Backward requests; more than `steps` where requests were computed together."""
    stale_refused: int = 0
    staleness: float = 0.0
    """Steps between a forward pass and its gradient: moving average."""
    staleness_max: int = 0
    failed: int = 0
    seconds: float = 0.0
    """That the compute thread has spent on it."""
    since_s: float = 0.0
    """When this node began to host it, by time.monotonic()."""


@dataclass(slots=True)
class Expert:
    """One hosted expert.

    Args:
      row: shape of one row of the input.
    """

    uid: ExpertUID
    epoch: int
    hosted: HostedModule
    row: tuple[int, ...]
    out_row: tuple[int, ...]
    dtype: str
    frozen: bool = False
    """Being handed over: it answers nothing."""
    replica: bool = False
    """Another node hosts it; we answer for it as well."""
    stats: ExpertStats = field(default_factory=ExpertStats)


@dataclass(frozen=True, slots=True)
class _Item:
    """One request, as the compute thread gets it."""

    x: Tensor
    grad_y: Tensor | None = None


_Results: TypeAlias = Sequence[outcome.Outcome[tuple[Tensor, int]]]


class ExpertServer:
    """Hosts experts.

    Args:
      rate: learning rate of an expert's step, counted from 0.
      clip_norm: bound on an expert's gradient; 0 turns clipping off.
      newer: told when a caller knows a newer epoch than ours.
    """

    def __init__(
        self,
        compute: ComputeThread,
        *,
        rate: Callable[[int], float],
        clip_norm: float = 0.0,
        staleness_max: int = 1 << 20,
        newer: Callable[[ExpertUID, int], None] = lambda uid, epoch: None,
    ) -> None:
        self._compute = compute
        self._rate = rate
        self._clip_norm = clip_norm
        self._staleness_max = staleness_max
        self._newer = newer
        self.experts: dict[ExpertUID, Expert] = {}
        """What we host, and what we are a replica of."""
        self.averaging: Callable[[Incoming, Average], Awaitable[Answer]] | None = None
        """Answers replicas of our experts."""
        self._limits = Limits(
            header_bytes_max=_HEADER_BYTES, body_bytes_max=BODY_BYTES_MAX, tensors_max=2
        )

    def wire(self) -> Mapping[str, Endpoint]:
        """Return the service `expert`."""
        return {EXPERT_SERVICE: Endpoint(self.answer, lambda peer: self._limits)}

    def add(
        self,
        uid: ExpertUID,
        module: nn.Module,
        optimizer: OptimizerSpec | MakeOptimizer,
        *,
        row: Sequence[int],
        epoch: int = 1,
        device: str = "cpu",
        state: Mapping[str, Tensor] | None = None,
    ) -> Expert:
        """Host a module that maps (rows, *row) to (rows, ...). It is taken over. Call it on the compute thread, or before it runs.

        Args:
          state: a snapshot of the same module to continue from.
        """
        expert = build_expert(uid, module, optimizer, row=row, epoch=epoch, device=device)
        if state is not None:
            expert.hosted.load(state)
        self.put(expert)
        return expert

    def put(self, expert: Expert) -> None:
        """Answer for an expert from now on."""
        self.experts[expert.uid] = expert

    def remove(self, uid: ExpertUID) -> None:
        """Answer for it no more; what is being computed for it is still answered."""
        self.experts.pop(uid, None)

    # --- answering ---

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the service `expert`. Raises Refusal, RemoteProtocolError."""
        message = decode_message_untrusted(incoming.message)
        tensors = incoming.tensors
        match message:
            case Forward():
                expert = self._expert(uid_untrusted(message.uid), message.epoch)
                if len(tensors) != 1:
                    raise RemoteProtocolError("a forward call has one tensor")
                x = _rows_untrusted(tensors[0], expert.row, expert.dtype)
                y, output = await self.forward(expert, x)
                return Answer(encode_message(output), [to_wire(y)])
            case Backward():
                expert = self._expert(uid_untrusted(message.uid), message.epoch)
                if len(tensors) != 2:
                    raise RemoteProtocolError("a backward call has two tensors")
                x = _rows_untrusted(tensors[0], expert.row, expert.dtype)
                grad_y = _rows_untrusted(tensors[1], expert.out_row, expert.dtype)
                if len(x) != len(grad_y):
                    raise RemoteProtocolError("x and grad_y must have as many rows")
                grad_x, stepped = await self.backward(
                    expert, x, grad_y, epoch=message.epoch, version=message.version
                )
                return Answer(encode_message(stepped), [to_wire(grad_x)])
            case Average() if self.averaging is not None:
                return await self.averaging(incoming, message)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} asks for nothing here")

    async def forward(self, expert: Expert, x: Tensor) -> tuple[Tensor, Output]:
        """Apply an expert to rows (R, *row); also for a caller on this node. Raises Refusal, RemoteProtocolError."""
        key = (id(expert), "forward")
        y, version = await self._run(lambda items: _timed(expert, _forward, items), _Item(x), key)
        return y, Output(expert.epoch, version)

    async def backward(
        self, expert: Expert, x: Tensor, grad_y: Tensor, *, epoch: int, version: int
    ) -> tuple[Tensor, Stepped]:
        """Return the gradient for x, and let the expert step. Raises Refusal, RemoteProtocolError.

        Args:
          epoch, version: of the Output that grad_y is for.
        """
        self._require_fresh(expert, epoch, version)
        key = (id(expert), "backward")
        grad_x, now = await self._run(
            lambda items: _timed(expert, self._backward, items), _Item(x, grad_y), key
        )
        return grad_x, Stepped(expert.epoch, now)

    @property
    def hosted(self) -> Sequence[Expert]:
        """What we host, without what we are a replica of."""
        return [expert for expert in self.experts.values() if not expert.replica]

    def find(self, uid: ExpertUID, epoch: int) -> Expert:
        """Return an expert for a caller on this node. Raises Refusal."""
        return self._expert(uid, epoch)

    def _expert(self, uid: ExpertUID, epoch: int) -> Expert:
        expert = self.experts.get(uid)
        verdict = judge_call(
            expert.epoch if expert is not None else None,
            epoch,
            frozen=expert is not None and expert.frozen,
        )
        if verdict == "adopted":
            self._newer(uid, epoch)
            raise Refusal("not-here", "this expert has been adopted by another node")
        if verdict == "draining":
            raise Refusal("draining", "this expert is being handed over", _BUSY_S)
        if expert is None:
            raise Refusal("not-here", "this node does not host that expert")
        return expert

    def _require_fresh(self, expert: Expert, epoch: int, version: int) -> None:
        stats = expert.stats
        verdict = judge_gradient(
            expert.epoch,
            expert.hosted.version,
            asked_epoch=epoch,
            asked_version=version,
            staleness_max=self._staleness_max,
        )
        if verdict != "taken":
            stats.stale_refused += 1
            raise Refusal("overtaken", "the expert has stepped too often since that forward pass")
        staleness = expert.hosted.version - version
        stats.staleness += _SMOOTHED * (staleness - stats.staleness)
        stats.staleness_max = max(stats.staleness_max, staleness)

    async def _run(
        self,
        work: Callable[[Sequence[_Item]], _Results],
        item: _Item,
        key: object,
    ) -> tuple[Tensor, int]:
        try:
            return await self._compute.run_joined(work, item, key=key, size=max(1, len(item.x)))
        except BusyError as error:
            raise Refusal("busy", str(error), _BUSY_S) from error
        except ClosedError as error:
            raise Refusal("busy", str(error), 1.0) from error
        except NonFiniteError as error:
            raise Refusal("diverged", str(error)) from error

    # --- on the compute thread ---

    def _backward(self, expert: Expert, items: Sequence[_Item]) -> _Results:
        try:
            grads = self._step(expert, items)
        except NonFiniteError as error:
            expert.hosted.reset_gradient()
            if len(items) > 1:
                return [result for item in items for result in self._backward(expert, [item])]
            expert.stats.failed += 1
            return [outcome.Error(_whose_fault(items[0], error))]
        version = expert.hosted.version
        return [outcome.Value((grad, version)) for grad in grads]

    def _step(self, expert: Expert, items: Sequence[_Item]) -> Sequence[Tensor]:
        hosted, stats = expert.hosted, expert.stats
        x = _joined([item.x for item in items]).detach().requires_grad_()
        grad_y = _joined([item.grad_y for item in items if item.grad_y is not None])
        y = hosted.module(x)
        count = len(items) if hosted.weights else 0
        (grad_x,) = hosted.differentiate(y, grad_y, [x], count=count)
        if count:
            gradient = hosted.gradient()
            if count > 1:
                gradient.div_(count)
            if self._clip_norm:
                norm = float(torch.linalg.vector_norm(gradient))
                if norm > self._clip_norm:
                    gradient.mul_(self._clip_norm / norm)
            hosted.apply(gradient, rate=self._rate(hosted.version))
        stats.steps += 1
        stats.joined += len(items)
        stats.backward_rows += len(x)
        return torch.split(grad_x, [len(item.x) for item in items])


def build_expert(
    uid: ExpertUID,
    module: nn.Module,
    optimizer: OptimizerSpec | MakeOptimizer,
    *,
    row: Sequence[int],
    epoch: int,
    device: str = "cpu",
) -> Expert:
    """Take a module over, and look at what it makes of one row. On the compute thread."""
    hosted = HostedModule(module, optimizer, device=device)
    with torch.no_grad():
        y = hosted.module(torch.zeros(1, *row, dtype=hosted.flat.dtype, device=hosted.device))
    dtype = str(hosted.flat.dtype).removeprefix("torch.")
    expert = Expert(uid, epoch, hosted, tuple(row), tuple(y.shape[1:]), dtype)
    expert.stats.since_s = time.monotonic()
    return expert


def _timed(
    expert: Expert, work: Callable[[Expert, Sequence[_Item]], _Results], items: Sequence[_Item]
) -> _Results:
    began_s = time.monotonic()
    try:
        return work(expert, items)
    finally:
        expert.stats.seconds += time.monotonic() - began_s


@torch.no_grad()
def _forward(expert: Expert, items: Sequence[_Item]) -> _Results:
    hosted = expert.hosted
    y = hosted.module(_joined([item.x for item in items]))
    try:
        require_finite(y)
    except NonFiniteError as error:
        if len(items) > 1:
            return [result for item in items for result in _forward(expert, [item])]
        expert.stats.failed += 1
        return [outcome.Error(_whose_fault(items[0], error))]
    return [
        outcome.Value((part, hosted.version))
        for part in torch.split(y, [len(item.x) for item in items])
    ]


def _whose_fault(item: _Item, error: NonFiniteError) -> Exception:
    """The sender's, when what it sent is not finite; else nobody's: finite numbers that are too large."""
    sent = [item.x] if item.grad_y is None else [item.x, item.grad_y]
    if all(bool(torch.isfinite(tensor).all()) for tensor in sent):
        return error
    return RemoteProtocolError("the rows have values that are not finite")


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _rows_untrusted(wire: WireTensor, row: tuple[int, ...], dtype: str) -> Tensor:
    """Check dtype and shape, and wrap; whether it is finite shows when it is computed. Raises RemoteProtocolError."""
    shape = wire.spec.shape
    rows = shape[0] if shape else 0
    if not 0 < rows <= ROWS_MAX or wire.spec != TensorSpec(dtype, (rows, *row)):
        raise RemoteProtocolError(
            f"rows must be {dtype} of shape [1 to {ROWS_MAX}, {', '.join(map(str, row))}]"
        )
    if wire.data.nbytes != wire.spec.byte_count:
        raise RemoteProtocolError("a tensor with another number of bytes than its shape says")
    return from_wire(wire)


def answer_rows_untrusted(
    wires: Sequence[WireTensor], like: Tensor, row: tuple[int, ...]
) -> Tensor:
    """Check the answer to a call: one tensor, as many rows, the right dtype. Values are checked by whoever uses it.

    Raises RemoteProtocolError only.
    """
    dtype = spec_of(like).dtype
    if len(wires) != 1 or wires[0].spec != TensorSpec(dtype, (len(like), *row)):
        raise RemoteProtocolError("an expert answers with one tensor of as many rows")
    return from_wire(wires[0])
