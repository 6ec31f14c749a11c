"""Points in a step at which a node can be told to die, or to stop: `order` one, and the node does it there by itself.

A point is a place in the product's code, wrapped in the node's own process before it starts; the product knows nothing
of it. The order is a file beside the node's state folder, so any node can be the victim, at any time:

    order(folder, "gradient counted", step=12)    the first time this point is reached in step 12 or a later one

Rule of this file: what is done at a point is done there, in the thread that is there, before anything else happens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

_ORDER: Final = "order"
_DONE: Final = "order-done"
_STATES: Final = "states"


def _always(*_: Any, **__: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after a function; `only` for the calls that it accepts, of which it gets the arguments."""

    name: str
    owner: str
    """`module:Class`"""
    function: str
    when: Literal["before", "after"]
    only: Callable[..., bool] = _always


def _counting(*_: Any, count: bool) -> bool:
    return count


def _message(tag: str) -> Callable[..., bool]:
    """Accept casts of one kind on their way out: `Outboxes._send_one(self, pooled, peer, service, message, ...)`."""

    def only(_self: Any, _pooled: Any, _peer: Any, _service: Any, message: Any, *_: Any) -> bool:
        return bool(message["tag"] == tag)

    return only


def _received(kind: str) -> Callable[..., bool]:
    """Accept messages of one kind on their way in: `PipelinePeer._take(self, peer, message)`."""

    def only(_self: Any, _peer: Any, message: Any) -> bool:
        return type(message).__name__ == kind

    return only


def _asks(kind: str) -> Callable[..., bool]:
    """Accept a trainer's calls of one kind: `TrainerShell._ask_stage(self, ask)`."""

    def only(_self: Any, ask: Any) -> bool:
        return bool(ask.kind == kind)

    return only


def _pulls(*, summed: bool) -> Callable[..., bool]:
    """Accept pulls of a part before, or after it was summed: `Reduction._pull(..., summed=)`."""

    def only(*_: Any, **named: Any) -> bool:
        return bool(named["summed"] is summed)

    return only


def _gives(_self: Any, _channel: Any, head: Any, reply: Any) -> bool:
    """Accept answers with a part of our own gradient: `Service._send_reply(self, channel, head, reply)`."""
    message = head.message
    is_part = isinstance(message, dict) and message.get("summed") is False
    return is_part and bool(getattr(reply, "tensors", ()))


_STAGE: Final = "swarm.pipeline.hosted_stage:HostedStage"
_HOST: Final = "swarm.pipeline.stage_host:StageHost"
_TRAINER: Final = "swarm.pipeline.trainer_shell:TrainerShell"
_REDUCTION: Final = "swarm.pipeline.reduction:Reduction"
_PEER: Final = "swarm.pipeline.peer:PipelinePeer"
_CASTS: Final = "swarm.calls.casts:Outboxes"

POINTS: Final = (
    # A member that serves a microbatch.
    Point("forward asked", _STAGE, "forward", "before"),
    Point("forward computed", _STAGE, "forward", "after"),
    Point("backward asked", _STAGE, "_differentiate", "before", _counting),
    Point("gradient added", _STAGE, "_differentiate", "after", _counting),
    Point("gradient counted", _HOST, "_note_counted", "after"),
    Point("tally sent", _CASTS, "_send_one", "after", _message("tally")),
    # A trainer between forward and backward, and with the last stage counted but not the first.
    Point("loss wanted", _TRAINER, "_ask_stage", "before", _asks("loss")),
    Point("backward wanted", _TRAINER, "_ask_stage", "before", _asks("backward")),
    # A member that reduces.
    Point("reduction asked", _PEER, "_start_reduce", "before"),
    Point("gradient sent", "swarm.calls.service:Service", "_send_reply", "after", _gives),
    Point("gradient received", _REDUCTION, "_pull", "after", _pulls(summed=False)),
    Point("sum received", _REDUCTION, "_pull", "after", _pulls(summed=True)),
    Point("reduced", _REDUCTION, "reduce", "after"),
    Point("reduced sent", _CASTS, "_send_one", "after", _message("reduced")),
    # A member that agrees.
    Point("accept received", _PEER, "_take", "before", _received("Accept")),
    Point("accepted sent", _CASTS, "_send_one", "after", _message("accepted")),
    Point("record received", _PEER, "_take", "before", _received("Records")),
    Point("record learned", _PEER, "_learned", "after"),
    Point("step applied", _STAGE, "apply_step", "after"),
    # The lead: one of the others has the message already.
    Point("reduce sent", _CASTS, "_send_one", "after", _message("reduce")),
    Point("accept sent", _CASTS, "_send_one", "after", _message("accept")),
    Point("record sent", _CASTS, "_send_one", "after", _message("records")),
)  # fmt: skip
BY_NAME: Final = {point.name: point for point in POINTS}


