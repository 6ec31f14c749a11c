"""What the compute thread does next: the oldest task, joined by those it can share one tensor operation with.

Pure: no clock, no torch, no threads. Rules:
- The oldest waiting task is always in the next batch, so nothing starves.
- Tasks with the same key join it, in their own order, as long as they fit; the first that does not fit ends the batch,
  so a small task never overtakes a larger one of its kind.
- A task without a key is a barrier: nothing behind it joins what is before it. Discarding a gradient relies on that.
- The queue is bounded: a task that does not fit is refused at once, and its peer asks elsewhere.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound="Task")


@dataclass(slots=True, eq=False)
class Task:
    """One piece of waiting work; compared by identity."""

    key: Hashable | None
    """Equal keys can be computed together: the kind of call, its step, the shape of one sample. None is done alone."""
    size: int
    """Microbatches, or whatever `BatchQueue.size_max` counts."""


class BatchQueue(Generic[T]):
    """Waiting tasks in order of arrival."""

    def __init__(self, *, tasks_max: int, size_max: int) -> None:
        self._tasks: deque[T] = deque()
        self._tasks_max = tasks_max
        self._size_max = size_max

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: T, *, bounded: bool = True) -> bool:
        """Append a task; False when the queue is full and the task was refused, which only bounded ones are."""
        if bounded and len(self._tasks) >= self._tasks_max:
            return False
        self._tasks.append(task)
        return True

    def withdraw(self, task: T) -> bool:
        """Remove a task that nobody waits for any more; False when it has been taken already."""
        try:
            self._tasks.remove(task)
        except ValueError:
            return False
        return True

    def take(self) -> list[T]:
        """Remove and return the next batch, oldest first; empty when nothing waits.

        A task larger than the maximum is done alone.
        """
        if not self._tasks:
            return []
        oldest = self._tasks.popleft()
        batch = [oldest]
        if oldest.key is None:
            return batch
        size = oldest.size
        joinable = itertools.takewhile(lambda task: task.key is not None, tuple(self._tasks))
        for task in joinable:
            if task.key != oldest.key:
                continue
            size += task.size
            if size > self._size_max:
                break
            self._tasks.remove(task)
            batch.append(task)
        return batch
