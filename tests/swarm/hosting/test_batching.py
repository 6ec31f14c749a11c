from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.hosting.batching import BatchQueue, Task


def queue_of(*tasks: Task, size_max: int = 4) -> BatchQueue[Task]:
    queue: BatchQueue[Task] = BatchQueue(tasks_max=100, size_max=size_max)
    assert all(queue.add(task) for task in tasks)
    return queue


def test_the_oldest_is_joined_by_those_with_its_key() -> None:
    a, b, c = Task("forward", 1), Task("backward", 1), Task("forward", 1)
    queue = queue_of(a, b, c)
    assert queue.take() == [a, c]
    assert queue.take() == [b]
    assert queue.take() == []


def test_a_batch_ends_where_the_next_of_its_kind_does_not_fit() -> None:
    a, b, c = Task("forward", 2), Task("forward", 3), Task("forward", 1)
    queue = queue_of(a, b, c)
    assert queue.take() == [a], "c must not overtake b"
    assert queue.take() == [b, c]


def test_a_task_larger_than_a_batch_is_done_alone() -> None:
    large, small = Task("forward", 9), Task("forward", 1)
    queue = queue_of(large, small)
    assert queue.take() == [large]
    assert queue.take() == [small]


def test_tasks_without_a_key_are_done_alone() -> None:
    a, b = Task(None, 1), Task(None, 1)
    assert queue_of(a, b).take() == [a]


def test_a_full_queue_refuses_instead_of_growing() -> None:
    queue: BatchQueue[Task] = BatchQueue(tasks_max=2, size_max=1)
    assert [queue.add(Task("forward", 1)) for _ in range(3)] == [True, True, False]
    assert len(queue) == 2
    queue.take()
    assert queue.add(Task("forward", 1))


def test_a_withdrawn_task_is_never_taken() -> None:
    a, b = Task("forward", 1), Task("forward", 1)
    queue = queue_of(a, b)
    assert queue.withdraw(a)
    assert queue.take() == [b]
    assert not queue.withdraw(b)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(1, 5)), max_size=30))
def test_every_task_is_taken_once_the_oldest_first_and_no_kind_is_reordered(
    kinds: list[tuple[str | None, int]],
) -> None:
    tasks = [Task(key, size) for key, size in kinds]
    queue = queue_of(*tasks)
    waiting, taken = list(tasks), []
    while batch := queue.take():
        assert batch[0] is waiting[0]
        assert len(batch) == 1 or sum(task.size for task in batch) <= 4
        waiting = [task for task in waiting if task not in batch]
        taken += batch
    assert not waiting
    for key in ("a", "b", None):
        assert [task for task in taken if task.key == key] == [
            task for task in tasks if task.key == key
        ]
