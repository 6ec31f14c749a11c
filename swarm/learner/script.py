"""A model that somebody's own script trains: its parameters as one vector, and the script's thread for all that touches them.

    script's thread                          trio thread
    optimizer.step()                         a mode's peer, as in the daemon
      torch's step  ------ "trained" ----->    core: copy? average? go on?
      copies, averages  <----- jobs -------
    back to the script when the core wants the next batch

Between two steps the model is the script's alone; nobody else reads or writes it.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import outcome
import torch
import trio
from torch import Tensor

from protocols.run import ScriptModelSpec
from swarm.hosting.flat import Piece
from swarm.learner.learner import TrainedBatch
from swarm.learner.task import Batch, Evaluation

WITHOUT_END: Final = (1 << 62) - 1
"""Steps of a run whose scripts decide when they have trained enough."""
_POLL_S: Final = 0.5
"""How often a waiting script looks whether the network has ended."""


class NetworkEndedError(Exception):
    """The node behind the script is gone; the text says why."""


def named_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    """Return what an optimizer trains, with the names it was given (`model.named_parameters()`), else with numbers."""
    found: list[tuple[str, torch.nn.Parameter]] = []
    for group in optimizer.param_groups:
        names = group.get("param_names") or [None] * len(group["params"])
        for name, parameter in zip(names, group["params"], strict=True):
            found.append((name or f"parameter.{len(found)}", parameter))
    return found


def model_spec(optimizer: torch.optim.Optimizer) -> ScriptModelSpec:
    """Describe a script's model so that only scripts with the same one take part. Raises ValueError."""
    named = named_parameters(optimizer)
    dtypes = {parameter.dtype for _, parameter in named}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(
            f"all parameters must be float32, or all float64; these are {', '.join(sorted(map(str, dtypes)))}"
        )
    told = [[name, list(p.shape), str(p.dtype)] for name, p in named]
    digest = hashlib.sha256(bytes(msgpack.packb(["murmura script model", told])))
    return ScriptModelSpec(
        kind="script",
        sha256=digest.hexdigest(),
        parameters=sum(parameter.numel() for _, parameter in named),
    )


@dataclass(slots=True)
class _Job:
    fn: Callable[[], Any]
    done: Callable[[outcome.Outcome[Any]], None]
    trains: bool


class ScriptThread:
    """Hands work to the script's thread; stands where the daemon has a compute thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._waiting: _Job | None = None
        """The core waits for the batch that the script computes now."""
        self._ended = ""
        self.free = threading.Event()
        """Nothing more is asked of the script: all batches are trained."""

    # --- trio's thread ---

    async def run_own(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Have the script do this when it is in `step`, and return the result."""
        return await self._submit(lambda: fn(*args), trains=False)

    async def run_batch(self, fn: Callable[[], Any]) -> Any:
        """Return the result when the script has trained its next batch."""
        return await self._submit(fn, trains=True)

    async def _submit(self, fn: Callable[[], Any], *, trains: bool) -> Any:
        token = trio.lowlevel.current_trio_token()
        arrived = trio.Event()
        results: list[outcome.Outcome[Any]] = []

        def done(result: outcome.Outcome[Any]) -> None:
            results.append(result)
            token.run_sync_soon(arrived.set)

        self._jobs.put(_Job(fn, done, trains))
        await arrived.wait()
        return results[0].unwrap()

    def end(self, reason: str) -> None:
        """The network is gone: whoever waits is told."""
        self._ended = reason

    # --- the script's thread ---

    def until_batch(self) -> None:
        """Do what is asked until the core wants the next batch, if ever. Raises NetworkEndedError."""
        while self._waiting is None:
            try:
                job = self._jobs.get(timeout=_POLL_S)
            except queue.Empty:
                if self._ended:
                    raise NetworkEndedError(self._ended) from None
                if self.free.is_set():
                    return
                continue
            if job.trains:
                self._waiting = job
            else:
                job.done(outcome.capture(job.fn))

    def batch_done(self) -> None:
        """The script has trained a batch: tell the core."""
        job, self._waiting = self._waiting, None
        if job is not None:
            job.done(outcome.capture(job.fn))


class _Flat:
    """A script's parameters as one vector; stands where the daemon has a hosted module."""

    def __init__(self, named: Sequence[tuple[str, torch.nn.Parameter]]) -> None:
        pieces, start = [], 0
        for name, parameter in named:
            end = start + parameter.numel()
            pieces.append(Piece(name, tuple(parameter.shape), start, end))
            start = end
        self.pieces = tuple(pieces)
        self.elements = start

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        return {p.name: vector[p.start : p.end].view(p.shape) for p in self.pieces}

    def flatten(self, tensors: Any, out: Tensor) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors], out=out)


class ScriptLearner:
    """What modes need of a learner, over a script's own parameters and optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        named = named_parameters(optimizer)
        self.layout = _Flat(named)
        first = named[0][1]
        self.flat = torch.empty(self.layout.elements, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            for (_, parameter), view in zip(
                named, self.layout.views(self.flat).values(), strict=True
            ):
                view.copy_(parameter)
                parameter.data = view  # the script's model computes on the vector from now on
        self.hosted = self
        self.trained = 0
        self.loss = float("nan")

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters in the order of the optimizer, with their names."""
        return named_parameters(self._optimizer)

    def train_batch(self) -> TrainedBatch:
        """Called when the script has done it."""
        self.trained += 1
        finite = bool(torch.isfinite(self.flat.sum()))
        return TrainedBatch(self.loss, finite=finite)

    def batches(self, index: int) -> Batch:
        """The script's data is its own."""
        return Batch(torch.empty(0), torch.empty(0))

    def loss_on(self, vector: Tensor, batch: Batch) -> float:
        """Unknown here: a fetched model is as good as ours until the script trains it."""
        return 0.0

    def evaluate(self) -> Evaluation:
        return Evaluation(float("nan"), None)

    def evaluate_on(self, vector: Tensor) -> Evaluation:
        return self.evaluate()

    @torch.no_grad()
    def replace_parameters(self, vector: Tensor | None) -> None:
        """Go on from these parameters with a new optimizer state."""
        if vector is not None:
            self.flat.copy_(vector)
        self._optimizer.state.clear()

    def snapshot(self) -> tuple[int, Mapping[str, Tensor]]:
        return self.trained, self.layout.views(self.flat.detach().clone().cpu())

    def load(self, tensors: Mapping[str, Tensor], *, trained: int) -> None:
        with torch.no_grad():
            for name, view in self.layout.views(self.flat).items():
                view.copy_(tensors[name])
        self.trained = trained
