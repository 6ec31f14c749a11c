"""Catches planted faults: seeds run with one mistake in the cores and nothing but its checker, until that one complains.

A fault that nobody catches fails the suite: then either the checker is blind, or the code that was broken is not needed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from unittest import mock

from tests.sim.engine.checker import ViolationError
from tests.sim.engine.runner import PROCESSES, run_seed
from tests.sim.engine.subject import Planted, subject_of, suite_of

SEEDS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Catch:
    """What became of one fault."""

    mode: str
    name: str
    promise: str
    seeds_needed: int | None
    """How many seeds it took; None when none of them showed it."""
    seconds: float
    error: str | None
    """The last thing that a broken core raised, which is no catch."""


def catch(mode: str, planted: Planted, seeds_max: int = SEEDS_MAX, *, first_seed: int = 0) -> Catch:
    """Run seeds from `first_seed` on with the fault in place, until its checker complains."""
    started_s = time.monotonic()
    subject = subject_of(mode)
    needed = raised = None
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in planted.patches:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        for tried in range(seeds_max):
            try:
                run_seed(subject, first_seed + tried, checkers=(planted.checker,))
            except ViolationError:
                needed = tried + 1
                break
            except Exception as error:  # noqa: BLE001 - a broken core may also fall over; that is not the catch we want
                raised = f"{type(error).__name__}: {error}"
                continue
    seconds = time.monotonic() - started_s
    return Catch(mode, planted.name, planted.checker.promise, needed, seconds, raised)


def catch_all(jobs: Sequence[tuple[str, int]]) -> Iterator[Catch]:
    """Catch these, each a mode and a place in its suite, in two processes."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        yield from pool.imap_unordered(_catch_one, jobs, chunksize=1)


def _catch_one(job: tuple[str, int]) -> Catch:
    mode, index = job
    return catch(mode, suite_of(mode)[index])
