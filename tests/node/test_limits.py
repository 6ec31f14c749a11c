"""What a node may take, and what it finds that it takes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from node.limits import (
    MemoryLimit,
    cap_library_threads,
    descriptors_open,
    family,
    process_age_s,
    processor,
    raise_descriptor_limit,
    usage,
)

MB = 1 << 20


def test_figures_come_with_the_machine_and_the_day_they_were_measured() -> None:
    found = processor()
    assert found["processor"]
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert len(found["date"]) == len("2026-08-23")


def test_a_node_over_its_memory_limit_takes_no_work_until_it_is_well_below() -> None:
    memory = MemoryLimit(100 * MB)
    answers = []
    for used_mb in (90, 101, 99, 91, 89, 99):
        memory.observe(used_mb * MB)
        answers.append(memory.reason)
    over = "over the memory limit of 100 MB"
    assert answers == [None, over, over, over, None, None]


def test_without_a_limit_there_is_always_memory() -> None:
    memory = MemoryLimit(None)
    memory.observe(1 << 50)
    assert memory.reason is None


def test_descriptors_are_raised_to_what_the_machine_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        limit = raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit
        assert limit >= before[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_threads_of_libraries_are_bounded_unless_the_person_has_said_otherwise() -> None:
    environ = {"MKL_NUM_THREADS": "7"}
    cap_library_threads(2, environ)
    assert environ["OMP_NUM_THREADS"] == "2"
    assert environ["MKL_NUM_THREADS"] == "7"


@pytest.mark.process
def test_usage_counts_children_too() -> None:
    alone = usage()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together = usage()
        assert child.pid in set(family(os.getpid()))
        child.communicate()
    assert together.processes == alone.processes + 1
    assert together.memory_bytes > alone.memory_bytes
    assert child.pid not in set(family(os.getpid()))


def test_what_we_have_open_and_how_old_we_are_is_known() -> None:
    before = descriptors_open()
    with open(os.devnull):
        assert descriptors_open() == before + 1
    assert 0 < process_age_s() < 86400