def order(folder: Path, point: str, *, step: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Tell the node with this witness folder to send itself a signal at a point of a step, or of the next one that has it."""
    assert point in BY_NAME, point
    (folder / _DONE).unlink(missing_ok=True)
    text = json.dumps({"point": point, "step": step, "signal": int(number)})
    written = folder / f"{_ORDER}.new"
    written.write_text(text)
    written.replace(folder / _ORDER)


def done_in_step(folder: Path) -> int | None:
    """Return the step in which the last order was carried out; None while it is not."""
    try:
        return int((folder / _DONE).read_text())
    except FileNotFoundError:
        return None


def states(folder: Path) -> dict[tuple[int, int], set[str]]:
    """Return the hashes of the parameters that the node had at (stage, step), over all its lives."""
    found: dict[tuple[int, int], set[str]] = {}
    path = folder / _STATES
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):  # a node that was killed may have left half a line
            stage, step, digest = line.split()
            found.setdefault((int(stage), int(step)), set()).add(digest)
    return found


# --- in the node's process ---


def install(folder: Path) -> None:
    """Wrap the points in this process, and have it write down the hash of its stage's state after each step."""
    orders = _Orders(folder)
    for point in POINTS:
        _wrap(point, functools.partial(orders.reached, point.name))
    peer = _class_of(_PEER)
    learned = peer._learned

    @functools.wraps(learned)
    def note_step(self: Any, record: Any) -> Any:
        orders.step = record.step + 1
        return learned(self, record)

    peer._learned = note_step
    _wrap_after_apply(folder)


class _Orders:
    """What this process was told to do, read anew at each point."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _ORDER
        self.step = 0
        """The step in progress."""

    def reached(self, point: str) -> None:
        try:
            wanted = json.loads(self._path.read_text())
        except FileNotFoundError:
            return
        if wanted["point"] != point or self.step < wanted["step"]:
            return
        self._path.unlink()
        (self._folder / _DONE).write_text(str(self.step))
        os.kill(os.getpid(), wanted["signal"])


def _class_of(owner: str) -> Any:
    module, _, name = owner.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


def _wrap(point: Point, reached: Callable[[], None]) -> None:
    owner = _class_of(point.owner)
    function = getattr(owner, point.function)

    @functools.wraps(function)
    def before(*arguments: Any, **named: Any) -> Any:
        if point.only(*arguments, **named):
            reached()
        return function(*arguments, **named)

    @functools.wraps(function)
    def after(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if not hasattr(result, "__await__"):
            if point.only(*arguments, **named):
                reached()
            return result
        return awaited(result, arguments, named)

    async def awaited(waiting: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        result = await waiting
        if point.only(*arguments, **named):
            reached()
        return result

    setattr(owner, point.function, before if point.when == "before" else after)


def _wrap_after_apply(folder: Path) -> None:
    stage = _class_of(_STAGE)
    apply = stage.apply_step

    @functools.wraps(apply)
    def note_state(self: Any, *arguments: Any, **named: Any) -> None:
        apply(self, *arguments, **named)
        digest = hashlib.sha256(self.flat.detach().numpy().tobytes()).hexdigest()
        with (folder / _STATES).open("a") as file:
            file.write(f"{self.stage} {self.version} {digest}\n")

    stage.apply_step = note_state
